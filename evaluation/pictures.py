"""Pictures of a run, drawn without a display and without global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .curves import draw_detection_curves, draw_reliability, draw_selective_risk
from .drawing import DARK, ID_COLOUR, OOD_COLOUR, SHIFTED_COLOUR, Picture, panels, plain, save
from .sample_table import SampleTable, detection_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_pictures", "threshold_of"]


def threshold_of(results: Mapping[str, Any], samples: SampleTable, score: str) -> tuple[float, str]:
    """Return the largest accepted `ood_score` and where it comes from: the calibration, else the ID test images."""
    for each in results["calibration"]:
        if each["score"] == score:
            return float(each["threshold"]), f"calibrated to accept {each['target_tpr']:.0%} of ID images"
    ordered = np.sort(samples.id_scores(score))
    return float(ordered[-(-len(ordered) * 19 // 20) - 1]), "accepts 95 % of these ID images; not calibrated"


def draw_pictures(folder: Path, results: Mapping[str, Any], samples: SampleTable) -> list[Picture]:
    """Draw every picture the run has the data for into a folder.

    Args:
        folder: An existing folder.
        results: What `results.json` holds.
        samples: The images of the run.

    Returns:
        The pictures, in the order in which to show them.
    """
    pictures = [_heat_map(folder, results)] if results["detection"] else []
    id_set = samples.id_set
    if id_set is None or not samples.scores:
        return pictures
    if samples.ood_sets:
        pictures += draw_detection_curves(folder, samples)
    if samples.calibrated:
        pictures += draw_reliability(folder, samples, id_set)
    pictures += draw_selective_risk(folder, samples, id_set)
    if samples.sets("near", "far", "shifted"):
        histograms = [
            _histograms(folder / f"histogram_{number:02d}.png", results, samples, score)
            for number, score in enumerate(samples.scores)
        ]
        pictures += sorted(histograms, key=lambda picture: not picture.prominent)
    return pictures


def _histograms(path: Path, results: Mapping[str, Any], samples: SampleTable, score: str) -> Picture:
    threshold, origin = threshold_of(results, samples, score)
    others = samples.sets("near", "far", "shifted")
    known = samples.id_scores(score)
    values = {name: samples.of(name, f"score:{score}") for name in others}
    # A few extreme images would squeeze all others into one bar: the outermost bars hold them.
    low, high = np.quantile(np.concatenate([known, *values.values(), [threshold]]), [0.001, 0.999])
    edges = np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)
    figure, axes = panels(len(others), 2.6)
    for axis, name in zip(axes, others, strict=True):
        shifted = samples.roles[name] == "shifted"
        rejected = (values[name] > threshold).mean()
        told = f"{samples.roles[name]} ({rejected:.0%} {'rejected' if shifted else 'caught'})"
        for scores, colour, label in (
            (known, ID_COLOUR, f"ID ({(known > threshold).mean():.0%} rejected)"),
            (values[name], SHIFTED_COLOUR if shifted else OOD_COLOUR, told),
        ):
            shares = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0] / len(scores)
            axis.stairs(shares, edges, fill=True, color=colour, alpha=0.55, label=label)
        axis.axvline(threshold, color=DARK, linestyle="--", linewidth=1.2)
        axis.set_title(plain(name, 40), fontsize=10)
        axis.set_xlabel("ood_score (larger = more OOD)")
        axis.set_ylabel("share of images")
        # Scores such as -0.0525 would run into each other.
        axis.locator_params(axis="x", nbins=5)
        axis.legend(fontsize=8)
    figure.suptitle(f"{plain(score, 40)}; dashed: threshold, {origin}", fontsize=10)
    save(figure, path)
    text = f"Histograms of {score}: ID images against each other set. The threshold is {origin}."
    return Picture(path, f"Scores of {score}", text, score == samples.main_score)


def _heat_map(folder: Path, results: Mapping[str, Any]) -> Picture:
    scores = list(dict.fromkeys(each["score"] for each in results["detection"]))
    columns = detection_columns(results)
    names = [name for name, _ in columns]
    found = {(each["score"], each["set"]): each for each in results["detection"]}
    measured = {each["name"] for each in results["sets"]}
    figure, axes = panels(2, 1.6 + 0.27 * len(scores), columns=1)
    for axis, (metric, title, worst, best) in zip(
        axes,
        (
            ("auroc", "AUROC in % (larger is better)", 0.5, 1.0),
            ("fpr95_id_pos", "FPR95 in % (smaller is better)", 1.0, 0.0),
        ),
        strict=True,
    ):
        values = [[found.get((score, name), {}).get(metric) for name in names] for score in scores]
        _colour_cells(axis, values, worst, best)
        axis.axvline(sum(name in measured for name in names) - 0.5, color="white", linewidth=4)
        axis.set_title(title, fontsize=10)
        axis.set_yticks(range(len(scores)), [plain(score) for score in scores], fontsize=8.5)
        axis.set_xticks(
            range(len(names)), [plain(heading, 26) for _, heading in columns], fontsize=8.5, rotation=30, ha="right",
            rotation_mode="anchor",
        )  # fmt: skip
    text = "AUROC and FPR95 (ID positive) of every score on every OOD set and the means."
    return Picture(save(figure, folder / "heat_map.png"), "Every score on every set", text)


def _colour_cells(axis: Axes, values: Sequence[Sequence[float | None]], worst: float, best: float) -> None:
    quality = [[np.nan if each is None else (each - worst) / (best - worst) for each in row] for row in values]
    axis.imshow(np.clip(quality, 0, 1), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            dark = value is None or (value - worst) / (best - worst) > 0.55
            text = "–" if value is None else f"{100 * value:.1f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=DARK if dark else "white")
