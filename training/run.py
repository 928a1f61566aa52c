"""A whole run: from a recipe to an adapter folder that restores everything, with metrics and learning curve."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hf_oodclip.evaluation.environment import describe_environment
from torch import Tensor
from transformers.utils import logging

from hf_oodclip import Calibration, OODCLIPForImageClassification, mine_negatives, pocket_path
from hf_oodclip.errors import CheckpointError, DataError, RecipeError
from hf_oodclip.feature_store import FeatureStore
from hf_oodclip.mining import MINING_METHODS

from .curves import draw_learning_curve
from .inputs import HeldOut, choose_shots, make_inputs
from .monitor import measure, score_inputs_of
from .recipe import Recipe
from .trainer import Trainer, add_adapter

__all__ = ["RunResult", "load_model", "run_recipe"]

logger = logging.get_logger("hf_oodclip.training")

METRICS_FILE, RECIPE_FILE, CURVE_FILE, CHECKPOINTS = "metrics.json", "recipe.yaml", "learning_curve.png", "checkpoints"


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: the trained model and what `metrics.json` holds."""

    model: Any
    metrics: dict[str, Any]


def load_model(recipe: Recipe, labels: list[str], device: Any = None) -> Any:
    """Return the base model with labels, negatives and score of a recipe, without its adapter.

    Raises:
        RecipeError: `num_negatives` without a mining method.
    """
    base = pocket_path() if recipe.base == "pocket" else recipe.base
    model = OODCLIPForImageClassification.from_pretrained(base)
    if device is not None:
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
    from accelerate import Accelerator

    accelerator = accelerator or Accelerator(mixed_precision=recipe.mixed_precision)
    tell = say if say is not None and accelerator.is_main_process else lambda line: None
    folder = None if output is None else Path(output)
    if folder is not None:
        _prepare(folder, resume, overwrite, accelerator)
    store = store or FeatureStore()
    started = time.monotonic()

    shots = choose_shots(recipe)
    tell(f"{len(shots.shots)} images of {len(shots.labels)} classes from {shots.shots.source}.")
    with accelerator.main_process_first():
        # One process mines and embeds the negatives; the others find them in the cache.
        model = load_model(recipe, shots.labels, accelerator.device)
    negatives = model.config.num_negatives
    tell(f"Base {recipe.base}, {negatives:,} negatives. Features of the images ({recipe.inputs}) ...")
    inputs = make_inputs(recipe, model, shots.shots, store, accelerator, progress and accelerator.is_main_process)
    held_out = HeldOut.of(recipe, shots)
    if inputs.skipped:
        tell(f"{len(inputs.skipped)} images cannot be read and are left out: {inputs.skipped}.")

    def evaluate() -> dict[str, Any]:
        features: dict[str, tuple[Tensor, Tensor | None]] = {
            name: (embeds, labels)
            for name, embeds, labels in held_out.features(recipe, model, store, accelerator)
            if name != "calibration"
        }
        return measure(model, features, recipe.eval_scores)

    before = evaluate()
    add_adapter(model, recipe)
    trainer = Trainer(
        model,
        recipe,
        inputs,
        accelerator,
        None if folder is None else folder / CHECKPOINTS,
        evaluate,
        _logger(accelerator, progress, recipe, len(inputs)),
    )
    count = sum(each.numel() for each in trainer.parameters.values())
    tell(f"{count:,} parameters, {trainer.plan.num_steps} steps of {recipe.batch_size} images.")
    trainer.train(resume)
    after = evaluate() if trainer.best or not trainer.evaluations else dict(trainer.evaluations[-1])
    calibration = _calibrate(model, recipe, held_out, store, accelerator)
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
    if accelerator.is_main_process:
        used = [name for name in (METRICS_FILE, CHECKPOINTS, "adapter_config.json") if (folder / name).exists()]
        if used and not resume and not overwrite:
            raise CheckpointError(
                f"{folder} holds an earlier run ({', '.join(used)}): go on with --resume, throw it away with "
                "--overwrite, or write elsewhere."
            )
        if overwrite:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()


def _logger(
    accelerator: Any, progress: bool, recipe: Recipe, num_images: int
) -> Callable[[dict[str, float], int], None]:
    from accelerate.utils import tqdm

    from .schedule import Plan

    steps = Plan(recipe, num_images).num_steps
    bar = tqdm(total=steps, desc="training", disable=not progress)
    has_trackers = bool(accelerator.trackers)

    def log(values: dict[str, float], step: int) -> None:
        if "loss" in values:
            bar.n = step
            bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
            bar.refresh() if step == steps else bar.update(0)
        if has_trackers:
            accelerator.log(values, step=step)

    return log


def _calibrate(
    model: Any, recipe: Recipe, held_out: HeldOut, store: FeatureStore, accelerator: Any
) -> Calibration | None:
    if held_out.calibration is None:
        if recipe.calibration_dataset is not None:
            raise DataError("There is nothing left to calibrate on: all images were trained on. Name a source.")
        return None
    for name, embeds, _ in HeldOut({}, held_out.calibration).features(recipe, model, store, accelerator):
        assert name == "calibration"
        with torch.no_grad():
            values = torch.cat([model.score(part).cpu() for part in score_inputs_of(model, embeds)])
        calibration = Calibration.fit(values, model.score.key, recipe.target_tpr)
        model.set_calibration(calibration)
    return calibration


def _write(folder: Path, model: Any, recipe: Recipe, metrics: dict[str, Any], trainer: Trainer) -> None:
    model.save_pretrained(folder)
    recipe.save(folder / RECIPE_FILE)
    if not draw_learning_curve(folder / CURVE_FILE, trainer.history, trainer.evaluations):
        logger.warning("No learning curve was drawn: it needs matplotlib (pip install 'hf_oodclip[train]').")
    # Last, for it says that the run has ended.
    partial = folder / f".{METRICS_FILE}.partial"
    partial.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / METRICS_FILE)
