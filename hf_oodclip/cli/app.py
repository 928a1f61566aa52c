"""`oodclip app`: the demo in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options

__all__ = ["Adapters", "ModelOrBase", "open_app"]

ModelOrBase = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Folder or Hub id; default: the base of the adapter, or the pocket CLIP."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", help="Folder or Hub id of an adapter for the model; repeat for several."),
]


def open_app(
    model: ModelOrBase = None,
    adapter: Adapters = None,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    negatives: Annotated[
        str | None,
        typer.Option("--negatives", "-n", help="'neglabel', 'krnft', a file of `oodclip mine`, or 'none'."),
    ] = None,
    score: options.ScoreName = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for the network.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option("--port", help="Port; default: the first free one from 7860.")] = None,
    share: Annotated[bool, typer.Option("--share/--no-share", help="A public link, through Gradio's server.")] = False,
    device: options.Device = None,
) -> None:
    """Open the demo in a browser: images and labels in; verdict, p-value and heat map out. Works offline.

    Example: `oodclip app --labels "goldfish,school bus"`
    """
    from ..app import launch

    names = options.read_labels(labels, labels_file)
    launch(model, adapter or (), names, negatives, score, host=host, port=port, share=share, device=device)
