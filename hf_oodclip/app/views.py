"""What the demo shows, as HTML: every text that came from outside is escaped here."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..calibration import Calibration
from .bank import ImageResult

__all__ = [
    "TABLE_HEADERS",
    "Decision",
    "decide",
    "histogram",
    "record",
    "share_accepted",
    "table_row",
    "verdict",
]

VERDICTS = {True: "out of distribution", False: "in distribution", None: "not decided"}
TABLE_HEADERS = ["#", "image", "verdict", "p-value", "OOD score", "label", "probability", "negative"]
NUM_BINS = 28
THUMBNAIL = 224


@dataclass(frozen=True)
class Decision:
    """The verdict about an image: `is_ood` is None without a threshold, `p_value` without a calibration."""

    score: str
    ood_score: float
    is_ood: bool | None
    p_value: float | None


def decide(result: ImageResult, score: str, threshold: float | None, calibration: Calibration | None) -> Decision:
    """Return the verdict about an image at a threshold."""
    value = result.ood_scores[score]
    p_value = None if calibration is None else float(calibration.p_values(torch.tensor(value)))
    return Decision(score, value, None if threshold is None else value > threshold, p_value)


def share_accepted(calibration: Calibration, threshold: float) -> float:
    """Return the share of the calibration images that a threshold accepts as ID."""
    return float((calibration.ood_scores <= threshold).double().mean())


def verdict(result: ImageResult, decision: Decision, picture: Image.Image | None) -> str:
    """Return the verdict in large, with the best labels, the nearest negative and why."""
    label, probability = result.labels[0]
    if decision.is_ood:
        answer = f"None of the labels. The nearest is <b>{escape(label)}</b>"
    else:
        answer = f"<b>{escape(label)}</b>, {probability:.1%} among the labels"
    negative = (
        "" if result.nearest_negative is None else f", nearest negative <b>{escape(result.nearest_negative)}</b>"
    )
    if decision.p_value is not None:
        why = (
            f"p-value {_p_value(decision.p_value)}: {_share(decision.p_value)} of the calibration images look at "
            "least as unusual."
        )
    else:
        why = "No p-value: these labels are not calibrated. Add images of them under “Calibrate”."
        if decision.is_ood is None:
            why += " Or move the threshold."
    kind = {True: "oc-ood", False: "oc-id", None: "oc-open"}[decision.is_ood]
    bars = "".join(
        f'<div class="oc-bar"><span title="{escape(name)}">{escape(name)}</span>'
        f'<div><div style="width:{100 * value:.1f}%"></div></div><b>{value:.1%}</b></div>'
        for name, value in result.labels
    )
    image = "" if picture is None else f'<img alt="" src="{_data_uri(picture)}">'
    return (
        f'<div class="oc-card {kind}" role="status">{image}<div class="oc-main">'
        f'<div class="oc-file">{escape(result.path.name)}</div>'
        f'<div class="oc-verdict">{VERDICTS[decision.is_ood].capitalize()}</div>'
        f'<div class="oc-answer">{answer}{negative}</div>'
        f'<div class="oc-why">{why} {escape(decision.score)} = {decision.ood_score:.5g}.</div></div>'
        f'<div class="oc-side">{bars}</div></div>'
    )


def histogram(calibration: Calibration | None, threshold: float | None, decision: Decision) -> str:
    """Return the calibration scores as a picture with the threshold and this image marked."""
    kind = {True: "oc-ood", False: "oc-id", None: "oc-open"}[decision.is_ood]
    known = np.empty(0) if calibration is None else calibration.ood_scores.cpu().double().numpy()
    marks = [decision.ood_score, *([] if threshold is None else [threshold])]
    low, high = min([*known, *marks]), max([*known, *marks])
    pad = 0.04 * (high - low) or 0.5
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return 20 + 480 * (value - low) / (high - low)

    counts, edges = np.histogram(known, bins=NUM_BINS, range=(low, high))
    tallest = max(counts.max(initial=0), 1)
    bins = "".join(
        f'<rect class="oc-bin" x="{x(left):.1f}" y="{190 - 140 * count / tallest:.1f}" '
        f'width="{480 / NUM_BINS - 1:.1f}" height="{140 * count / tallest:.1f}"/>'
        for left, count in zip(edges, counts, strict=False)
        if count
    )
    limit = ""
    if threshold is not None:
        at = x(threshold)
        limit = (
            f'<line class="oc-limit" x1="{at:.1f}" x2="{at:.1f}" y1="30" y2="190"/>'
            f'<text x="{_inside(at, 60):.1f}" y="24" text-anchor="middle">threshold {threshold:.4g}</text>'
        )
    at = x(decision.ood_score)
    mark = (
        f'<line class="oc-mark" x1="{at:.1f}" x2="{at:.1f}" y1="52" y2="190"/>'
        f'<path class="oc-mark" d="M{at - 6:.1f} 198 L{at + 6:.1f} 198 L{at:.1f} 190 Z"/>'
        f'<text class="oc-marked" x="{_inside(at, 40):.1f}" y="46" text-anchor="middle">this image</text>'
    )
    count = len(known)
    caption = f"{count} calibration images (ID) by {decision.score}" if count else f"Not calibrated: {decision.score}"
    return (
        f'<svg class="oc-plot {kind}" viewBox="0 0 520 236" role="img" aria-label="{escape(caption)}">{bins}'
        f'<line x1="20" x2="500" y1="190" y2="190" stroke="#888"/>{limit}{mark}'
        '<text x="20" y="214">like the labels</text>'
        '<text x="500" y="214" text-anchor="end">out of distribution</text>'
        f'<text x="260" y="232" text-anchor="middle">{escape(caption)}</text></svg>'
    )


def table_row(number: int, result: ImageResult, decision: Decision) -> list[Any]:
    """Return a row of the table of several images."""
    label, probability = result.labels[0]
    return [
        number,
        result.path.name,
        VERDICTS[decision.is_ood],
        None if decision.p_value is None else round(decision.p_value, 4),
        float(f"{decision.ood_score:.5g}"),
        label,
        round(probability, 4),
        result.nearest_negative or "",
    ]


def record(result: ImageResult, decision: Decision) -> dict[str, Any]:
    """Return what the CSV says about an image, in the columns of `oodclip predict`."""
    label, probability = result.labels[0]
    return {
        "image": result.path.name,
        "label": label,
        "score": probability,
        "ood_score": decision.ood_score,
        "p_value": decision.p_value,
        "is_ood": decision.is_ood,
        "nearest_negative": result.nearest_negative,
        "labels": [{"label": name, "score": value} for name, value in result.labels],
    }


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "below 0.001"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else f"{value:.1%}"


def _inside(at: float, margin: float) -> float:
    return min(max(at, margin), 520 - margin)


def _data_uri(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    small.convert("RGB").save(content, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
