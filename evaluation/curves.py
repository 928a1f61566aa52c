"""Pictures of curves: ROC, precision and recall, p-values, selective risk; one line a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .drawing import Picture, legend, line, panels, plain, save
from .sample_table import SampleTable

__all__ = ["draw_detection_curves", "draw_reliability", "draw_selective_risk"]

_POINTS = 1500


@dataclass(frozen=True)
class _Curve:
    """Operating points from the strictest threshold that accepts anything on, as counts."""

    accepted_id: np.ndarray
    accepted_ood: np.ndarray


_Points = Callable[[_Curve], tuple[np.ndarray, np.ndarray]]


def draw_detection_curves(folder: Path, samples: SampleTable) -> list[Picture]:
    """Draw ROC curves, their upper part, and both precision-recall curves, one panel an OOD set."""
    curves = {name: {score: _curve(samples, name, score) for score in samples.scores} for name in samples.ood_sets}
    accepted = "OOD images accepted", "ID images accepted"
    found = [(f"share of {side} images found", f"share of the found that are {side}") for side in ("ID", "OOD")]
    zoomed, finding = "ROC curves where 80 % and more of ID is accepted", "Precision and recall of finding"
    return [
        _curves(folder / "roc.png", curves, "ROC curves", _roc, accepted),
        _curves(folder / "fpr_zoom.png", curves, zoomed, _roc, accepted),
        _curves(folder / "pr_in.png", curves, f"{finding} ID images", _precision_in, found[0]),
        _curves(folder / "pr_out.png", curves, f"{finding} OOD images", _precision_out, found[1]),
    ]


def _curve(samples: SampleTable, name: str, score: str) -> _Curve:
    sides = [np.sort(values) for values in (samples.id_scores(score), samples.of(name, f"score:{score}"))]
    thresholds = np.unique(np.concatenate(sides))
    known, unknown = (np.searchsorted(side, thresholds, side="right") for side in sides)
    if len(thresholds) > _POINTS:
        # Points at even distances along the curve draw it as well as all of them.
        steps = np.diff(known, prepend=0) / len(sides[0]) + np.diff(unknown, prepend=0) / len(sides[1])
        way = steps.cumsum()
        kept = np.unique(np.searchsorted(way, np.linspace(way[0], way[-1], _POINTS)).clip(max=len(way) - 1))
        known, unknown = known[kept], unknown[kept]
    return _Curve(known, unknown)


def _curves(
    path: Path, curves: Mapping[str, Mapping[str, _Curve]], title: str, points: _Points, labels: tuple[str, str]
) -> Picture:
    figure, axes = panels(len(curves), 3.6)
    for axis, (name, by_score) in zip(axes, curves.items(), strict=True):
        lowest = 1.0
        for position, (score, curve) in enumerate(by_score.items()):
            across, up = points(curve)
            lowest = min(lowest, up.min())
            axis.plot(across, up, **line(position), label=plain(score))
        if points is _roc:
            axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
            axis.axhline(0.95, color="0.5", linestyle=":", linewidth=0.8)
        else:
            # The last point takes every image: its precision is that of guessing.
            axis.axhline(up[-1], color="0.7", linewidth=0.8)
        # Precision of many ID images and few OOD ones stays near 1: empty room below would squeeze the lines.
        axis.set(xlim=(0, 1), ylim=(max(0, lowest - 0.05), 1.01), xlabel=labels[0], ylabel=labels[1])
        if path.stem == "fpr_zoom":
            axis.set(ylim=(0.8, 1.002))
        axis.set_title(plain(name, 40), fontsize=10)
        axis.grid(color="0.9")
    legend(figure, axes[0])
    return Picture(save(figure, path), title, f"{title}: one panel an OOD set, one line a score.", path.stem == "roc")


def _roc(curve: _Curve) -> tuple[np.ndarray, np.ndarray]:
    known, unknown = (np.insert(counts / counts[-1], 0, 0.0) for counts in (curve.accepted_id, curve.accepted_ood))
    return unknown, known


def _precision_in(curve: _Curve) -> tuple[np.ndarray, np.ndarray]:
    known, unknown = curve.accepted_id, curve.accepted_ood
    return known / known[-1], known / (known + unknown)


def _precision_out(curve: _Curve) -> tuple[np.ndarray, np.ndarray]:
    rest = [counts[-1] - np.insert(counts[:-1], 0, 0) for counts in (curve.accepted_id, curve.accepted_ood)]
    known, unknown = (counts[::-1] for counts in rest)
    return unknown / unknown[-1], unknown / (known + unknown)


def draw_reliability(folder: Path, samples: SampleTable, id_set: str) -> list[Picture]:
    """Draw how many ID and how many OOD images have a p-value up to each level."""
    groups = {"ID images": [id_set], "OOD images": samples.ood_sets}
    groups = {title: sets for title, sets in groups.items() if sets}
    figure, axes = panels(len(groups), 3.8)
    levels = np.linspace(0, 1, 201)
    for axis, (title, sets) in zip(axes, groups.items(), strict=True):
        for position, score in enumerate(samples.calibrated):
            values = np.sort(np.concatenate([samples.of(name, f"p_value:{score}") for name in sets]))
            # Levels and p-values are rounded differently.
            rejected = np.searchsorted(values, levels + 1e-6, side="right") / len(values)
            axis.plot(levels, rejected, **line(position), label=plain(score))
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
        axis.set_title(f"{title} with a p-value of at most a", fontsize=10)
        axis.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="a", ylabel="share of images")
        axis.grid(color="0.9")
    # Dvoretzky, Kiefer and Wolfowitz: the whole curve of this many images stays in the band 95 times in 100.
    band = np.sqrt(np.log(2 / 0.05) / (2 * samples.count(id_set)))
    axes[0].fill_between(levels, np.clip(levels - band, 0, 1), np.clip(levels + band, 0, 1), color="0.88", zorder=0)
    legend(figure, axes[0])
    text = (
        "Of ID images a share a should have a p-value of at most a: a line along the diagonal, up to chance (the grey "
        "band), is reliable. Of OOD images the line should be high."
    )
    return [Picture(save(figure, folder / "reliability.png"), "Reliability of the calibrated p-values", text)]


def draw_selective_risk(folder: Path, samples: SampleTable, id_set: str) -> list[Picture]:
    """Draw the error rate among the accepted images against how many are accepted, without and with OOD images."""
    labels = samples.of(id_set, "label")
    labelled = bool((labels >= 0).all())
    wrong = (labels != samples.of(id_set, "prediction")) & labelled
    groups = {"ID images: wrong label": [id_set]} if labelled else {}
    if samples.ood_sets:
        told = "ID and OOD images: wrong label or OOD" if labelled else "ID and OOD images: OOD"
        groups[told] = [id_set, *samples.ood_sets]
    if not groups:
        return []
    figure, axes = panels(len(groups), 3.8)
    for axis, (title, sets) in zip(axes, groups.items(), strict=True):
        errors = np.concatenate([wrong, *(np.ones(samples.count(name), bool) for name in sets[1:])])
        highest = 0.0
        for position, score in enumerate(samples.scores):
            values = np.concatenate([samples.of(name, f"score:{score}") for name in sets])
            coverage, risk = _risk(values, errors)
            axis.plot(coverage, risk, **line(position), label=plain(score))
            highest = max(highest, risk[coverage >= 0.05].max())
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(0, 1), xlabel="share of images accepted", ylabel="share of the accepted that are wrong")
        # The first few images, where one error is a large share, would squeeze all that follows.
        axis.set_ylim(0, 1.1 * highest if highest else 1)
        axis.grid(color="0.9")
    legend(figure, axes[0])
    text = (
        "Images are accepted from the lowest ood_score up; a useful score keeps errors out as long as it can. "
        "With OOD images the curve depends on how many there are."
    )
    return [Picture(save(figure, folder / "selective_risk.png"), "Selective risk", text)]


def _risk(values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and error rate wherever the accepted images change, tied images taken together."""
    order = np.argsort(values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) > 0, True))
    if len(last) > _POINTS:
        last = last[np.unique(np.linspace(0, len(last) - 1, _POINTS).astype(int))]
    return (last + 1) / len(values), errors[order].cumsum()[last] / (last + 1)
