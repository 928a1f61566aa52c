"""From scores to decisions, with ID images only: a threshold, p-values, and how sure both are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .errors import CalibrationError, unknown_name

__all__ = ["THRESHOLD_RULES", "Calibration"]

logger = logging.get_logger("hf_oodclip.calibration")

MIN_IMAGES = 20
FEW_IMAGES = 100
# (n + 1) * 0.95 may fall a rounding error above the whole number it stands for.
_ROUNDING = 1e-9


def _conformal_rank(num_images: int, target_tpr: float) -> float:
    return math.ceil((num_images + 1) * target_tpr - _ROUNDING)


def _empirical_rank(num_images: int, target_tpr: float) -> float:
    return math.ceil(num_images * target_tpr - _ROUNDING)


def _linear_rank(num_images: int, target_tpr: float) -> float:
    return (num_images - 1) * target_tpr + 1


THRESHOLD_RULES: dict[str, Callable[[int, float], float]] = {
    # The mean true positive rate over calibration sets is at least the target, for any n.
    "conformal": _conformal_rank,
    # The share of the calibration images themselves that is accepted is at least the target.
    "empirical": _empirical_rank,
    # Linear interpolation between the two scores around the quantile, as numpy and CRoFT have it.
    "linear": _linear_rank,
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """A decision rule for one score: `is_ood` and `p_value` for new images, from ID images alone.

    An image is called OOD when its `ood_score` is above `threshold`. Its p-value is the share of ID
    images that look at least as OOD: `(1 + #{calibration scores >= s}) / (n + 1)`, in (0, 1]. If the
    image comes from the same distribution as the calibration images, `P(p_value <= a) <= a` for
    every `a`. With the `conformal` rule, `is_ood` is the same as `p_value <= 1 - target_tpr`.

    Args:
        score: Key of the score the rule belongs to, such as `neglabel` or `mcm(temperature=0.5)`.
        threshold: Largest `ood_score` that is accepted as ID.
        target_tpr: Share of ID images meant to be accepted.
        rule: Name of the threshold rule.
        tpr_interval: Interval of the true positive rate this threshold has on new ID images.
        confidence: Probability that the interval holds it.
        ood_scores: Calibration scores, ascending, `[n]`.

    Source: Vovk et al., "Algorithmic Learning in a Random World", 2005 (conformal p-values); the
    interval is exact for continuous scores: the true positive rate of the k-th smallest of n scores
    is Beta(k, n + 1 - k) distributed.

    Example:
        >>> import torch
        >>> calibration = Calibration.fit(torch.linspace(0, 1, 199), "mcm")
        >>> calibration.is_ood(torch.tensor([0.5, 0.99])).tolist()
        [False, True]
    """

    score: str
    threshold: float
    target_tpr: float
    rule: str
    tpr_interval: tuple[float, float]
    confidence: float
    ood_scores: Tensor

    @classmethod
    def fit(
        cls,
        ood_scores: Tensor,
        score: str,
        target_tpr: float = 0.95,
        rule: str = "conformal",
        confidence: float = 0.95,
        *,
        warn_if_few: bool = True,
    ) -> Calibration:
        """Return the decision rule for the `ood_score` of some ID images.

        Args:
            ood_scores: Scores of ID images that trained nothing, `[n]`.
            score: Key of the score that made them.
            target_tpr: Share of ID images to accept, in (0, 1).
            rule: `conformal` (default), `empirical`, or `linear`.
            confidence: Level of the interval of the true positive rate.
            warn_if_few: Warn of fewer than 100 images; False where it was said before, of another score of the same.

        Raises:
            CalibrationError: Fewer than 20 scores, NaN among them, a target outside (0, 1), or one
                so near 1 that this many images cannot support it.
            UnknownNameError: No such rule.
        """
        if rule not in THRESHOLD_RULES:
            raise unknown_name("threshold rule", rule, THRESHOLD_RULES)
        ordered = torch.sort(ood_scores.detach().to("cpu", torch.float32).flatten()).values
        num_images = len(ordered)
        if not (0 < target_tpr < 1 and 0 < confidence < 1):
            raise CalibrationError(
                f"target_tpr and confidence must be between 0 and 1, got {target_tpr} and {confidence}."
            )
        if num_images < MIN_IMAGES:
            raise CalibrationError(
                f"Calibration needs at least {MIN_IMAGES} ID images and was given {num_images}; "
                f"{FEW_IMAGES} or more give a usable threshold."
            )
        if not torch.isfinite(ordered).all():
            raise CalibrationError("Some calibration scores are NaN or infinite; find the images that cause it.")
        rank = THRESHOLD_RULES[rule](num_images, target_tpr)
        if rank > num_images:
            needed = math.ceil(target_tpr / (1 - target_tpr) - _ROUNDING)
            raise CalibrationError(
                f"A target of {target_tpr:.1%} needs at least {needed} ID images and {num_images} were given: "
                "give more images or a lower target_tpr."
            )
        rank = max(rank, 1)
        if warn_if_few and num_images < FEW_IMAGES:
            logger.warning(
                f"Only {num_images} ID images for calibration: the threshold is rough. "
                f"Use {FEW_IMAGES} or more if you can."
            )
        below, above = ordered[math.floor(rank) - 1], ordered[math.ceil(rank) - 1]
        threshold = float(torch.lerp(below, above, rank - math.floor(rank)))
        interval = _beta_interval(rank, num_images + 1 - rank, confidence)
        return cls(score, threshold, target_tpr, rule, interval, confidence, ordered)

    @property
    def num_images(self) -> int:
        """How many ID images the rule rests on."""
        return len(self.ood_scores)

    def check_score(self, score: str) -> None:
        """Raise unless `score` is the key of the score this calibration was made with."""
        if score != self.score:
            raise CalibrationError(
                f"This calibration belongs to the score {self.score!r} and cannot decide for {score!r}: "
                "calibrate again with the score in use, or switch the score back."
            )

    def is_ood(self, ood_scores: Tensor) -> Tensor:
        """Return True where an image is called OOD, same shape as `ood_scores`."""
        return ood_scores.float() > self.threshold

    def p_values(self, ood_scores: Tensor) -> Tensor:
        """Return the split-conformal p-value of each score, in [1 / (n + 1), 1]."""
        reference = self.ood_scores.to(ood_scores.device)
        smaller = torch.searchsorted(reference, ood_scores.float().contiguous(), right=False)
        return (1 + self.num_images - smaller).double() / (1 + self.num_images)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the calibration scores, as plain values for a config file."""
        return {
            "score": self.score,
            "threshold": self.threshold,
            "target_tpr": self.target_tpr,
            "rule": self.rule,
            "tpr_interval": list(self.tpr_interval),
            "confidence": self.confidence,
            "num_images": self.num_images,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], ood_scores: Tensor) -> Calibration:
        """Restore a calibration from `to_dict` and its scores."""
        low, high = values["tpr_interval"]
        return cls(
            score=values["score"],
            threshold=values["threshold"],
            target_tpr=values["target_tpr"],
            rule=values["rule"],
            tpr_interval=(low, high),
            confidence=values["confidence"],
            ood_scores=ood_scores,
        )


def _beta_interval(a: float, b: float, confidence: float) -> tuple[float, float]:
    # Not scipy.stats, which takes a second to import; and this too is for those who calibrate only.
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    return float(betaincinv(a, b, tail)), float(betaincinv(a, b, 1 - tail))
