"""A whole run: from a recipe to an adapter folder that restores everything, with metrics and learning curve."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hf_oodclip.evaluation.environment import describe_environment
from torch import Tensor
from transformers.utils import logging

from hf_oodclip import Calibration, OODCLIPForImageClassification, mine_negatives, pocket_path
from hf_oodclip.errors import CheckpointError, RecipeError
from hf_oodclip.feature_store import FeatureStore
from hf_oodclip.mining import MINING_METHODS

from .curves import draw_learning_curve
from .inputs import HeldOut, choose_shots, features_of, make_inputs
from .monitor import measure, score_inputs_of
from .recipe import Recipe
from .step import TrainingStep
from .trainer import Trainer, add_adapter

__all__ = ["RunResult", "load_model", "make_accelerator", "run_recipe"]

logger = logging.get_logger("hf_oodclip.training")

METRICS_FILE, RECIPE_FILE, CURVE_FILE, CHECKPOINTS = "metrics.json", "recipe.yaml", "learning_curve.png", "checkpoints"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: the trained model and what `metrics.json` holds."""

    model: Any
    metrics: dict[str, Any]


def make_accelerator(recipe: Recipe, **options: Any) -> Any:
    """Return the `Accelerator` of a recipe.

    Raises:
        RecipeError: This machine cannot do its mixed precision, or there is no such tracker.
    """
    from accelerate import Accelerator

    try:
        return Accelerator(mixed_precision=recipe.mixed_precision, **options)
    except ValueError as error:
        raise RecipeError(
            f"Accelerate refuses mixed_precision {recipe.mixed_precision!r} or tracker {recipe.tracker!r}: {error}"
        ) from error


def load_model(recipe: Recipe, labels: list[str], device: Any = None) -> Any:
    """Return the base model with labels, negatives and score of a recipe, without its adapter.

    Raises:
        RecipeError: `num_negatives` without a mining method.
    """
    base = pocket_path() if recipe.base == "pocket" else recipe.base
    with _no_progress_bars():
        model = OODCLIPForImageClassification.from_pretrained(base)
    if device is not None and torch.device(device).type != model.device.type:
        # Not from cpu to cpu:0, as several processes have it: a copy may lie otherwise in memory, and round otherwise.
        model = model.to(device)
    negatives: Any = recipe.negatives
    if recipe.num_negatives is not None and negatives is not None:
        if negatives not in MINING_METHODS:
            raise RecipeError(
                f"num_negatives says how many to mine, and negatives is {negatives!r}: give one of "
                f"{', '.join(MINING_METHODS)}, or leave num_negatives out."
            )
        negatives = mine_negatives(
            labels,
            model.text_encoder(),
            method=negatives,
            num_negatives=recipe.num_negatives,
            templates=recipe.templates,
        )
    average: Any = recipe.template_average
    model.set_labels(labels, recipe.templates, [] if negatives is None else negatives, average=average)
    if recipe.score is not None:
        model.set_score(recipe.score)
    return model


def run_recipe(
    recipe: Recipe,
    output: str | Path | None = None,
    *,
    accelerator: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    store: FeatureStore | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> RunResult:
    """Train an adapter by a recipe and write a folder from which `from_pretrained` restores all of it.

    Args:
        recipe: The recipe.
        output: Folder to write; None writes nothing (no checkpoints either).
        accelerator: Accelerate's; one is made when None.
        resume: Go on from the latest checkpoint in the folder.
        overwrite: Throw away what an earlier run left there.
        store: Feature store; the one in the cache folder when None.
        say: Called with a line a stage, on the main process.
        progress: Show bars.

    Raises:
        CheckpointError: The folder holds an earlier run and neither resume nor overwrite is asked for.
        OODCLIPError: What is wrong with recipe, data, adapter or losses.

    Example:
        >>> from hf_oodclip.training.recipe import load_recipe
        >>> recipe = load_recipe("ssf", {"split": "calibration", "shots": 1, "num_crops": 1, "epochs": 1})
        >>> run_recipe(recipe).metrics["num_parameters"]
        1024
    """
    accelerator = accelerator or make_accelerator(recipe)
    progress = progress and accelerator.is_main_process
    tell = say if say is not None and accelerator.is_main_process else lambda line: None
    folder = None if output is None else Path(output)
    if folder is not None:
        _prepare(folder, resume, overwrite, accelerator)
    store = store or FeatureStore()
    started = time.monotonic()

    shots = choose_shots(recipe)
    tell(f"{len(shots.shots)} images of {len(shots.labels)} classes from {shots.shots.source}.")
    # All that can be wrong, before hours go into features.
    held_out = HeldOut.of(recipe, shots)
    with accelerator.main_process_first():
        # One process mines and embeds the negatives; the others find them in the cache.
        model = load_model(recipe, shots.labels, accelerator.device)
    TrainingStep(model, recipe)
    negatives = model.config.num_negatives
    tell(f"Base {recipe.base}, {negatives:,} negatives. Features of the images ({recipe.inputs}) ...")
    inputs = make_inputs(recipe, model, shots.shots, store, accelerator, progress)
    if inputs.skipped:
        tell(f"{len(inputs.skipped)} images cannot be read and are left out: {inputs.skipped}.")

    def evaluate(with_bars: bool = False) -> dict[str, Any]:
        features = {
            name: features_of(images, recipe, model, store, accelerator, with_bars)
            for name, images in held_out.sets.items()
        }
        return measure(model, features, recipe.eval_scores)

    before = evaluate(progress)
    add_adapter(model, recipe)
    checkpoints = None if folder is None else folder / CHECKPOINTS
    trainer = Trainer(model, recipe, inputs, accelerator, checkpoints, evaluate)
    count = sum(each.numel() for each in trainer.parameters.values())
    tell(f"{count:,} parameters, {trainer.plan.num_steps} steps of {recipe.batch_size} images.")
    with _logger(accelerator, progress, trainer.plan.num_steps) as trainer.log:
        trainer.train(resume)
    if trainer.best or not trainer.evaluations:
        after = evaluate()
    else:
        after = {name: value for name, value in trainer.evaluations[-1].items() if name not in ("step", "epoch")}
    calibration = None
    if held_out.calibration is not None:
        embeds, _ = features_of(held_out.calibration, recipe, model, store, accelerator)
        calibration = _calibrate(model, embeds, recipe.target_tpr)
    metrics = {
        "recipe": recipe.name,
        "num_images": len(inputs),
        "skipped_images": {str(row): reason for row, reason in inputs.skipped.items()},
        "num_labels": len(shots.labels),
        "num_negatives": negatives,
        "num_parameters": count,
        "num_steps": trainer.plan.num_steps,
        "num_processes": accelerator.num_processes,
        "training_seconds": round(trainer.seconds, 2),
        "seconds": round(time.monotonic() - started, 1),
        "zero_shot": before,
        "trained": after,
        "calibration": None if calibration is None else calibration.to_dict(),
        "history": trainer.history,
        "evaluations": trainer.evaluations,
        "environment": describe_environment(recipe.seed, model.image_processor),
    }
    if folder is not None and accelerator.is_main_process:
        _write(folder, model, recipe, metrics, trainer)
    accelerator.wait_for_everyone()
    return RunResult(model, metrics)


def _prepare(folder: Path, resume: bool, overwrite: bool, accelerator: Any) -> None:
    if resume and overwrite:
        raise RecipeError("resume goes on with a run and overwrite throws it away: give one of them.")
    used = [name for name in (METRICS_FILE, CHECKPOINTS, *_ADAPTER_FILES) if (folder / name).exists()]
    if used and not resume and not overwrite:
        raise CheckpointError(
            f"{folder} holds an earlier run ({', '.join(used)}): go on with --resume, throw it away with "
            "--overwrite, or write elsewhere."
        )
    # No process may look at what the main one is about to change.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if overwrite:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            for name in (METRICS_FILE, *_ADAPTER_FILES):
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' bars away; those of the features come through its logging too, and are wanted."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _logger(accelerator: Any, progress: bool, steps: int) -> Iterator[Callable[[dict[str, float], int], None]]:
    from accelerate.utils import tqdm

    has_trackers = bool(accelerator.trackers)
    with tqdm(total=steps, desc="training", unit="step", disable=not progress) as bar:

        def log(values: dict[str, float], step: int) -> None:
            if "loss" in values:
                bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
                bar.update(step - bar.n)
            if has_trackers:
                accelerator.log(values, step=step)

        yield log


def _calibrate(model: Any, image_embeds: Tensor, target_tpr: float) -> Calibration:
    with torch.no_grad():
        values = torch.cat([model.score(part).cpu() for part in score_inputs_of(model, image_embeds)])
    calibration = Calibration.fit(values, model.score.key, target_tpr)
    model.set_calibration(calibration)
    return calibration


def _write(folder: Path, model: Any, recipe: Recipe, metrics: dict[str, Any], trainer: Trainer) -> None:
    with _no_progress_bars():
        model.save_pretrained(folder)
    recipe.save(folder / RECIPE_FILE)
    measured = [{"step": 0, **metrics["zero_shot"]}, *trainer.evaluations]
    if not draw_learning_curve(folder / CURVE_FILE, trainer.history, measured):
        logger.warning("No learning curve was drawn: it needs matplotlib (pip install 'hf_oodclip[train]').")
    # Last, for it says that the run has ended.
    partial = folder / f".{METRICS_FILE}.partial"
    partial.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / METRICS_FILE)
