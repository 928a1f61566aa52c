"""`oodclip card`: the model card of a training run, an adapter or a saved model, from what runs left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a training run, an adapter, or a saved model.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Output folder of an evaluation of this very model; can be repeated.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Folder of the training run, when the adapter lies elsewhere.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Where it will be on the Hub: owner/name.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the CLIP a saved model was made of; weights are compared.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a card that was written by hand.")] = False,
) -> None:
    """Write README.md and its pictures into the folder of a model, with evidence only.

    Example: `oodclip card krnft-adapter --evaluation runs/pocket --repo-id me/krnft-adapter`
    """
    from ..model_cards.card import write_card

    path = write_card(run, run=training, evaluation=evaluation or (), repo_id=repo_id, base=base, overwrite=overwrite)
    typer.echo(f"Wrote {path}.")
