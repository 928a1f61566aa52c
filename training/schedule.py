"""Learning rates and the order of batches, as functions of the step: a resumed run needs no state of theirs."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from .recipe import Recipe

__all__ = ["Plan", "private_seed"]


def private_seed(*parts: object) -> int:
    """Return a seed that belongs to these parts, such as seed, epoch and purpose."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Plan:
    """Says which images a step takes and how large it is.

    Args:
        recipe: The recipe.
        num_images: Images trained on.
    """

    def __init__(self, recipe: Recipe, num_images: int) -> None:
        self.recipe, self.num_images = recipe, num_images
        batches = math.ceil(num_images / recipe.batch_size)
        share = recipe.epoch_fraction
        # Not one less than meant where 0.29 * 100 is a little less than 29.
        self.steps_per_epoch = batches if share == 1 else min(batches, math.floor(share * batches + 1e-9) + 1)
        self.num_steps = self.steps_per_epoch * recipe.epochs
        self._epoch = -1

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def positions(self, step: int) -> Tensor:
        """Return the images of a step, over all processes."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(private_seed(self.recipe.seed, "order", epoch))
            self._epoch, self._order = epoch, torch.randperm(self.num_images, generator=generator)
        return self._order[batch * self.recipe.batch_size :][: self.recipe.batch_size]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step.

        The cosine runs over epochs, as CoOp has it for few steps an epoch, but smoothly: over steps.
        """
        recipe = self.recipe
        warmup = min(recipe.warmup_epochs * self.steps_per_epoch, self.num_steps)
        if step < warmup:
            return recipe.warmup_learning_rate
        if recipe.schedule == "constant":
            return recipe.learning_rate
        done = (step - warmup) / max(1, self.num_steps - warmup)
        share = (1 + math.cos(math.pi * done)) / 2
        return recipe.final_learning_rate + share * (recipe.learning_rate - recipe.final_learning_rate)
