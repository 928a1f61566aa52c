"""The curves that detection metrics are read from, of one list of scores a side or of many resamples.

All functions take a batch of R resamples, `[R, ...]`; the scores themselves are a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import MetricError, unknown_name

__all__ = [
    "CONVENTIONS",
    "AuprMethod",
    "Convention",
    "Curves",
    "Floats",
    "Integers",
    "Positive",
    "ThresholdRule",
    "count_curves",
    "evaluate_curves",
    "false_positive_rate",
    "precision_area",
    "rank_scores",
    "read_values",
    "roc_area",
    "score_curves",
]

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


def read_values(values: Any, name: str, kinds: str = "fiub") -> NDArray[Any]:
    """Return one value an image as an array.

    Raises:
        MetricError: They are empty, not 1-D, of another kind, or have NaN.
    """
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


def rank_scores(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[list[Integers], int]:
    """Return one row per side of each score's place among the distinct scores, and their number.

    Raises:
        MetricError: As `read_values`.
    """
    scores = read_values(id_scores, "id_scores"), read_values(ood_scores, "ood_scores")
    distinct, places = np.unique(np.concatenate(scores), return_inverse=True)
    return [places[None, : scores[0].size], places[None, scores[0].size :]], distinct.size


def score_curves(sides: Sequence[Integers], num_distinct: int) -> Curves:
    """Return the curves of places `[R, images]` among the distinct scores, of ID and of OOD images."""
    rows = len(sides[0])
    flat = [(places + num_distinct * np.arange(rows)[:, None]).ravel() for places in sides]
    return count_curves(*(np.bincount(bins, minlength=rows * num_distinct).reshape(rows, -1) for bins in flat))


def count_curves(known: Integers, unknown: Integers) -> Curves:
    """Return the curves of the number of ID and of OOD images at each threshold, ascending, `[R, thresholds]`.

    They are, for either side as positive, true and false positives from the strictest threshold on.
    """
    backwards = unknown[:, ::-1].cumsum(axis=1), known[:, ::-1].cumsum(axis=1)
    return {"id": (known.cumsum(axis=1), unknown.cumsum(axis=1)), "ood": backwards}


def roc_area(hits: Integers, alarms: Integers) -> Floats:
    """Return the area under the ROC curve, `[R]`."""
    # Whole numbers until the last division, so that ties and the exchange of sides lose nothing.
    doubled = (np.diff(alarms, prepend=0) * (2 * hits - np.diff(hits, prepend=0))).sum(axis=1)
    return doubled / (2 * hits[:, -1] * alarms[:, -1])


def precision_area(hits: Integers, alarms: Integers, method: AuprMethod) -> Floats:
    """Return the area under the precision-recall curve, `[R]`.

    Raises:
        UnknownNameError: No such method.
    """
    if method not in get_args(AuprMethod):
        raise unknown_name("AUPR method", method, get_args(AuprMethod))
    taken = hits + alarms
    # A resample may lack the strictest scores; precision 1 there keeps the starting point of the curve.
    precision = np.divide(hits, taken, out=np.ones(taken.shape), where=taken > 0)
    if method == "trapezoid":
        precision = (precision + np.insert(precision[:, :-1], 0, 1.0, axis=1)) / 2
    return (np.diff(hits, prepend=0) * precision).sum(axis=1) / hits[:, -1]


def false_positive_rate(hits: Integers, alarms: Integers, tpr: float, rule: ThresholdRule) -> Floats:
    """Return the false positive rate where the true positive rate is `tpr`, `[R]`.

    Raises:
        UnknownNameError: No such rule.
    """
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


def evaluate_curves(curves: Curves, convention: str | None) -> dict[str, Floats]:
    """Return all detection metrics by name, `[R]` each, with those of a convention if one is named."""
    values = {
        "auroc": roc_area(*curves["id"]),
        "aupr_in": precision_area(*curves["id"], "average_precision"),
        "aupr_out": precision_area(*curves["ood"], "average_precision"),
        "fpr95_id_pos": false_positive_rate(*curves["id"], 0.95, "first"),
        "fpr95_ood_pos": false_positive_rate(*curves["ood"], 0.95, "first"),
    }
    if convention is not None:
        positive, rule, method = CONVENTIONS[convention]
        values[f"fpr95_{convention}"] = false_positive_rate(*curves[positive], 0.95, rule)
        if method is not None:
            values[f"aupr_in_{convention}"] = precision_area(*curves["id"], method)
            values[f"aupr_out_{convention}"] = precision_area(*curves["ood"], method)
    return values
