"""`oodclip push`: put a trained adapter or a saved model on the Hub, with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import HubError
from . import options


def push(
    folder: Annotated[Path, typer.Argument(help="Training run, adapter folder, or saved model.")],
    repo: Annotated[str, typer.Argument(help="Repo on the Hub, owner/name; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to push to; default: main.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Adapters: Hub id of the base, if it was trained on a local folder.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Training run the card tells of; default: FOLDER.")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option("--evaluation", help="Evaluation run the card tells of; repeat it for more.")
    ] = None,
    card: Annotated[bool, typer.Option("--card/--no-card", help="Write a card where FOLDER has none.")] = True,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    as_json: options.Json = False,
) -> None:
    """Check that a folder loads, write its card if it has none, and push it in one commit.

    Example: `oodclip push krnft-adapter me/krnft-pocket --evaluation runs/krnft`
    """
    if not folder.is_dir():
        raise HubError(f"{folder} is no folder: give a training run, an adapter folder, or a saved model.")
    from .. import OODCLIPForImageClassification
    from ..hub import has_written_card, push_folder

    loaded = OODCLIPForImageClassification.from_pretrained(folder)
    asked = run is not None or bool(evaluation)
    if card and (asked or not has_written_card(folder)):
        from hf_oodclip.model_cards.card import write_card

        write_card(folder, run=run, evaluation=evaluation or (), repo_id=repo)
    address = push_folder(folder, repo, private=private or None, revision=revision, commit_message=message, base=base)
    if as_json:
        typer.echo(json.dumps({"repo": repo, "commit": address, "labels": len(loaded.labels)}))
        return
    typer.echo(
        f"Pushed {folder} to {repo}: {address}\n"
        f"Use it with: OODCLIPForImageClassification.from_pretrained({repo!r})"
        + (f", or oodclip predict IMAGES --model {repo}" if loaded.labels else "")
    )
