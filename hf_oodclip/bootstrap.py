"""Resampled detection metrics: image by image, or of many images by groups of neighbouring scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .detection_curves import Floats, Integers, count_curves, evaluate_curves, score_curves

__all__ = ["resample_metrics"]

# Up to this many images each one is drawn by itself.
MAX_DRAWN = 2**13
# Groups end at so many images of either side, evenly over all of it, and again around the one where its TPR reaches
# 95 %, as far as so many standard errors of that place.
COARSE, FINE, REACH = 512, 256, 6.0
# Counts held at once: bounds the memory and fits the cache.
CHUNK = 2**15


def resample_metrics(
    sides: Sequence[Integers],
    num_distinct: int,
    points: Mapping[str, Floats],
    convention: str | None,
    num_resamples: int,
    seed: int,
) -> dict[str, Floats]:
    """Return the metrics of resamples, ID and OOD images drawn independently with replacement, `[R]` by name.

    Of more than `MAX_DRAWN` images neighbouring scores form groups, some 1,500 in all, and what is drawn is how often
    each group comes up, a multinomial: exactly the law that drawing image by image has, at a cost that does not depend
    on how many images there are. What the metrics cannot see is the order within a group. It is the same in all
    resamples but for a small part, so each metric is shifted by what grouping changes in the images as they are.

    Args:
        sides: Place of each ID and of each OOD score among the distinct scores, as `rank_scores` returns them.
        num_distinct: How many distinct scores there are.
        points: The metrics of the images as they are, `[1]` each.
        convention: As in `detection_metrics`.
        num_resamples: R.
        seed: Fixes the resamples.
    """
    # One generator per side, so that neither side's draws depend on how many images the other has.
    sources = np.random.default_rng(seed).spawn(2)
    shifts = dict.fromkeys(points, 0.0)
    total = sum(side.size for side in sides)
    if total > MAX_DRAWN:
        counts = _grouped(sides, num_distinct)
        grouped = evaluate_curves(count_curves(*(each[None] for each in counts)), convention)
        shifts = {key: float(points[key][0] - grouped[key][0]) for key in points}
    step = max(1, CHUNK // (total if total <= MAX_DRAWN else counts[0].size))
    chunks = []
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        if total > MAX_DRAWN:
            known, unknown = (_draw(each, source, rows) for each, source in zip(counts, sources, strict=True))
            curves = count_curves(known, unknown)
        else:
            pairs = zip(sides, sources, strict=True)
            drawn = [side[0, source.integers(side.size, size=(rows, side.size))] for side, source in pairs]
            curves = score_curves(drawn, num_distinct)
        chunks.append(evaluate_curves(curves, convention))
    return {key: np.clip(np.concatenate([each[key] for each in chunks]) + shifts[key], 0, 1) for key in points}


def _draw(counts: Integers, source: np.random.Generator, rows: int) -> Integers:
    drawn = np.zeros((rows, counts.size), dtype=np.int64)
    # Rounding must never give an image to a group that has none.
    filled = counts.nonzero()[0]
    drawn[:, filled] = source.multinomial(counts.sum(), counts[filled] / counts.sum(), size=rows)
    return drawn


def _grouped(sides: Sequence[Integers], num_distinct: int) -> list[Integers]:
    """Return the number of ID and of OOD images in each group of neighbouring scores, `[groups]`."""
    known, unknown = (np.bincount(side[0], minlength=num_distinct) for side in sides)
    # ID images are taken from the lowest score up and OOD images from the highest down.
    ends = [_ends(known) + 1, num_distinct - 1 - _ends(unknown[::-1])]
    starts = np.unique(np.concatenate([[0], *ends]))
    starts = starts[starts < num_distinct]
    return [np.add.reduceat(counts, starts) for counts in (known, unknown)]


def _ends(counts: Integers) -> Integers:
    """Return the places, among distinct scores from the strictest on, of the images that end a group."""
    total = int(counts.sum())
    reach = REACH * math.sqrt(total * 0.95 * 0.05)
    places = np.concatenate(
        [np.linspace(0, total - 1, COARSE), math.ceil(0.95 * total) - 1 + np.linspace(-reach, reach, FINE + 1)]
    )
    images = np.unique(np.clip(np.rint(places), 0, total - 1))
    return np.searchsorted(counts.cumsum(), images, side="right")
