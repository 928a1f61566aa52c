"""Options that several commands share, and the loading they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LabelError

__all__ = [
    "BatchSize",
    "Device",
    "Images",
    "Json",
    "Labels",
    "LabelsFile",
    "Model",
    "NegativesOption",
    "ScoreName",
    "TemplatesOption",
    "load_pipeline",
    "read_labels",
    "resolve_model",
]

Images = Annotated[list[str], typer.Argument(help="Image files, folders (searched recursively), or patterns.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder or Hub id of a CLIP or OODCLIP checkpoint, or 'pocket'.")
]
Labels = Annotated[
    str | None, typer.Option("--labels", "-l", help="Class names, separated by commas. A full checkpoint has its own.")
]
LabelsFile = Annotated[Path | None, typer.Option("--labels-file", help="Text file with one class name a line.")]
TemplatesOption = Annotated[
    str | None, typer.Option("--templates", help="Prompt template name (photo, nice, tip7, ...) or one with {}.")
]
NegativesOption = Annotated[
    str | None,
    typer.Option(
        "--negatives", "-n", help="'neglabel', 'krnft' or 'csp' (mined from WordNet), or a file of `oodclip mine`."
    ),
]
ScoreName = Annotated[
    str | None, typer.Option("--score", "-s", help="OOD score; default neglabel with negatives, else mcm.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a forward pass.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps, ...; default: the best there is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


def resolve_model(model: str) -> str:
    """Return the checkpoint that a `--model` value means."""
    from ..assets import pocket_path

    return pocket_path() if model == "pocket" else model


def read_labels(labels: str | None, labels_file: Path | None) -> list[str] | None:
    """Return the labels given on the command line, or None when there are none.

    Raises:
        LabelError: Both options at once, or a file that cannot be read.
    """
    if labels is not None and labels_file is not None:
        raise LabelError("Give --labels or --labels-file, not both.")
    if labels is not None:
        return [label.strip() for label in labels.split(",")]
    if labels_file is None:
        return None
    try:
        lines = labels_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"The labels file {labels_file} cannot be read: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def load_pipeline(
    model: str,
    labels: list[str] | None,
    templates: str | None,
    negatives: str | None,
    score: str | None,
    device: str | None,
) -> Any:
    """Return the pipeline a command works with."""
    import torch

    from .. import OODCLIPForImageClassification, OODImageClassificationPipeline

    source = resolve_model(model)
    loaded = OODCLIPForImageClassification.from_pretrained(
        source, labels=labels, templates=templates, negatives=negatives, score=score
    )
    if loaded.config.num_labels == 0:
        raise LabelError(f"{model} has no labels of its own: give --labels cat,dog or --labels-file names.txt.")
    return OODImageClassificationPipeline(
        model=loaded,
        image_processor=loaded.image_processor,
        device=None if device is None else torch.device(device),
    )
