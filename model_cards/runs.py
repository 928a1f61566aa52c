"""What a card says of the runs themselves: commands, versions, time, limits, and what they left no evidence of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .escaping import command_of, one_line, table, text
from .evidence import ModelEvidence
from .figures import missing_sets
from .measured import Measured

__all__ = ["commands", "limits", "missing", "time", "versions"]

_FEW_IMAGES = 100


def _environments(model: ModelEvidence, measured: Sequence[Measured]) -> list[tuple[str, dict[str, Any]]]:
    found = [("training", model.metrics)] if model.metrics else []
    found += [(f"evaluation: {each.results['title']}", each.results) for each in measured]
    return [(what, results.get("environment") or {}) for what, results in found]


def commands(model: ModelEvidence, measured: Sequence[Measured]) -> list[str]:
    """Return the commands that ran, a comment and a line each."""
    processes = [model.metrics.get("num_processes", 1)] if model.metrics else []
    processes += [(each.results.get("environment") or {}).get("num_processes", 1) for each in measured]
    lines = []
    for (what, environment), count in zip(_environments(model, measured), processes, strict=True):
        command = command_of(environment, count)
        if command is not None:
            lines += [f"# {one_line(what)}", command]
    return lines


def versions(model: ModelEvidence, measured: Sequence[Measured]) -> str:
    """Return a table of the versions each run had."""
    found = [(what, each) for what, each in _environments(model, measured) if each.get("versions")]
    if not found:
        return ""
    names = list(dict.fromkeys(name for _, each in found for name in each["versions"]))
    rows = [[name, *(text(each["versions"].get(name, "–")) for _, each in found)] for name in names]
    rows.append(["image backend", *(text(each.get("image_backend") or "–") for _, each in found)])
    machines = [each.get("machine") or {} for _, each in found]
    rows.append(["processor", *(text(each.get("processor", "–")) for each in machines)])
    rows.append(["threads", *(text(each.get("threads", "–")) for each in machines)])
    return table(["", *(text(what) for what, _ in found)], rows, 1 + len(found))


def time(model: ModelEvidence, measured: Sequence[Measured]) -> str:
    """Return how long each run took."""
    told = []
    if "seconds" in model.metrics:
        steps = model.metrics.get("training_seconds")
        inner = "" if steps is None else f" ({steps:,.0f} s of it in training steps)"
        told.append(f"Training run: {model.metrics['seconds']:,.0f} s{inner}.")
    for each in measured:
        total = (each.results.get("seconds") or {}).get("total")
        if total is not None:
            told.append(f"Evaluation {text(each.results['title'])}: {total:,.0f} s.")
    return " ".join(told)


def limits(model: ModelEvidence, measured: Sequence[Measured]) -> str:
    """Return what the evidence does not carry."""
    lines = [
        "It can be wrong both ways. Do not rest safety on it alone.",
        "Figures hold for the sets named here; other images may be told apart better or worse.",
    ]
    if not any(each.detection for each in measured):
        lines[1] = "How well it tells images apart has not been measured here."
    record = model.calibration
    if record is None and model.labels:
        lines.append("It is not calibrated: `is_ood` and `p_value` are None until `oodclip calibrate` has run.")
    if record is not None:
        lines.append(
            "The threshold promises something about ID images like those it was calibrated on, and nothing about OOD "
            "images: on other photos of the same labels it may reject more."
        )
        if record["num_images"] < _FEW_IMAGES:
            lines.append(f"Only {record['num_images']} images set the threshold, so it is rough.")
    if model.base is not None and model.base.is_pocket:
        lines.append(
            "The pocket CLIP is a small model for demonstrations and tests, trained on Tiny-ImageNet images (for "
            "non-commercial research); its figures say nothing about a CLIP of usual size."
        )
    return "\n".join(f"- {line}" for line in lines)


def missing(model: ModelEvidence, measured: Sequence[Measured], has_licence: bool) -> list[str]:
    """Return what no run left evidence of."""
    found = [] if has_licence else ["licence of this model: nobody has stated one in the header of this card"]
    base = model.base
    if base is None:
        found.append("base: the folder does not name the CLIP it was made of, nor its licence")
    elif base.licence is None:
        found.append(f"licence of the base {text(base.name)}: it has no card here, or one without licence")
    if not model.labels:
        found.append("labels, negatives and score: they are not saved with it")
    is_untrained = base is not None and bool(base.is_unchanged)
    if not model.metrics and not is_untrained:
        found.append("training data and recipe: no training run was given")
    if model.labels and model.calibration is None:
        found.append("operating point: it is not calibrated")
    elif model.calibration is not None and model.metrics.get("calibration") != model.calibration:
        found.append("calibration images: which ones they were is not recorded")
    if not measured:
        found.append("accuracy and OOD detection: no evaluation run was given")
    for each in measured:
        title = text(each.results["title"])
        found += missing_sets(each)
        if not each.results["accuracy"]:
            found.append(f"accuracy on {title}: its images have no labels")
        if not each.detection:
            found.append(f"OOD detection on {title}: the score of this model was not measured there")
        elif not any("auroc_low" in row for row in each.detection):
            found.append(f"intervals on {title}: the run made none")
    environments = _environments(model, measured)
    found += [f"command of {text(what)}" for what, each in environments if command_of(each) is None]
    return [*found, "energy and CO2: nothing measured them"]
