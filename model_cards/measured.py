"""What an evaluation run says about the very model a card is written for, at that model's own threshold."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from hf_oodclip.evaluation.sample_table import SampleTable, read_run
from PIL import Image

from hf_oodclip.errors import CardError

from .bases import public_name
from .evidence import ModelEvidence

__all__ = ["PICTURES", "Measured", "draw", "read_evaluation", "shrink", "slug"]

PICTURES = "card_pictures"
_COLOURS = 64


@dataclass(frozen=True)
class Measured:
    """One evaluation, less what is of other scores than the model's own.

    Args:
        results: What `results.json` holds, with the calibration of the model in place of the run's.
        samples: The images, with the model's score only; None where the run did not measure it.
        accepted: Share of each set that the model's threshold accepts, empty without calibration.
    """

    results: dict[str, Any]
    samples: SampleTable | None
    accepted: dict[str, float]

    @property
    def detection(self) -> list[dict[str, Any]]:
        """Detection figures of the model's score, one a set, without means."""
        return [row for row in self.results["detection"] if "num_ood" in row]

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The OOD sets from the hardest on."""
        return sorted(self.detection, key=lambda row: row["auroc"])


def read_evaluation(folder: Path, model: ModelEvidence) -> Measured:
    """Return what an evaluation found out about a model.

    Raises:
        CardError: It measured another model, other classes, or does not say what it measured.
        RunError: The folder holds no finished run.
    """
    results, table = read_run(folder)
    _check_same(folder, results, model)
    key = None if model.score is None else model.score.key
    results = dict(results)
    results["detection"] = [row for row in results["detection"] if row["score"] == key]
    results["calibration"] = [] if model.calibration is None else [model.calibration]
    if f"score:{key}" not in table.column_names:
        return Measured(results, None, {})
    kept = [name for name in table.column_names if not name.startswith(("score:", "p_value:"))]
    own: pa.Table = table.select([*kept, f"score:{key}"])
    samples = SampleTable(own, results.get("id_filter", "all"), results.get("full_spectrum", False))
    accepted = {}
    if model.calibration is not None:
        threshold = model.calibration["threshold"]
        shown = samples.sets("id", "shifted", "near", "far")
        accepted = {name: float((samples.of(name, f"score:{key}") <= threshold).mean()) for name in shown}
    return Measured(results, samples, accepted)


def _check_same(folder: Path, results: dict[str, Any], model: ModelEvidence) -> None:
    found = results.get("fingerprint")
    if not isinstance(found, dict):
        raise CardError(
            f"The evaluation in {folder} does not say which weights it measured (an earlier version wrote it): "
            "run it again."
        )
    own = model.fingerprint
    wrong = ""
    if own["classes"] is not None and own["classes"] != found.get("classes"):
        wrong = "other labels, templates or negatives"
        if list(results["labels"]) != model.labels:
            extra = sorted(set(results["labels"]) ^ set(model.labels))
            wrong = f"other labels ({', '.join(map(repr, extra[:3])) or 'another order'})"
    elif own["adapter"] != found.get("adapter"):
        wrong = "no adapter" if found.get("adapter") is None else "another adapter"
    elif model.adapter is None and own["model"] != found.get("model"):
        wrong = f"other weights (those of {public_name(str(results['model']))})"
    elif model.base is not None and model.adapter is not None:
        base = public_name(str(results["model"]))
        wrong = "" if base == model.base.name else f"the adapter on another base ({base})"
    if wrong:
        option = "--adapter" if model.adapter is not None else "--model"
        raise CardError(
            f"The evaluation in {folder} is not of the model in {model.folder}, it measured {wrong}: evaluate this "
            f"model (evaluation/evaluate.py {option} {model.folder} ...), or leave that evaluation out."
        )


def slug(name: str) -> str:
    """Return a name as part of a file name or an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "evaluation"


def draw(folder: Path, measured: Sequence[Measured]) -> list[dict[str, str]]:
    """Draw histogram and ROC curves of each evaluation into the pictures folder of a card.

    Args:
        folder: Folder of the card; what an earlier card left under `card_pictures` goes.
        measured: The evaluations.

    Returns:
        Paths from the card by `histogram` and `roc`, for each evaluation.

    Raises:
        CardError: matplotlib is missing.
    """
    pictures = folder / PICTURES
    for old in pictures.glob("*.png"):
        old.unlink()
    if not any(each.samples is not None and each.samples.ood_sets for each in measured):
        return [{} for _ in measured]
    try:
        from hf_oodclip.evaluation.pictures import draw_pictures
    except ImportError as error:
        raise CardError("The pictures of a card need matplotlib: pip install 'hf_oodclip[eval]'.") from error
    pictures.mkdir(exist_ok=True)
    found: list[dict[str, str]] = []
    for number, each in enumerate(measured):
        drawn: dict[str, str] = {}
        found.append(drawn)
        if each.samples is None or not each.samples.ood_sets:
            continue
        stem = f"{number + 1:02d}_{slug(each.results['benchmark'])}"
        with tempfile.TemporaryDirectory() as scratch:
            draw_pictures(Path(scratch), {**each.results, "detection": []}, each.samples)
            for kind, name in (("histogram", "histogram_00.png"), ("roc", "roc.png")):
                path = pictures / f"{stem}_{kind}.png"
                shrink(Path(scratch) / name, path)
                drawn[kind] = path.relative_to(folder).as_posix()
    return found


def shrink(source: Path, target: Path) -> None:
    """Write a picture again with few colours."""
    # A card is looked at in a browser: a palette is a third of the bytes and looks the same.
    with Image.open(source) as image:
        image.convert("RGB").quantize(_COLOURS).save(target, optimize=True)
