"""Train an adapter for OOD detection by a recipe.

    accelerate launch training/train.py --recipe krnft --base openai/clip-vit-base-patch16 \
        --dataset path/or/hub-id --shots 4 --output-dir runs/krnft

or, from an installed package, `accelerate launch -m hf_oodclip.training.train ...`. Every field of the recipe can be
changed: `--learning-rate 1e-4`, `--adapter.hidden_size 32`, `--losses.knowledge_regularization.weight 10`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from hf_oodclip.training.recipe import Recipe, list_recipes, load_recipe
from hf_oodclip.training.recipe_values import read_value

# Imported as the package does it, since a launcher starts this file by its path.
from hf_oodclip.errors import OODCLIPError, RecipeError

__all__ = ["main"]


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the program's own options, and the fields of the recipe to change.

    Raises:
        RecipeError: An option has no value.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipe", required=True, help=f"a YAML file, or one of: {', '.join(list_recipes())}")
    parser.add_argument("--output-dir", required=True, type=Path, help="folder for adapter, metrics and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="throw away an earlier run in the output folder")
    parser.add_argument("--store", type=Path, help="folder of the feature store (default: in the cache folder)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar and no summary")
    fields = parser.add_argument_group("fields of the recipe (the default is the recipe's)")
    for each in dataclasses.fields(Recipe):
        if each.name not in ("name", "description"):
            names = [f"--{each.name}"] + ([f"--{each.name.replace('_', '-')}"] if "_" in each.name else [])
            help_text = each.metadata["help"].replace("%", "%%")
            fields.add_argument(
                *names, dest=f"field.{each.name}", default=argparse.SUPPRESS, help=help_text, metavar=""
            )
    options, rest = parser.parse_known_args(arguments)
    overrides = {
        name.removeprefix("field."): read_value(value)
        for name, value in vars(options).items()
        if name.startswith("field.")
    }
    while rest:
        name, _, value = rest.pop(0).partition("=")
        if not name.startswith("--") or "." not in name:
            # An unknown field: the recipe names the nearest.
            overrides[name.lstrip("-")] = None
            break
        if not value:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"{name} needs a value.")
            value = rest.pop(0)
        overrides[name.removeprefix("--")] = read_value(value)
    return options, overrides


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return its exit code."""
    try:
        options, overrides = parse_arguments(arguments)
        recipe = load_recipe(options.recipe, overrides)
        return _run(options, recipe)
    except (OODCLIPError, OSError) as error:
        # OSError: a base that is not there, a full disk, a folder that cannot be written.
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace, recipe: Recipe) -> int:
    import datasets
    from hf_oodclip.training.run import make_accelerator, run_recipe
    from rich.console import Console

    from hf_oodclip.feature_store import FeatureStore

    # "Generating train split" and the like.
    datasets.disable_progress_bars()
    console = Console(quiet=options.quiet)
    accelerator = make_accelerator(
        recipe, log_with=_tracker(recipe.tracker, console), project_dir=str(options.output_dir)
    )
    if accelerator.log_with:
        flat = {
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in recipe.to_dict().items()
        }
        accelerator.init_trackers("logs", config=flat)
    result = run_recipe(
        recipe,
        options.output_dir,
        accelerator=accelerator,
        resume=options.resume,
        overwrite=options.overwrite,
        store=None if options.store is None else FeatureStore(options.store),
        say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        progress=not options.quiet,
    )
    accelerator.end_training()
    if accelerator.is_main_process:
        _summarise(console, result.metrics, options.output_dir)
    return 0


def _tracker(name: str | None, console: Any) -> str | None:
    import importlib.util

    if name == "tensorboard" and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        line = "No TensorBoard here (pip install 'hf_oodclip[train]'): metrics.json has the history."
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        return None
    return name


def _summarise(console: Any, metrics: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    table = Table(title="held-out images, %", title_justify="left")
    for column in ("", "zero-shot", "trained"):
        table.add_column(column, justify="left" if not column else "right")
    for name, title in (("id_accuracy", "ID accuracy"), ("auroc", "mean AUROC"), ("fpr95", "mean FPR95")):
        if name in metrics["trained"]:
            table.add_row(title, *(f"{100 * metrics[when][name]:.1f}" for when in ("zero_shot", "trained")))
    if table.row_count:
        console.print(table)
    console.print(
        f"Trained in {metrics['training_seconds']} s ({metrics['seconds']} s in all). Use it:\n"
        "  import hf_oodclip, transformers\n"
        f'  classifier = transformers.pipeline("ood-image-classification", model="{folder}")',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
