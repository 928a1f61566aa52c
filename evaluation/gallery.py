"""The most confident mistakes of a run: found in its samples, shown as photos with what the model saw in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from hf_oodclip.errors import OODCLIPError

from .drawing import DARK, Picture, panels, plain, save
from .pictures import threshold_of
from .sample_table import SampleTable

__all__ = ["Mistake", "MistakeList", "draw_galleries", "find_mistakes"]

_TILE = 256


@dataclass(frozen=True)
class Mistake:
    """One image the model was wrong about; `truth` is None for images without a label of ours."""

    set: str
    row: int
    file: str | None
    truth: str | None
    prediction: str
    confidence: float
    ood_score: float
    nearest_negative: str | None


@dataclass(frozen=True)
class MistakeList:
    """The worst mistakes of one kind, worst first, and how many there are in all."""

    key: str
    title: str
    text: str
    mistakes: Sequence[Mistake]
    total: int


def find_mistakes(results: Mapping[str, Any], samples: SampleTable, limit: int = 8) -> list[MistakeList]:
    """Return OOD images taken for ID, ID images taken for OOD, and wrong labels, each from the most confident on.

    Args:
        results: What `results.json` holds.
        samples: The images of the run.
        limit: How many of a kind.

    Returns:
        A kind is left out where the run has no images for it.
    """
    id_set, score = samples.id_set, samples.main_score
    if id_set is None or score is None:
        return []
    threshold, origin = threshold_of(results, samples, score)
    told = f"by {score} at a threshold of {threshold:.4g} ({origin})"
    ood_sets = samples.ood_sets

    def values(sets: Sequence[str], column: str) -> np.ndarray:
        return np.concatenate([samples.of(name, column) for name in sets])

    def worst(
        key: str, title: str, text: str, sets: Sequence[str], wrong: np.ndarray, rank: np.ndarray
    ) -> MistakeList:
        places = np.flatnonzero(wrong)
        places = places[np.argsort(rank[places], kind="stable")][:limit]
        starts = np.cumsum([0, *(samples.count(name) for name in sets)])
        found = []
        for place in places:
            number = int(np.searchsorted(starts, place, side="right")) - 1
            found.append(_mistake(results["labels"], samples, sets[number], int(place - starts[number]), score))
        return MistakeList(key, title, text, found, int(wrong.sum()))

    lists = []
    if ood_sets:
        scores = values(ood_sets, f"score:{score}")
        text = f"OOD images accepted {told}, those that look most in-distribution first."
        lists.append(worst("accepted_ood", "OOD taken for ID", text, ood_sets, scores <= threshold, scores))
    scores = values([id_set], f"score:{score}")
    text = f"ID images rejected {told}, those that look most OOD first."
    lists.append(worst("rejected_id", "ID taken for OOD", text, [id_set], scores > threshold, -scores))
    labels = values([id_set], "label")
    if (labels >= 0).any():
        wrong = (labels >= 0) & (labels != values([id_set], "prediction"))
        text = "ID images with a wrong first label, the most confident first; accepted or not."
        lists.append(worst("wrong_label", "Wrong label", text, [id_set], wrong, -values([id_set], "confidence")))
    return lists


def _mistake(labels: Sequence[str], samples: SampleTable, name: str, place: int, score: str) -> Mistake:
    label = int(samples.of(name, "label")[place])
    return Mistake(
        set=name,
        row=int(samples.of(name, "row")[place]),
        file=samples.texts(name, "file", [place])[0],
        truth=labels[label] if label >= 0 else None,
        prediction=labels[int(samples.of(name, "prediction")[place])],
        confidence=float(samples.of(name, "confidence")[place]),
        ood_score=float(samples.of(name, f"score:{score}")[place]),
        nearest_negative=samples.texts(name, "nearest_negative", [place])[0],
    )


def draw_galleries(
    folder: Path, lists: Sequence[MistakeList], read_image: Callable[[str, int], Image.Image]
) -> dict[str, Picture]:
    """Draw one gallery for each kind of mistake that happened.

    Args:
        folder: An existing folder.
        lists: What `find_mistakes` found.
        read_image: Returns the image of a set and row.

    Returns:
        The pictures by the key of their list.
    """
    pictures = {}
    for each in lists:
        if not each.mistakes:
            continue
        figure, axes = panels(len(each.mistakes), 2.75, columns=4)
        for axis, mistake in zip(axes, each.mistakes, strict=True):
            _draw_tile(axis, mistake, read_image)
        with warnings.catch_warnings():
            # A letter the font lacks is drawn as a box; the page lists all names in text as well.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            path = save(figure, folder / f"gallery_{each.key}.png")
        told = "Above a photo: its label, or its set; below: nearest label and its softmax share, nearest negative."
        pictures[each.key] = Picture(path, each.title, f"{each.text} {told}")
    return pictures


def _draw_tile(axis: Axes, mistake: Mistake, read_image: Callable[[str, int], Image.Image]) -> None:
    try:
        image = read_image(mistake.set, mistake.row).convert("RGB")
        image.thumbnail((_TILE, _TILE))
        axis.imshow(np.asarray(image))
    except (OSError, ValueError, OODCLIPError):
        # One damaged file must not cost the whole report.
        axis.text(0.5, 0.5, "image cannot\nbe read", ha="center", va="center", fontsize=9, color=DARK)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="0.92")
    axis.set_xticks([])
    axis.set_yticks([])
    truth = mistake.set if mistake.truth is None else mistake.truth
    lines = [f"{plain(mistake.prediction, 20)} {mistake.confidence:.0%}"]
    if mistake.nearest_negative is not None:
        lines.append(f"negative: {plain(mistake.nearest_negative, 16)}")
    lines.append(f"ood_score {mistake.ood_score:.3g}")
    axis.set_title(plain(truth, 24), fontsize=9)
    axis.set_xlabel("\n".join(lines), fontsize=8.5)
