"""The training loop: one process or many, killed and resumed, with the same result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_oodclip.errors import NonFiniteError, OODCLIPError, RecipeError

from .adapter_options import adapter_config
from .checkpoints import Checkpoint, latest_checkpoint, save_checkpoint, seeded
from .inputs import Inputs
from .monitor import METRIC_DIRECTIONS
from .recipe import Recipe
from .schedule import Plan, private_seed
from .step import TrainingStep

__all__ = ["ADAPTER_NAME", "Trainer", "add_adapter"]

logger = logging.get_logger("hf_oodclip.training")

ADAPTER_NAME = "default"
_LOGGED_STEPS = 1000


def add_adapter(model: Any, recipe: Recipe) -> None:
    """Put the adapter of a recipe on a model, initialised by the recipe's seed.

    Raises:
        RecipeError, AdapterError, UnknownNameError: It has no such option, or does not fit the model.
    """
    config = adapter_config(recipe.adapter)
    try:
        with seeded(private_seed(recipe.seed, "adapter")):
            model.add_adapter(config, ADAPTER_NAME)
    except OODCLIPError:
        raise
    except ValueError as error:
        raise RecipeError(f"The adapter {recipe.adapter} does not fit the model: {error}") from error


@dataclass
class Trainer:
    """Trains the adapter of a model by a recipe.

    Args:
        model: An `OODCLIPForImageClassification` with the adapter on it.
        recipe: The recipe.
        inputs: What to train on.
        accelerator: Accelerate's, which knows the processes, the device and the precision.
        folder: Where checkpoints go; None for none.
        evaluate: Called after every `eval_every` epochs, returns metrics.
        log: Called with values and the step, for trackers and bars.
    """

    model: Any
    recipe: Recipe
    inputs: Inputs
    accelerator: Any
    folder: Path | None = None
    evaluate: Callable[[], dict[str, Any]] | None = None
    log: Callable[[dict[str, float], int], None] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.plan = Plan(self.recipe, len(self.inputs))
        self.step_function = TrainingStep(self.model, self.recipe)
        self.parameters = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self._check_parameters()
        self.optimizer = self.accelerator.prepare(self._optimizer())
        self.best_value: float | None = None

    def _check_parameters(self) -> None:
        in_vision = [name for name in self.parameters if ".vision_model." in name or ".visual_projection." in name]
        if in_vision and self.recipe.inputs != "pixels":
            raise RecipeError(
                f"The adapter changes the vision tower ({in_vision[0]}), whose features are made once for inputs "
                f"{self.recipe.inputs!r}: set inputs to pixels, or its target_modules to the text tower only."
            )

    @property
    def digest(self) -> str:
        """Hash of the recipe and of what it is used on; a checkpoint of another one is refused."""
        negatives = self.model.negatives
        used_on = (
            self.inputs.rows.tolist(),
            self.inputs.labels.tolist(),
            self.model.labels,
            None if negatives is None else negatives.texts,
        )
        return hashlib.blake2b(f"{self.recipe.digest}{used_on}".encode(), digest_size=8).hexdigest()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe, parameters = self.recipe, list(self.parameters.values())
        options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer](parameters, **options)

    def train(self, resume: bool = False) -> None:
        """Take all steps, or those an interrupted run has left.

        Raises:
            NonFiniteError: A loss or gradient is NaN or infinite; parameters and checkpoints stay as they are.
            CheckpointError: There is a checkpoint of another recipe.
        """
        start_time, start = time.monotonic(), 0
        if resume and self.folder is not None:
            start = self._restore()
        self.model.train()
        every = self.recipe.checkpoint_every or self.plan.steps_per_epoch
        stride = max(1, self.plan.num_steps // _LOGGED_STEPS)
        for step in range(start, self.plan.num_steps):
            losses = self._take(step)
            if step % stride == 0 or step + 1 == self.plan.num_steps:
                record = {"step": step + 1, "learning_rate": self.plan.learning_rate(step), **losses}
                self.history.append(record)
            if self.log is not None:
                self.log(losses, step + 1)
            done = step + 1
            if done % self.plan.steps_per_epoch == 0:
                self._end_epoch(done)
            if self.folder is not None and (done % every == 0 or done == self.plan.num_steps):
                self._save(done)
        self.model.eval()
        if self.best:
            self._load_parameters(self.best)
        self.seconds += time.monotonic() - start_time

    def _take(self, step: int) -> dict[str, float]:
        """Take one optimizer step; the loss is the mean over its images, however they are spread."""
        recipe, plan, processes = self.recipe, self.plan, self.accelerator.num_processes
        everything = plan.positions(step)
        mine = everything[self.accelerator.process_index :: processes]
        sums: dict[str, Tensor] = {}
        for part in mine.split(recipe.micro_batch_size or max(1, len(mine))):
            if len(part) == 0:
                continue
            batch = self.inputs.batch(part, plan.epoch_of(step), self.accelerator.device)
            with seeded(private_seed(recipe.seed, "step", step, part.tolist())), self.accelerator.autocast():
                losses = self.step_function(batch)
            share = len(part) / len(everything)
            self.accelerator.backward(losses["loss"] * share)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() * share  # type: ignore[assignment]
        if processes > 1:
            sums = self._over_processes(sums)
        if recipe.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(list(self.parameters.values()), recipe.max_grad_norm)
        if self.accelerator.scaler is None:
            # With a scaler, infinity is nothing unusual: it leaves that step out.
            self._check_gradients(everything)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.learning_rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: float(value) for name, value in sums.items()}

    def _check_gradients(self, positions: Tensor) -> None:
        for name, each in self.parameters.items():
            if each.grad is not None and not torch.isfinite(each.grad).all():
                self.optimizer.zero_grad()
                raise NonFiniteError(
                    f"The gradient of {name} is NaN or infinite on batch {self.inputs.rows[positions].tolist()}, "
                    "though the losses are finite: lower the learning rate, or set max_grad_norm."
                )

    def _over_processes(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add gradients and losses of all processes: each has a part of the batch, and perhaps none."""
        for each in self.parameters.values():
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        grads: list[Tensor] = [each.grad for each in self.parameters.values() if each.grad is not None]
        names = ["loss", *self.recipe.losses]
        zero = torch.zeros((), device=self.accelerator.device)
        values = torch.stack([sums.get(name, zero).float() for name in names])
        flat = torch.cat([values, *(grad.flatten() for grad in grads)])
        flat = self.accelerator.reduce(flat, reduction="sum")
        offset = len(names)
        for grad in grads:
            grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
            offset += grad.numel()
        return dict(zip(names, flat[: len(names)], strict=True))

    def _end_epoch(self, done: int) -> None:
        recipe, epoch = self.recipe, done // self.plan.steps_per_epoch
        last = done == self.plan.num_steps
        if self.evaluate is None or not (last or (recipe.eval_every and epoch % recipe.eval_every == 0)):
            return
        found = {"step": done, "epoch": epoch, **self.evaluate()}
        self.evaluations.append(found)
        if self.log is not None:
            self.log({f"eval_{name}": found[name] for name in METRIC_DIRECTIONS if name in found}, done)
        if recipe.best_metric is None:
            return
        value = found[recipe.best_metric]
        larger_is_better = METRIC_DIRECTIONS[recipe.best_metric]
        if self.best_value is None or (value > self.best_value if larger_is_better else value < self.best_value):
            self.best_value = value
            self.best = {name: each.detach().cpu().clone() for name, each in self.parameters.items()}

    # ---- checkpoints ----------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process or self.folder is None:
            return
        optimizer = self.optimizer.optimizer if hasattr(self.optimizer, "optimizer") else self.optimizer
        scaler = self.accelerator.scaler
        progress = {
            "history": self.history,
            "evaluations": self.evaluations,
            "best_value": self.best_value,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        checkpoint = Checkpoint(step, dict(self.parameters), optimizer.state_dict(), progress, self.best)
        save_checkpoint(self.folder, checkpoint, self.digest)

    def _restore(self) -> int:
        assert self.folder is not None
        checkpoint = latest_checkpoint(self.folder, self.digest)
        if checkpoint is None:
            logger.warning(f"No checkpoint in {self.folder} to resume from: starting anew.")
            return 0
        self._load_parameters(checkpoint.parameters)
        optimizer = self.optimizer.optimizer if hasattr(self.optimizer, "optimizer") else self.optimizer
        optimizer.load_state_dict(checkpoint.optimizer)
        self.history, self.evaluations = checkpoint.progress["history"], checkpoint.progress["evaluations"]
        self.best_value, self.best = checkpoint.progress["best_value"], checkpoint.best
        if checkpoint.progress["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.progress["scaler"])
        return checkpoint.step

    @torch.no_grad()
    def _load_parameters(self, values: dict[str, Tensor]) -> None:
        for name, each in self.parameters.items():
            each.copy_(values[name])
