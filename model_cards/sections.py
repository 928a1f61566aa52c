"""The sections of a card, in words, each from evidence that is there."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hf_oodclip.adapters import ADAPTERS

from .bases import Base
from .escaping import fence, last_name, percent, table, text
from .evidence import ModelEvidence

__all__ = [
    "adapter_title",
    "base_text",
    "before_after_table",
    "calibration_text",
    "facts",
    "labels_text",
    "negatives_text",
    "training_table",
    "usage",
]

_SHOWN_LABELS = 100


def adapter_title(model: ModelEvidence) -> str:
    """Return what kind of adapter it is."""
    kind = str((model.adapter or {}).get("peft_type"))
    return next((info.title for info in ADAPTERS.values() if info.peft_type.value == kind), kind)


def base_text(base: Base) -> str:
    """Return the base as Markdown: a link where it is on the Hub."""
    if base.is_pocket:
        return "the pocket CLIP that ships with `hf_oodclip` (for demonstrations and tests)"
    if base.hub_id is None:
        return f"{text(base.name)} (a local folder)"
    revision = f", revision {text(base.revision)}" if base.revision else ""
    return f"[{text(base.name)}](https://huggingface.co/{base.hub_id}){revision}"


def facts(model: ModelEvidence) -> str:
    """Return the table at the head of a card."""
    rows = []
    if model.adapter is None:
        rows.append(["What it is", "a whole CLIP image classifier with OOD detection"])
    else:
        count = model.metrics.get("num_parameters")
        told = "" if count is None else f", {count:,} parameters"
        rows.append(["What it is", f"a PEFT adapter: {text(adapter_title(model))}{told}"])
    if model.base is not None:
        same = "; its weights are unchanged" if model.base.is_unchanged else ""
        rows.append(["Base", base_text(model.base) + same])
        if model.base.licence is not None:
            rows.append(["Licence of the base", f"{text(model.base.licence)}, as its own card says"])
    if model.labels:
        rows.append(["Labels", f"{len(model.labels):,}"])
        rows.append(["Negatives", "none" if model.negatives is None else f"{len(model.negatives):,}"])
        info = model.score.info
        rows.append(["OOD score", f"{text(model.score.key)} ([{text(info.paper)}]({info.url}); larger = more OOD)"])
        rows.append(["Decides", "yes, calibrated" if model.calibration else "no: it scores and is not calibrated"])
    return table(["", ""], rows, 2)


def labels_text(model: ModelEvidence) -> str:
    """Return the labels and how they are prompted."""
    shown = ", ".join(text(label) for label in model.labels[:_SHOWN_LABELS])
    more = len(model.labels) - _SHOWN_LABELS
    templates = ", ".join(f"“{text(template)}”" for template in model.templates)
    return f"{shown}{f', and {more:,} more' if more > 0 else ''}.\n\nPrompted by {templates}."


def negatives_text(model: ModelEvidence) -> str:
    """Return where the negatives come from."""
    negatives = model.negatives
    if negatives is None:
        return ""
    origin = negatives.provenance
    words = f"{len(negatives):,} words that are none of the labels"
    if origin.get("words"):
        paper = f" ({text(origin['paper'])})" if origin.get("paper") else ""
        words += f", mined from {text(origin['words'])} by the method {text(origin.get('method'))}{paper}"
    elif origin.get("method"):
        words += f"; origin: {text(origin['method'])}"
    examples = ", ".join(text(word) for word in negatives.texts[:8])
    name = "negatives.json" if model.adapter is None else "ood_head_negatives.json"
    return f"{words}. The first are {examples}. All of them, with how they were found, are in `{name}`."


def training_table(model: ModelEvidence) -> str:
    """Return data and recipe of the training run."""
    recipe, metrics = model.recipe, model.metrics
    if not recipe:
        return ""

    def told(name: str) -> str:
        value = recipe.get(name)
        if isinstance(value, Mapping):
            return ", ".join(f"{text(key)} {text(each)}" for key, each in value.items())
        return text(last_name(value)) if isinstance(value, str) else text(value)

    source = [told("dataset")]
    source += [f"{what} {told(name)}" for name, what in _DATA.items() if recipe.get(name) is not None]
    skipped = len(metrics.get("skipped_images") or {})
    images = f"{metrics['num_images']:,} images of {metrics['num_labels']:,} labels"
    losses = [f"{text(name)} × {text(options.get('weight', 1))}" for name, options in recipe["losses"].items()]
    rows = [
        ["Recipe", f"{told('name')}: {told('description')}" if recipe.get("description") else told("name")],
        ["Images", f"{images}{f'; {skipped} could not be read' if skipped else ''}"],
        ["Data", ", ".join(source)],
        ["Shown as", told("inputs")],
        ["Losses", ", ".join(losses)],
        ["Adapter", told("adapter")],
        ["Optimiser", f"{told('optimizer')}, learning rate {told('learning_rate')}, schedule {told('schedule')}"],
        ["Length", f"{told('epochs')} epochs, {metrics['num_steps']:,} steps of {told('batch_size')} images"],
        ["Mixed precision", told("mixed_precision")],
        ["Seed", told("seed")],
    ]
    return table(["", ""], rows, 2)


_DATA = {"dataset_config": "configuration", "dataset_revision": "revision", "split": "split", "shots": "shots a label"}


def before_after_table(model: ModelEvidence) -> str:
    """Return what the training run measured before and after."""
    before, after = model.metrics.get("zero_shot") or {}, model.metrics.get("trained") or {}
    names = {"id_accuracy": "ID accuracy", "auroc": "AUROC, mean", "fpr95": "FPR95 (ID positive), mean"}
    rows = [
        [title, percent(before[name]), percent(after[name])]
        for name, title in names.items()
        if before.get(name) is not None and after.get(name) is not None
    ]
    if not rows:
        return ""
    listed = [*(model.metrics["trained"].get("detection") or {}).values()]
    against = ", ".join(text(last_name(name)) for name in dict.fromkeys(name for each in listed for name in each))
    note = f"\n\nOOD images: {against}." if against else ""
    return table(["on held-out images, in %", "before", "after"], rows) + note


def calibration_text(model: ModelEvidence) -> str:
    """Return the operating point and what it rests on."""
    record = model.calibration
    if record is None:
        return ""
    low, high = record["tpr_interval"]
    lines = [
        f"An image is called OOD when its {text(record['score'])} score is above **{record['threshold']:.6g}**.",
        f"The threshold was set on {record['num_images']:,} ID images by the {text(record['rule'])} rule, to accept "
        f"{percent(record['target_tpr'])} % of ID images. With {percent(record['confidence'])} % confidence it "
        f"accepts between {percent(low)} % and {percent(high)} % of new ID images.",
    ]
    source = model.recipe.get("calibration_dataset")
    if source is not None and model.metrics.get("calibration") == record:
        where = "images of the training data that were not trained on" if source == "rest" else last_name(source)
        lines.append(f"Calibrated on: {text(where)}.")
    return " ".join(lines)


def usage(model: ModelEvidence, repo_id: str | None) -> str:
    """Return the lines that use the model."""
    where = repo_id or f"path/to/{model.folder.resolve().name}"
    given = "" if model.labels else ', labels=["first label", "second label"]'
    base = model.base
    lines = ["import hf_oodclip", "from transformers import pipeline", ""]
    if model.adapter is None:
        lines.append(f'classifier = pipeline("ood-image-classification", model={_quoted(where)}{given})')
    else:
        # The stock pipeline reads the base before our code could say where the pocket CLIP is, and asks the base for
        # the adapter's revision.
        known = base is None or base.is_pocket or base.hub_id is not None
        named = "" if known else f", base={_quoted(f'path/to/{base.name}')}"
        lines += [
            f"model = hf_oodclip.OODCLIPForImageClassification.from_pretrained({_quoted(where)}{named}{given})",
            'classifier = pipeline("ood-image-classification", model=model)',
        ]
    lines.append('print(classifier("photo.jpg"))')
    return fence("\n".join(lines), "python")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
