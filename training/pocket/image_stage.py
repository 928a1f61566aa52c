"""Image stage: a vision tower learns to meet the captions of a locked text tower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from hf_oodclip.training.schedule import private_seed
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from .captions import Captions
from .images import SIDE, Images, augment, mix_images, shuffle_tiles, standardise
from .optimizer import MatrixOptimizer
from .recipe import ImageStage, PocketRecipe, Tower
from .tower import image_features, new_vision_tower

__all__ = ["ImageTraining", "VisionTower", "accuracy"]

LARGEST_SCALE = 100.0
# Where `averaged` keeps the sum of the towers with which earlier cycles ended, and how many these are.
ENDED, NUM_ENDED = "ended.", "num_ended"


class VisionTower(nn.Module):
    """A vision tower and the logarithm of its logit scale."""

    def __init__(self, recipe: PocketRecipe, tower: Tower) -> None:
        super().__init__()
        self.clip = new_vision_tower(recipe, tower, SIDE)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


class ImageTraining:
    """Trains a vision tower; a step depends on its number and the weights only, so a run can stop and go on.

    Args:
        name: Of the tower; draws are its own.
        recipe: The recipe.
        tower: The tower's shape.
        stages: Sizes of the images and batches, one after the other.
        captions: What images are compared with.
        images: Training images.
        accelerator: An `accelerate.Accelerator`; its processes share each batch.
        teacher: A trained tower to follow, or None.
    """

    def __init__(
        self,
        name: str,
        recipe: PocketRecipe,
        tower: Tower,
        stages: Sequence[ImageStage],
        captions: Captions,
        images: Images,
        accelerator: Any,
        teacher: Any = None,
    ) -> None:
        self.name, self.recipe, self.stages, self.captions = name, recipe, list(stages), captions
        self.images, self.accelerator, self.teacher = images, accelerator, teacher
        with torch.random.fork_rng([]):
            torch.manual_seed(private_seed(recipe.seed, name))
            self.model = VisionTower(recipe, tower).to(accelerator.device)
        self.averaged = {key: values.detach().clone() for key, values in self.model.state_dict().items()}
        first_steps = itertools.accumulate((stage.steps for stage in stages), initial=0)
        self.restarts = {step for step, stage in zip(first_steps, stages, strict=False) if step and stage.restart}
        if self.restarts:
            self.averaged |= {ENDED + key: torch.zeros_like(values) for key, values in self.averaged.items()}
            self.averaged[NUM_ENDED] = torch.zeros((), device=accelerator.device)
        self.optimizer = MatrixOptimizer(self.model, recipe.learning_rate, recipe.weight_decay)
        self.num_steps = sum(stage.steps for stage in stages)
        self.pixels = self.stages[0].pixels
        self._epoch = -1

    def stage_of(self, step: int) -> tuple[ImageStage, float]:
        """Return the stage of a step, and its learning rate as a share of the highest."""
        for place, stage in enumerate(self.stages):
            if step < stage.steps:
                return stage, self._rate(place, step)
            step -= stage.steps
        return self.stages[-1], 0.0

    def _rate(self, place: int, step: int) -> float:
        starts = [index for index, stage in enumerate(self.stages) if stage.restart and index] + [len(self.stages)]
        end = next(index for index in starts if index > place)
        first = max([0, *(index for index in starts if index <= place)])
        work = [stage.work(self.recipe.patch_size) for stage in self.stages]
        done = sum(work[first:place]) + work[place] * step / self.stages[place].steps
        risen = sum(stage.steps for stage in self.stages[first:place]) + step + 1
        left = (1 - done / sum(work[first:end])) / (1 - self.recipe.decay_from)
        return (self.stages[first].restart or 1) * min(1, risen / self.recipe.warmup_steps) * min(1, left)

    def images_before(self, step: int) -> int:
        """Return how many images the steps before one take."""
        total = 0
        for stage in self.stages:
            total += stage.batch_size * min(step, stage.steps)
            step = max(0, step - stage.steps)
        return total

    def step(self, step: int) -> dict[str, float]:
        """Do one optimizer step, and return its figures."""
        recipe, (stage, rate) = self.recipe, self.stage_of(step)
        self.pixels = stage.pixels
        if step in self.restarts:
            self._end_cycle()
        self.optimizer.set_rate(recipe.learning_rate * rate)
        device, processes = self.accelerator.device, self.accelerator.num_processes
        generator = torch.Generator(device)
        generator.manual_seed(private_seed(recipe.seed, self.name, step, self.accelerator.process_index))
        rows = self._rows(step, stage)[self.accelerator.process_index :: processes]
        pixels, labels = self.images.pixels[rows].to(device), self.images.labels[rows].to(device)
        crops = augment(pixels, stage.pixels, recipe.smallest_crop, generator)
        # A text tower that has hardly learnt finds every noun near a class, and leaves none for these images.
        without = round(recipe.shuffled * len(rows)) if len(self.captions.distractors) else 0
        hidden, crops, labels = shuffle_tiles(crops[:without], generator), crops[without:], labels[without:]
        partner, share = None, 1.0
        if recipe.mix and torch.rand((), generator=generator, device=device).item() < recipe.mix:
            crops, partner, share = mix_images(crops, generator)
        scale = self.model.log_scale.exp()
        embeds = image_features(self.model.clip, torch.cat([hidden, crops]), stage.kept_patches, generator)
        nothing, embeds = embeds[:without], embeds[without:]
        own, above = self.captions.loss(embeds, labels, scale, recipe.num_distractors, generator)
        if partner is not None:
            others = self.captions.loss(embeds, labels[partner], scale, recipe.num_distractors, generator)
            own, above = share * own + (1 - share) * others[0], share * above + (1 - share) * others[1]
        loss = own + recipe.parent_weight * above
        figures = {"class_loss": own.item(), "parent_loss": above.item()}
        if self.teacher is not None and recipe.teacher is not None:
            followed = self._teacher_loss(crops, embeds, scale)
            loss = (1 - recipe.teacher.weight) * loss + recipe.teacher.weight * followed
            figures["teacher_loss"] = followed.item()
        if without:
            unseen = self.captions.nothing_loss(nothing, scale, recipe.num_distractors, generator)
            loss = loss + (unseen - loss) * without / len(rows)
            figures["shuffled_loss"] = unseen.item()
        self.optimizer.zero_grad()
        loss.backward()
        for values in self.model.parameters():
            if processes > 1 and values.grad is not None:
                values.grad = self.accelerator.reduce(values.grad, "mean")
        self.optimizer.step()
        with torch.no_grad():
            self.model.log_scale.clamp_(0, math.log(LARGEST_SCALE))
            # A mean over few steps at first, or the initial weights would stay in it for long.
            decay = min(recipe.average, (1 + step) / (10 + step))
            for key, values in self.model.state_dict().items():
                self.averaged[key].lerp_(values, 1 - decay)
        return figures

    def _teacher_loss(self, crops: Tensor, embeds: Tensor, scale: Tensor) -> Tensor:
        with torch.no_grad():
            large = crops
            if crops.shape[-1] != SIDE:
                large = torch.nn.functional.interpolate(crops, size=(SIDE, SIDE), mode="bilinear")
            wanted = self.captions.class_logits(
                image_features(self.teacher.clip, large), self.teacher.log_scale.exp()
            ).softmax(1)
        return cross_entropy(self.captions.class_logits(embeds, scale), wanted)

    def _rows(self, step: int, stage: ImageStage) -> Tensor:
        """Return the images of a step over all processes: each image once an epoch."""
        first = self.images_before(step)
        parts, missing = [], min(stage.batch_size, len(self.images))
        while missing:
            epoch, place = divmod(first, len(self.images))
            if epoch != self._epoch:
                shuffle = torch.Generator().manual_seed(private_seed(self.recipe.seed, self.name, "order", epoch))
                self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=shuffle)
            part = self._order[place : place + missing]
            parts.append(part)
            first, missing = first + len(part), missing - len(part)
        return torch.cat(parts)

    def _end_cycle(self) -> None:
        for key in self.model.state_dict():
            self.averaged[ENDED + key] += self.averaged[key]
        self.averaged[NUM_ENDED] += 1

    def averaged_tower(self) -> VisionTower:
        """Return the tower with the running mean of the weights, averaged with those that earlier cycles ended with.

        Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018.
        """
        model = VisionTower(self.recipe, Tower(self.model.clip.config.hidden_size, self._num_layers()))
        weights = {key: self.averaged[key] for key in self.model.state_dict()}
        if self.restarts:
            total = 1 + self.averaged[NUM_ENDED]
            weights = {key: (values + self.averaged[ENDED + key]) / total for key, values in weights.items()}
        model.load_state_dict(weights)
        return model.to(self.accelerator.device).eval()

    def _num_layers(self) -> int:
        return int(self.model.clip.config.num_hidden_layers)


@torch.inference_mode()
def accuracy(
    tower: VisionTower, images: Images, label_embeds: Tensor, side: int = SIDE, batch_size: int = 500
) -> tuple[float, float]:
    """Return the shares of images whose label is the nearest, and among the five nearest.

    Args:
        tower: The tower.
        images: Images with labels.
        label_embeds: Unit text features `[N, D]`.
        side: Pixels that the images are reduced to; it divides 64.
        batch_size: Images at a time.
    """
    device, first, five = label_embeds.device, 0, 0
    for start in range(0, len(images), batch_size):
        pixels = images.pixels[start : start + batch_size].to(device)
        labels = images.labels[start : start + batch_size].to(device)
        shown = avg_pool2d(standardise(pixels), SIDE // side) if side < SIDE else standardise(pixels)
        best = (image_features(tower.clip, shown) @ label_embeds.T).topk(min(5, len(label_embeds))).indices
        right = best == labels[:, None]
        first, five = first + int(right[:, 0].sum()), five + int(right.any(1).sum())
    return first / len(images), five / len(images)
