"""`oodclip calibrate`: learn from ID images when to call an image OOD, and save the model that knows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options


def calibrate(
    images: options.Images,
    save: Annotated[Path, typer.Option("--save", help="Folder for the calibrated checkpoint.")],
    model: options.Model = "pocket",
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    templates: options.TemplatesOption = None,
    negatives: options.NegativesOption = None,
    score: options.ScoreName = None,
    target_tpr: Annotated[float, typer.Option("--target-tpr", help="Share of ID images to accept.")] = 0.95,
    rule: Annotated[str, typer.Option("--rule", help="Threshold rule: conformal, empirical or linear.")] = "conformal",
    batch_size: options.BatchSize = 32,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Set the decision threshold from images of the labels, and save everything as one checkpoint.

    Example: `oodclip calibrate id_photos/ --labels "goldfish,school bus" --negatives neglabel --save my-model`
    """
    from ..images import find_images

    paths = find_images(images)
    names = options.read_labels(labels, labels_file)
    classifier = options.load_pipeline(model, names, templates, negatives, score, device)
    calibration = classifier.model.calibrate(paths, target_tpr, rule=rule, batch_size=batch_size)
    classifier.model.save_pretrained(save)
    if as_json:
        typer.echo(json.dumps({**calibration.to_dict(), "saved": str(save)}))
        return
    low, high = calibration.tpr_interval
    typer.echo(
        f"Calibrated {calibration.score} on {calibration.num_images} ID images: "
        f"OOD above {calibration.threshold:.6g}.\n"
        f"New ID images are accepted in {low:.1%} to {high:.1%} of cases ({calibration.confidence:.0%} confidence; "
        f"target {calibration.target_tpr:.0%}).\n"
        f"Saved to {save}; use it with: oodclip predict IMAGES --model {save}"
    )
