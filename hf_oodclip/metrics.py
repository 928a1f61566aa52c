"""Detection metrics from two lists of scores, each convention under its own name.

`id_scores` and `ood_scores` are always 1-D and numeric (list, numpy array, torch tensor; infinities are
allowed), and a larger score always means more out-of-distribution (OOD). Results are fractions in [0, 1].
Fawcett 2006: "An introduction to ROC analysis". Hendrycks & Gimpel 2017: https://arxiv.org/abs/1610.02136.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import resample_metrics
from .detection_curves import (
    CONVENTIONS,
    AuprMethod,
    Convention,
    Positive,
    ThresholdRule,
    evaluate_curves,
    false_positive_rate,
    precision_area,
    rank_scores,
    read_values,
    roc_area,
    score_curves,
)
from .errors import MetricError, unknown_name

__all__ = [
    "CONVENTIONS",
    "AuprMethod",
    "Convention",
    "Positive",
    "ThresholdRule",
    "accuracy",
    "aupr_in",
    "aupr_out",
    "auroc",
    "detection_metrics",
    "fpr95_id_pos",
    "fpr95_ood_pos",
    "fpr_at_tpr",
]


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the chance that a random OOD image scores above a random ID image, ties counting one half.

    `AUROC = mean over pairs of [ood > id] + [ood = id] / 2` (Fawcett 2006, section 7); 0.5 is chance.

    Raises:
        MetricError: A side is empty, not 1-D, not numeric or has NaN (the same for every metric here).

    Example:
        >>> auroc([0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7])
        0.9375
    """
    return float(roc_area(*score_curves(*rank_scores(id_scores, ood_scores))["id"])[0])


def aupr_in(id_scores: ArrayLike, ood_scores: ArrayLike, method: AuprMethod = "average_precision") -> float:
    """Return the area under the precision-recall curve for finding ID images (ID positive, score negated).

    With recall R_k and precision P_k at the k-th distinct score, `average_precision` (as in MCM, Ming et
    al., NeurIPS 2022) is `sum_k (R_k - R_{k-1}) P_k`, and `trapezoid` (as in OpenOOD v1.5, Zhang et al.
    2023) is `sum_k (R_k - R_{k-1}) (P_k + P_{k-1}) / 2`, both from R_0 = 0 and P_0 = 1. In (0, 1]; chance
    is the share of ID images. Raises `MetricError` as `auroc`, `UnknownNameError` for another method.

    Example:
        >>> aupr_in([0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7])  # (1 + 1 + 1 + 4/5) / 4
        0.95
    """
    return float(precision_area(*score_curves(*rank_scores(id_scores, ood_scores))["id"], method)[0])


def aupr_out(id_scores: ArrayLike, ood_scores: ArrayLike, method: AuprMethod = "average_precision") -> float:
    """Return the area under the precision-recall curve for finding OOD images (OOD positive).

    Formulas, range, errors and sources are those of `aupr_in` with the two sides exchanged.

    Example:
        >>> aupr_out([0.1, 0.2, 0.6], [0.5, 0.7])  # (1 + 2/3) / 2
        0.8333333333333333
    """
    return float(precision_area(*score_curves(*rank_scores(id_scores, ood_scores))["ood"], method)[0])


def fpr_at_tpr(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    tpr: float = 0.95,
    positive: Positive = "id",
    threshold_rule: ThresholdRule = "first",
) -> float:
    """Return the share of the negative side taken for positive when a share `tpr` of the positive side is.

    Operating points (TPR, FPR) exist only at distinct scores: tied scores are taken together. In [0, 1].
    Source: Hendrycks & Gimpel 2017; MCM (Ming et al., NeurIPS 2022); CLIPN (Wang et al., ICCV 2023).

    Args:
        id_scores, ood_scores: Scores of the in-distribution and of the OOD images, larger = more OOD.
        tpr: Target true positive rate, in (0, 1].
        positive: "id" accepts images from the lowest score up; "ood" catches them from the highest down.
        threshold_rule: "first" takes the first point with TPR >= `tpr`. "nearest" (MCM's code) takes the
            TPR nearest to `tpr`, possibly below it; of two equally near the higher (in floating point as
            there, so .9 is nearer to .95 than 1), of points with one TPR that of largest FPR, but at TPR 1
            the first. "interpolate" (CLIPN) draws a line from the last point with TPR <= `tpr` to the next;
            where either is missing it is "first" (CLIPN's code adds the origin: constant scores give `tpr`).

    Raises:
        ValueError: `MetricError` as for `auroc` or if `tpr` is out of range; `UnknownNameError` for a name.

    Example:
        >>> fpr_at_tpr([1, 2, 3, 9], [4, 5, 6, 7], tpr=0.75)
        0.0
    """
    curves = score_curves(*rank_scores(id_scores, ood_scores))
    if positive not in curves:
        raise unknown_name("positive side", positive, curves)
    if not 0 < tpr <= 1:
        raise MetricError(f"tpr is {tpr!r}; allowed is above 0 and at most 1. Give a share, 0.95 for 95 %.")
    return float(false_positive_rate(*curves[positive], tpr, threshold_rule)[0])


def fpr95_id_pos(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the headline FPR95: the share of OOD images accepted when 95 % of ID images are accepted.

    `fpr_at_tpr(..., 0.95, "id", "first")`, with its range, errors and sources; 0 is perfect.

    Example:
        >>> fpr95_id_pos([1, 2, 3, 9], [4, 5, 6, 7])  # letting in the ID image at 9 lets in all OOD
        1.0
    """
    return fpr_at_tpr(id_scores, ood_scores, 0.95, "id", "first")


def fpr95_ood_pos(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the FPR95 of OpenOOD: the share of ID images rejected when 95 % of OOD images are caught.

    `fpr_at_tpr(..., 0.95, "ood", "first")`, with its range, errors and sources; 0 is perfect.

    Example:
        >>> fpr95_ood_pos([1, 2, 3, 9], [4, 5, 6, 7])  # catching the OOD image at 4 rejects only 9
        0.25
    """
    return fpr_at_tpr(id_scores, ood_scores, 0.95, "ood", "first")


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of predicted classes (numbers or names) equal to their label, in [0, 1].

    Raises `MetricError` for empty, not 1-D, NaN, different lengths, or numbers against names.

    Example:
        >>> accuracy(["cat", "dog", "dog", "cat"], ["cat", "dog", "cat", "cat"])
        0.75
    """
    predicted, expected = read_values(predictions, "predictions", "fiubU"), read_values(labels, "labels", "fiubU")
    if predicted.size != expected.size or (predicted.dtype.kind == "U") != (expected.dtype.kind == "U"):
        given = f"Got {predicted.size} {predicted.dtype} predictions, {expected.size} {expected.dtype} labels"
        raise MetricError(f"{given}; allowed are equal lengths, both numbers or both names. Pair them first.")
    return float(np.mean(predicted == expected))


def detection_metrics(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    convention: str | None = None,
    num_bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, float | tuple[float, float]]:
    """Return all detection metrics by name, with bootstrap intervals if asked.

    Keys: `auroc`, `aupr_in`, `aupr_out` (average precision), `fpr95_id_pos`, `fpr95_ood_pos`, `num_id`,
    `num_ood`. These never change meaning: a convention only adds keys that carry its name.

    Args:
        id_scores, ood_scores: Scores of the in-distribution and of the OOD images, larger = more OOD.
        convention: A key of `CONVENTIONS`, e.g. "openood": adds `fpr95_openood` and, where the convention
            reports AUPR, `aupr_in_openood` and `aupr_out_openood`.
        num_bootstrap: If positive, adds `<metric>_interval: (low, high)` for every metric from this many
            resamples, ID and OOD drawn independently (percentile bootstrap, Efron & Tibshirani 1993). Above
            8,192 images, groups of neighbouring scores are drawn (`hf_oodclip.bootstrap`).
        confidence: Share of the resamples inside the interval, in (0, 1).
        seed: Fixes the resamples; the global numpy generator is not used.

    Raises:
        ValueError: `MetricError` as for `auroc` or for a number out of range; `UnknownNameError` for a name.

    Example:
        >>> detection_metrics([1, 2, 3, 9], [4, 5, 6, 7], convention="openood")["fpr95_openood"]
        0.25
    """
    if convention is not None and convention not in CONVENTIONS:
        raise unknown_name("convention", convention, CONVENTIONS)
    if not isinstance(num_bootstrap, (int, np.integer)) or num_bootstrap < 0 or not 0 < confidence < 1:
        given = f"num_bootstrap is {num_bootstrap!r} and confidence {confidence!r}"
        raise MetricError(f"{given}; allowed are a whole number >= 0 and a share in (0, 1). Try 1000, 0.95.")
    sides, num_distinct = rank_scores(id_scores, ood_scores)
    points = evaluate_curves(score_curves(sides, num_distinct), convention)
    results: dict[str, float | tuple[float, float]] = {key: float(value[0]) for key, value in points.items()}
    results |= {"num_id": sides[0].size, "num_ood": sides[1].size}
    if num_bootstrap:
        resampled = resample_metrics(sides, num_distinct, points, convention, num_bootstrap, seed)
        for key, values in resampled.items():
            low, high = np.quantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
            results[f"{key}_interval"] = (float(low), float(high))
    return results
