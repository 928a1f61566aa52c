"""The `oodclip` command: one file a subcommand; what is heavy is imported when a command runs."""

from __future__ import annotations

import os
import sys

import typer

from .. import __version__
from .app import open_app
from .calibrate import calibrate
from .card import card
from .demo import demo
from .export import export
from .info import info
from .mine import mine
from .predict import predict
from .push import push
from .push_space import push_space

__all__ = ["app", "main"]

app = typer.Typer(
    name="oodclip",
    help="CLIP image classification that knows what it does not know.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in (predict, calibrate, mine, info, card, export, demo, push, push_space):
    app.command()(command)
app.command("app")(open_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_oodclip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line; errors of this package are one message and exit code 1, Ctrl-C is 130."""
    # The bars of transformers tell of loading shards; ours tell of images.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ..errors import OODCLIPError

    try:
        app()
    except OODCLIPError as error:
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.secho("Interrupted.", fg=typer.colors.RED, err=True)
        sys.exit(130)
