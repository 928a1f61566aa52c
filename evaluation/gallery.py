"""Photos of a run with what the model made of them: verdicts drawn at random, and the most confident mistakes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_oodclip.errors import OODCLIPError

from .drawing import DARK, ID_COLOUR, OOD_COLOUR, Picture, panels, plain, save
from .pictures import threshold_of
from .sample_table import SampleTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MistakeList", "Sample", "draw_galleries", "draw_verdicts", "find_mistakes"]

_ReadImage = Callable[[str, int], Image.Image]
_TILE = 256
# Photos of each side, ID and other, among the verdicts.
_DRAWN = 12
_SEED = 0


@dataclass(frozen=True)
class Sample:
    """One image and what the model made of it; `truth` is None for images without a label of ours."""

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
    mistakes: Sequence[Sample]
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
            found.append(_sample(results["labels"], samples, sets[number], int(place - starts[number]), score))
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


def _sample(labels: Sequence[str], samples: SampleTable, name: str, place: int, score: str) -> Sample:
    label = int(samples.of(name, "label")[place])
    return Sample(
        set=name,
        row=int(samples.of(name, "row")[place]),
        file=samples.texts(name, "file", [place])[0],
        truth=labels[label] if label >= 0 else None,
        prediction=labels[int(samples.of(name, "prediction")[place])],
        confidence=float(samples.of(name, "confidence")[place]),
        ood_score=float(samples.of(name, f"score:{score}")[place]),
        nearest_negative=samples.texts(name, "nearest_negative", [place])[0],
    )


def draw_verdicts(
    folder: Path, results: Mapping[str, Any], samples: SampleTable, read_image: _ReadImage
) -> list[Picture]:
    """Draw ID images and others, taken at random, each framed by the calibrated verdict on it.

    Args:
        folder: An existing folder.
        results: What `results.json` holds.
        samples: The images of the run.
        read_image: Returns the image of a set and row.

    Returns:
        One picture; none where the run has no calibration or no ID images.
    """
    id_set, score = samples.id_set, samples.main_score
    if id_set is None or score is None or score not in samples.calibrated:
        return []
    threshold, origin = threshold_of(results, samples, score)
    generator = np.random.default_rng(_SEED)
    others = samples.sets("near", "far", "shifted")
    others = [others[place] for place in _draw(generator, len(others), _DRAWN)]
    places = [(id_set, place) for place in _draw(generator, samples.count(id_set), _DRAWN)]
    for name in others:
        drawn = _draw(generator, samples.count(name), _DRAWN // len(others))
        places += [(name, place) for place in drawn]
    figure, axes = panels(len(places), 2.1, columns=6)
    for axis, (name, place) in zip(axes, places, strict=True):
        sample = _sample(results["labels"], samples, name, place, score)
        is_known, is_ood = samples.roles[name] in ("id", "shifted"), sample.ood_score > threshold
        _show(axis, sample, read_image)
        for spine in axis.spines.values():
            spine.set(color=OOD_COLOUR if is_ood else ID_COLOUR, linewidth=4)
        axis.set_title(f"{'ID' if is_known else 'OOD'}: {plain(sample.truth or name, 18)}", fontsize=8)
        lines = ["OOD" if is_ood else plain(sample.prediction, 20)]
        lines.append(f"p = {samples.of(name, f'p_value:{score}')[place]:.3f}")
        wrong_label = sample.truth is not None and sample.truth != sample.prediction
        lines.append("wrong verdict" if is_ood == is_known else "wrong label" if wrong_label and not is_ood else "")
        axis.set_xlabel("\n".join(lines), fontsize=8)
    text = (
        f"Drawn at random, not chosen. Above each photo: what it is; below: the verdict by {score} ({origin}) and the "
        "p-value. Blue frame: accepted as ID; red frame: called OOD."
    )
    return [Picture(_save(figure, folder / "verdicts.png"), "Verdicts on random images", text)]


def _draw(generator: np.random.Generator, total: int, count: int) -> list[int]:
    found: list[int] = np.sort(generator.choice(total, min(total, count), replace=False)).tolist()
    return found


def draw_galleries(folder: Path, lists: Sequence[MistakeList], read_image: _ReadImage) -> dict[str, Picture]:
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
        path = _save(figure, folder / f"gallery_{each.key}.png")
        told = "Above a photo: its label, or its set; below: nearest label and its softmax share, nearest negative."
        pictures[each.key] = Picture(path, each.title, f"{each.text} {told}")
    return pictures


def _save(figure: Figure, path: Path) -> Path:
    with warnings.catch_warnings():
        # A letter the font lacks is drawn as a box; the page lists the names of mistakes in text as well.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        return save(figure, path)


def _show(axis: Axes, sample: Sample, read_image: _ReadImage) -> None:
    try:
        image = read_image(sample.set, sample.row).convert("RGB")
        image.thumbnail((_TILE, _TILE))
        axis.imshow(np.asarray(image))
    except (OSError, ValueError, OODCLIPError):
        # One damaged file must not cost the whole report.
        axis.text(0.5, 0.5, "image cannot\nbe read", ha="center", va="center", fontsize=9, color=DARK)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", facecolor="0.92")
    axis.set_xticks([])
    axis.set_yticks([])


def _draw_tile(axis: Axes, mistake: Sample, read_image: _ReadImage) -> None:
    _show(axis, mistake, read_image)
    lines = [f"{plain(mistake.prediction, 20)} {mistake.confidence:.0%}"]
    if mistake.nearest_negative is not None:
        lines.append(f"negative: {plain(mistake.nearest_negative, 16)}")
    lines.append(f"ood_score {mistake.ood_score:.3g}")
    axis.set_title(plain(mistake.truth or mistake.set, 24), fontsize=9)
    axis.set_xlabel("\n".join(lines), fontsize=8.5)
