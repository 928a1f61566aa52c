"""`oodclip push-space`: the demo as a Space on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .app import Adapters, ModelOrBase


def push_space(
    repo: Annotated[str, typer.Argument(help="Name of the Space, such as me/my-demo.")],
    model: ModelOrBase = None,
    adapter: Adapters = None,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    negatives: options.NegativesOption = None,
    score: options.ScoreName = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the Space into this folder, and upload nothing.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the Space private.")] = False,
    requirement: Annotated[
        str | None, typer.Option("--requirement", help="Line of requirements.txt that installs hf_oodclip.")
    ] = None,
) -> None:
    """Push the demo with these settings as a Space; local models and adapters go with it.

    Example: `oodclip push-space me/my-demo --adapter my-adapter`
    """
    from ..app import space

    settings: dict[str, Any] = {
        "model": model,
        "adapters": adapter or (),
        "labels": options.read_labels(labels, labels_file),
        "negatives": negatives,
        "score": score,
        "requirement": requirement,
    }
    if output is not None:
        typer.echo(f"Wrote {space.write_space(output, **settings)}; try it with: python app.py (in that folder)")
        return
    typer.echo(f"Pushed to {space.push_space(repo, private=private, **settings)}")
