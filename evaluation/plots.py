"""Pictures of scores and decisions, drawn without a display and without global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["contact_sheet", "roc_curves", "score_histograms"]

ID_COLOUR, OOD_COLOUR, THRESHOLD_COLOUR = "#1f77b4", "#d62728", "#222222"


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def score_histograms(
    path: Path, id_scores: np.ndarray, ood_scores: Mapping[str, np.ndarray], threshold: float, title: str
) -> None:
    """Draw ID against each OOD set, with the calibrated threshold, into a PNG.

    Args:
        path: File to write.
        id_scores: `ood_score` of ID images.
        ood_scores: `ood_score` of each OOD set.
        threshold: Above it an image is called OOD.
        title: Headline.
    """
    figure, axes = _grid(len(ood_scores), 2, 5.2, 3.2)
    everything = np.concatenate([id_scores, *ood_scores.values()])
    edges = np.linspace(everything.min(), everything.max(), 41).tolist()
    for axis, (name, values) in zip(axes, ood_scores.items(), strict=True):
        for scores, colour, label in (
            (id_scores, ID_COLOUR, "ID"),
            (values, OOD_COLOUR, f"OOD ({(values > threshold).mean():.0%} caught)"),
        ):
            weights = np.full(len(scores), 1 / len(scores))
            axis.hist(scores, bins=edges, weights=weights, color=colour, alpha=0.6, label=label)
        axis.axvline(threshold, color=THRESHOLD_COLOUR, linestyle="--", linewidth=1.2, label="threshold")
        axis.set_title(name)
        axis.set_xlabel("ood_score (larger = more OOD)")
        axis.set_ylabel("share of images")
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def roc_curves(
    path: Path, id_scores: Mapping[str, np.ndarray], ood_scores: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Draw one panel an OOD set with the ROC curve of every score, ID positive, into a PNG.

    Args:
        path: File to write.
        id_scores: `ood_score` of the ID images by score.
        ood_scores: `ood_score` by OOD set, then by score.
    """
    figure, axes = _grid(len(ood_scores), 2, 5.2, 4.6)
    for axis, (set_name, by_score) in zip(axes, ood_scores.items(), strict=True):
        for position, (score_name, values) in enumerate(by_score.items()):
            accepted_ood, accepted_id = _roc(id_scores[score_name], values)
            # Scores that rank alike lie on each other: the dashes let the one below show.
            style = ("-", "--", ":", "-.")[position % 4]
            axis.plot(accepted_ood, accepted_id, linewidth=1.5, linestyle=style, label=score_name)
        axis.axhline(0.95, color=THRESHOLD_COLOUR, linestyle=":", linewidth=1)
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        axis.set_title(set_name)
        axis.set_xlabel("OOD images accepted")
        axis.set_ylabel("ID images accepted")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.01)
    axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=130)


def _roc(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    thresholds = np.unique(np.concatenate([id_scores, ood_scores]))
    accepted = [np.searchsorted(np.sort(s), thresholds, side="right") / len(s) for s in (ood_scores, id_scores)]
    return np.concatenate([[0.0], accepted[0]]), np.concatenate([[0.0], accepted[1]])


def contact_sheet(path: Path, photos: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw photos with the model's label, p-value and verdict, framed by the verdict, into a PNG.

    Args:
        path: File to write.
        photos: One mapping a photo: `image` (PIL), `truth`, `is_id`, `label`, `p_value`, `is_ood`.
        title: Headline.
    """
    figure, axes = _grid(len(photos), 6, 1.75, 2.55)
    for axis, photo in zip(axes, photos, strict=True):
        axis.imshow(photo["image"])
        axis.set_xticks([])
        axis.set_yticks([])
        colour = OOD_COLOUR if photo["is_ood"] else ID_COLOUR
        for spine in axis.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(4)
        right = photo["is_ood"] != photo["is_id"]
        axis.set_title(f"{'ID' if photo['is_id'] else 'OOD'}: {photo['truth']}", fontsize=8)
        verdict = "OOD" if photo["is_ood"] else photo["label"]
        axis.set_xlabel(
            f"{verdict}\np = {photo['p_value']:.3f} {'' if right else '(wrong verdict)'}", fontsize=8, color=colour
        )
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
