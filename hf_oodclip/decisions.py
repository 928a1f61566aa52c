"""Scores and calibrated decisions on top of a model that can turn images into score inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import encoders
from .calibration import Calibration
from .errors import LabelError, NonFiniteError
from .image_features import iterate_image_embeds
from .ood_head import OODHead
from .scores import Score, ScoreInputs, get_score

__all__ = ["OODDecisionMixin"]


class OODDecisionMixin:
    """Adds scores and calibration to a model with an `ood_head` that can compare images with its classes."""

    ood_head: OODHead

    if TYPE_CHECKING:
        clip: Any
        config: Any
        device: torch.device

        def cosines(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]: ...

    def score_inputs(self, pixel_values: Tensor | None = None, image_embeds: Tensor | None = None) -> ScoreInputs:
        """Return all that the scores need, from pixels or from stored image embeddings: one image pass.

        Raises:
            LabelError: The model has no labels yet.
        """
        if self.config.num_labels == 0:
            raise LabelError(
                "The model has no labels: load it with labels=['cat', 'dog'], or call model.set_labels([...])."
            )
        if not math.isfinite(self.logit_scale):
            raise NonFiniteError("logit_scale is NaN or infinite: the checkpoint's weights are damaged.")
        if image_embeds is None:
            image_embeds, _ = encoders.encode_images(self.clip, pixel_values)  # type: ignore[arg-type]
        image_embeds = image_embeds.to(torch.promote_types(image_embeds.dtype, torch.float32))
        similarity, negative_similarity = self.cosines(image_embeds)
        return ScoreInputs(
            similarity=similarity,
            negative_similarity=negative_similarity if self.config.num_negatives else None,
            image_embeds=image_embeds,
            logit_scale=self.logit_scale,
        )

    @property
    def logit_scale(self) -> float:
        """Factor between a cosine and a logit."""
        return float(self.clip.logit_scale.detach().float().exp())

    @property
    def score(self) -> Score:
        """The score in use."""
        return self.ood_head.score

    def set_score(self, score: str | Score | None, **options: Any) -> None:
        """Choose the score; calibrations of other scores stay stored for when you switch back.

        Raises:
            UnknownNameError: No such score or option.
        """
        self.ood_head.set_score(score, self.device, **options)

    def ood_scores(
        self, images: Any, scores: Sequence[str | Score] | None = None, batch_size: int = 32
    ) -> dict[str, Tensor]:
        """Return several scores of the same images from one image pass, `{score key: [n]}`.

        Args:
            images: Paths, PIL images, a 🤗 dataset with an image column, a `[n, 3, H, W]` tensor of
                pixel values, or a generator of images.
            scores: Names or `Score` objects; the score in use when None.
            batch_size: Images a forward pass.
        """
        chosen = [self.score] if scores is None else [get_score(score) for score in scores]
        chosen = list({score.key: score for score in chosen}.values())
        collected: dict[str, list[Tensor]] = {score.key: [] for score in chosen}
        for image_embeds in iterate_image_embeds(self, images, batch_size):
            inputs = self.score_inputs(image_embeds=image_embeds)
            for score in chosen:
                collected[score.key].append(score(inputs).cpu())
        return {key: torch.cat(parts) if parts else torch.empty(0) for key, parts in collected.items()}

    def calibrate(
        self,
        id_images: Any,
        target_tpr: float = 0.95,
        *,
        score: str | Score | None = None,
        rule: str = "conformal",
        confidence: float = 0.95,
        batch_size: int = 32,
    ) -> Calibration:
        """Learn from ID images when to call an image OOD, and store it in the model.

        Args:
            id_images: Images of the labels that trained nothing; at least 20, better some hundreds.
                Anything `ood_scores` takes.
            target_tpr: Share of ID images to accept.
            score: Score to calibrate; the one in use when None.
            rule: Threshold rule, see `hf_oodclip.calibration.THRESHOLD_RULES`.
            confidence: Level of the stored interval of the true positive rate.
            batch_size: Images a forward pass.

        Raises:
            CalibrationError: Too few images, or a target they cannot support.
        """
        chosen = self.score if score is None else get_score(score)
        values = self.ood_scores(id_images, [chosen], batch_size)[chosen.key]
        calibration = Calibration.fit(values, chosen.key, target_tpr, rule, confidence)
        self.ood_head.add_calibration(calibration, self.device)
        return calibration

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the score in use, or None before `calibrate`."""
        return self.ood_head.calibration_for(self.score)

    def set_calibration(self, calibration: Calibration) -> None:
        """Store a calibration made elsewhere, for the score in use.

        Raises:
            CalibrationError: It belongs to another score.
        """
        calibration.check_score(self.score.key)
        self.ood_head.add_calibration(calibration, self.device)
