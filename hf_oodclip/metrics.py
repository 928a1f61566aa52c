"""Detection metrics from two lists of scores, each convention under its own name.

`id_scores` and `ood_scores` are always 1-D and numeric (list, numpy array, torch tensor; infinities are
allowed), and a larger score always means more out-of-distribution (OOD). Results are fractions in [0, 1].
Fawcett 2006: "An introduction to ROC analysis". Hendrycks & Gimpel 2017: https://arxiv.org/abs/1610.02136.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import MetricError, unknown_name

AuprMethod = Literal["average_precision", "trapezoid"]
Positive = Literal["id", "ood"]
ThresholdRule = Literal["first", "nearest", "interpolate"]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Curves = dict[str, tuple[Integers, Integers]]


class Convention(NamedTuple):
    """How one line of papers reads FPR95 and AUPR; `aupr_method` is None where it reports no AUPR."""

    positive: Positive
    threshold_rule: ThresholdRule
    aupr_method: AuprMethod | None


CONVENTIONS: dict[str, Convention] = {
    "mcm": Convention("id", "nearest", "average_precision"),
    "openood": Convention("ood", "first", "trapezoid"),
    "clipn": Convention("id", "interpolate", None),
}


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the chance that a random OOD image scores above a random ID image, ties counting one half.

    `AUROC = mean over pairs of [ood > id] + [ood = id] / 2` (Fawcett 2006, section 7); 0.5 is chance.

    Raises:
        MetricError: A side is empty, not 1-D, not numeric or has NaN (the same for every metric here).

    Example:
        >>> auroc([0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7])
        0.9375
    """
    return float(_roc_area(*_curves(*_rank(id_scores, ood_scores))["id"])[0])


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
    return float(_precision_area(*_curves(*_rank(id_scores, ood_scores))["id"], method)[0])


def aupr_out(id_scores: ArrayLike, ood_scores: ArrayLike, method: AuprMethod = "average_precision") -> float:
    """Return the area under the precision-recall curve for finding OOD images (OOD positive).

    Formulas, range, errors and sources are those of `aupr_in` with the two sides exchanged.

    Example:
        >>> aupr_out([0.1, 0.2, 0.6], [0.5, 0.7])  # (1 + 2/3) / 2
        0.8333333333333333
    """
    return float(_precision_area(*_curves(*_rank(id_scores, ood_scores))["ood"], method)[0])


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
    curves = _curves(*_rank(id_scores, ood_scores))
    if positive not in curves:
        raise unknown_name("positive side", positive, curves)
    if not 0 < tpr <= 1:
        raise MetricError(f"tpr is {tpr!r}; allowed is above 0 and at most 1. Give a share, 0.95 for 95 %.")
    return float(_false_positive_rate(*curves[positive], tpr, threshold_rule)[0])


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
    predicted, expected = _read(predictions, "predictions", "fiubU"), _read(labels, "labels", "fiubU")
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
            resamples, ID and OOD drawn independently (percentile bootstrap, Efron & Tibshirani 1993).
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
    sides, num_distinct = _rank(id_scores, ood_scores)
    points = _evaluate(_curves(sides, num_distinct), convention)
    results: dict[str, float | tuple[float, float]] = {key: float(value[0]) for key, value in points.items()}
    results |= {"num_id": sides[0].size, "num_ood": sides[1].size}
    # One generator per side, so that neither side's draws depend on how many images the other has.
    sources = list(zip(sides, np.random.default_rng(seed).spawn(2), strict=True))
    step = max(1, 2**17 // (sides[0].size + sides[1].size))  # bounds the memory and fits the cache
    chunks = []
    for start in range(0, num_bootstrap, step):
        rows = min(step, num_bootstrap - start)
        drawn = [side[0, source.integers(side.size, size=(rows, side.size))] for side, source in sources]
        chunks.append(_evaluate(_curves(drawn, num_distinct), convention))
    for key in points if num_bootstrap else ():
        resampled = np.concatenate([chunk[key] for chunk in chunks])
        low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
        results[f"{key}_interval"] = (float(low), float(high))
    return results


def _read(values: Any, name: str, kinds: str = "fiub") -> NDArray[Any]:
    # Tensors on a GPU, with gradients or in bfloat16 have no direct way to numpy.
    values = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MetricError(f"{name} is no array: {error}; it must be 1-D. Give one value each.") from error
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in kinds:
        allowed = "numbers or names" if "U" in kinds else "numbers"
        raise MetricError(f"{name} is {array.dtype}, shape {array.shape}; give 1-D {allowed}, at least one.")
    if array.dtype.kind == "f" and (missing := np.isnan(array)).any():
        raise MetricError(f"{name}[{missing.argmax()}] is NaN; allowed: numbers, also inf. Check its image.")
    return array


def _rank(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[list[Integers], int]:
    """Return one row per side of each score's place among the distinct scores, and their number."""
    scores = _read(id_scores, "id_scores"), _read(ood_scores, "ood_scores")
    distinct, places = np.unique(np.concatenate(scores), return_inverse=True)
    return [places[None, : scores[0].size], places[None, scores[0].size :]], distinct.size


def _curves(sides: list[Integers], num_distinct: int) -> Curves:
    """Return, for either side as positive, true and false positives from the strictest threshold on."""
    rows = len(sides[0])
    flat = [(places + num_distinct * np.arange(rows)[:, None]).ravel() for places in sides]
    known, unknown = (np.bincount(bins, minlength=rows * num_distinct).reshape(rows, -1) for bins in flat)
    backwards = unknown[:, ::-1].cumsum(axis=1), known[:, ::-1].cumsum(axis=1)
    return {"id": (known.cumsum(axis=1), unknown.cumsum(axis=1)), "ood": backwards}


def _roc_area(hits: Integers, alarms: Integers) -> Floats:
    # Whole numbers until the last division, so that ties and the exchange of sides lose nothing.
    doubled = (np.diff(alarms, prepend=0) * (2 * hits - np.diff(hits, prepend=0))).sum(axis=1)
    return doubled / (2 * hits[:, -1] * alarms[:, -1])


def _precision_area(hits: Integers, alarms: Integers, method: AuprMethod) -> Floats:
    if method not in get_args(AuprMethod):
        raise unknown_name("AUPR method", method, get_args(AuprMethod))
    taken = hits + alarms
    # A resample may lack the strictest scores; precision 1 there keeps the starting point of the curve.
    precision = np.divide(hits, taken, out=np.ones(taken.shape), where=taken > 0)
    if method == "trapezoid":
        precision = (precision + np.insert(precision[:, :-1], 0, 1.0, axis=1)) / 2
    return (np.diff(hits, prepend=0) * precision).sum(axis=1) / hits[:, -1]


def _false_positive_rate(hits: Integers, alarms: Integers, tpr: float, rule: ThresholdRule) -> Floats:
    if rule not in get_args(ThresholdRule):
        raise unknown_name("threshold rule", rule, get_args(ThresholdRule))
    rows, total = np.arange(len(hits)), hits[:, -1:]
    # Dividing rounds 19/20 just as the literal 0.95 is rounded; comparing with 0.95 * total might not.
    recall = hits / total
    # Like numpy.interp, on which CLIPN's code rests, the line leaves an exactly met TPR at its largest FPR.
    index = (recall > tpr if rule == "interpolate" and tpr < 1 else recall >= tpr).argmax(axis=1)
    if rule == "nearest":
        distance = np.abs(recall - tpr)
        distance[:, 1:][hits[:, :-1] == total] = np.inf
        index = distance.shape[1] - 1 - distance[:, ::-1].argmin(axis=1)
    rate: Floats = alarms[rows, index] / alarms[:, -1]
    if rule != "interpolate":
        return rate
    before = np.maximum(index - 1, 0)
    # A threshold that takes no image of a resample is no operating point to draw a line from.
    before = np.where(hits[rows, before] + alarms[rows, before] > 0, before, index)
    step = recall[rows, index] - recall[rows, before]
    weight: Floats = np.divide(tpr - recall[rows, before], step, out=np.ones(len(rows)), where=step > 0)
    low: Floats = alarms[rows, before] / alarms[:, -1]
    return low + weight * (rate - low)


def _evaluate(curves: Curves, convention: str | None) -> dict[str, Floats]:
    values = {
        "auroc": _roc_area(*curves["id"]),
        "aupr_in": _precision_area(*curves["id"], "average_precision"),
        "aupr_out": _precision_area(*curves["ood"], "average_precision"),
        "fpr95_id_pos": _false_positive_rate(*curves["id"], 0.95, "first"),
        "fpr95_ood_pos": _false_positive_rate(*curves["ood"], 0.95, "first"),
    }
    if convention is not None:
        positive, rule, method = CONVENTIONS[convention]
        values[f"fpr95_{convention}"] = _false_positive_rate(*curves[positive], 0.95, rule)
        if method is not None:
            values[f"aupr_in_{convention}"] = _precision_area(*curves["id"], method)
            values[f"aupr_out_{convention}"] = _precision_area(*curves["ood"], method)
    return values
