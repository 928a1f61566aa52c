"""`oodclip export`: one ONNX file from pixels to a decision, for onnxruntime alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options


def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint or an adapter, or 'pocket'.")],
    output: Annotated[Path, typer.Argument(help="File to write, such as model.onnx.")],
    adapter: Annotated[
        str | None, typer.Option("--adapter", "-a", help="Folder or Hub id of an adapter to put on the model.")
    ] = None,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    templates: options.TemplatesOption = None,
    negatives: options.NegativesOption = None,
    score: options.ScoreName = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights in the vision transformer.")] = False,
    calibrate: Annotated[
        list[str] | None,
        typer.Option("--calibrate", help="ID images (files, folders, patterns) to calibrate the file itself with."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a model as one ONNX file, compared with torch on real images.

    Example: `oodclip export my-model model.onnx --int8 --calibrate id_photos/`
    """
    from .. import OODCLIPForImageClassification, export_onnx
    from ..export import read_onnx_metadata
    from ..images import find_images

    images = None if calibrate is None else find_images(calibrate)
    names = options.read_labels(labels, labels_file)
    loaded = OODCLIPForImageClassification.from_pretrained(
        options.resolve_model(model), labels=names, templates=templates, negatives=negatives
    )
    if adapter is not None:
        loaded.load_adapter(adapter)
    path = export_onnx(loaded, output, score=score, int8=int8, calibration_images=images, overwrite=overwrite)
    about = read_onnx_metadata(path)
    size = path.stat().st_size
    if as_json:
        typer.echo(json.dumps({**about, "file": str(path), "bytes": size}, ensure_ascii=False))
        return
    check = about["check"]
    typer.echo(
        f"Wrote {path}: {size / 1e6:.1f} MB, {about['precision']}, {len(about['labels'])} labels, "
        f"{about['num_negatives']:,} negatives, score {about['score']}.\n"
        + (
            "Not calibrated: it scores images but decides nothing."
            if about["threshold"] is None
            else f"OOD above {about['threshold']:.6g} (target {about['target_tpr']:.0%})."
        )
        + f"\nDiffers from torch on {check['images']} images by at most "
        f"{check['largest_difference']['logits']:.1g} in logits and {check['largest_difference']['ood_score']:.1g} in "
        "scores."
    )
