"""One training step: from a batch of features, or of images, to weighted losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hf_oodclip import encoders
from hf_oodclip.errors import RecipeError
from hf_oodclip.similarity import TrainingCosines

from .losses import checked_loss, get_loss
from .recipe import Recipe

__all__ = ["Batch", "StepOutputs", "TrainingStep"]


@dataclass(frozen=True)
class Batch:
    """What a step is made of.

    Args:
        labels: Right labels, `[B]`.
        rows: Rows of the dataset, for messages.
        images: Image features `[B, D]`, or pixel values `[B, 3, H, W]`.
        positives: Features of the crops most like the label, `[B, Q, D]`.
        negatives: Features of the crops least like it, `[B, Q, D]`.
    """

    labels: Tensor
    rows: Sequence[int]
    images: Tensor
    positives: Tensor | None = None
    negatives: Tensor | None = None


@dataclass
class StepOutputs:
    """What losses can ask for, by the names in their `needs`.

    Args:
        model: The model in training.
        labels: Right labels, `[B]`.
        images: Features of the images, or of their positive crops, as no adapter has changed them.
        positives: Cosines of the images, or of their positive crops.
        oods: Cosines of the negative crops, None without.
    """

    model: Any
    labels: Tensor
    images: Tensor
    positives: TrainingCosines
    oods: TrainingCosines | None = None
    scale: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.scale = self.model.clip.logit_scale.exp().to(self.positives.labels.dtype)

    def _of_oods(self) -> TrainingCosines:
        if self.oods is None:
            raise RecipeError("This loss needs negative crops: set inputs to 'crops' in the recipe.")
        return self.oods

    @property
    def label_logits(self) -> Tensor:
        return self.scale * self.positives.labels

    @property
    def negative_logits(self) -> Tensor:
        return self.scale * self.positives.negatives

    @property
    def ood_label_logits(self) -> Tensor:
        return self.scale * self._of_oods().labels

    @property
    def ood_negative_logits(self) -> Tensor:
        return self.scale * self._of_oods().negatives

    @property
    def kept_labels(self) -> Tensor:
        return self._kept("kept_labels")

    @property
    def kept_negatives(self) -> Tensor:
        return self._kept("kept_negatives")

    def _kept(self, name: str) -> Tensor:
        # Where every crop moves the text features, those of negative crops are kept near the original too.
        parts = [getattr(each, name) for each in (self.positives, self.oods) if each is not None]
        return (
            parts[0] if len(parts) == 1 or parts[0] is parts[1] else torch.cat([part.flatten(0, -2) for part in parts])
        )

    @property
    def image_embeds(self) -> Tensor:
        return self.positives.image_embeds

    @property
    def label_embeds(self) -> Tensor:
        if self.positives.label_embeds is None:
            raise RecipeError("This loss needs text features, which NFT never builds: use another adapter or loss.")
        return self.positives.label_embeds

    @cached_property
    def _original(self) -> tuple[Tensor, Tensor]:
        bank, images = self.model.text_bank, self.images.to(self.positives.labels.dtype)
        # Cosines lose their meaning in half precision, whatever an autocast region around this says.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            images = torch.nn.functional.normalize(images, dim=-1)
            texts = (torch.nn.functional.normalize(each, dim=-1) for each in (bank.label_embeds, bank.negative_embeds))
            labels, negatives = (self.scale * (images @ each.to(images.dtype).T) for each in texts)
        return labels, negatives

    @property
    def original_label_logits(self) -> Tensor:
        return self._original[0]

    @property
    def original_negative_logits(self) -> Tensor:
        return self._original[1]


class TrainingStep:
    """Turns batches into losses for one model and recipe.

    Args:
        model: An `OODCLIPForImageClassification` with an adapter.
        recipe: Which losses with which weights, and what moves the text features.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.losses: list[tuple[str, Any, float]] = []
        for name, options in recipe.losses.items():
            chosen = {key: value for key, value in options.items() if key != "weight"}
            self.losses.append((name, get_loss(name, **chosen), float(options.get("weight", 1.0))))
        needs = {need for _, loss, _ in self.losses for need in loss.needs}
        self.needs_negatives = any("negative" in need for need in needs)
        self.needs_oods = any(need.startswith("ood_") for need in needs)
        if self.needs_oods and recipe.inputs != "crops":
            raise RecipeError(
                f"The loss ood_negatives needs negative crops, and inputs is {recipe.inputs!r}: set inputs to "
                "crops, or leave that loss out (losses.ood_negatives none)."
            )
        if self.needs_negatives and model.config.num_negatives == 0:
            raise RecipeError(
                f"The losses {sorted(recipe.losses)} need negatives, and the recipe has none: set negatives to a "
                "mining method or a file that `oodclip mine` wrote."
            )

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses by name, unweighted, and their weighted sum under `loss`.

        Raises:
            NonFiniteError: A loss is NaN or infinite; the message names the batch.
        """
        outputs = self.outputs(batch)
        found = {
            name: checked_loss(loss(*(getattr(outputs, need) for need in loss.needs)), name, batch.rows)
            for name, loss, _ in self.losses
        }
        total = sum(weight * found[name] for name, _, weight in self.losses)
        return {"loss": checked_loss(total, "sum of losses", batch.rows), **found}  # type: ignore[arg-type]

    def outputs(self, batch: Batch) -> StepOutputs:
        """Return what the losses are computed from."""
        if self.recipe.inputs == "pixels":
            embeds, _ = encoders.encode_images(self.model.clip, batch.images)
            return StepOutputs(self.model, batch.labels, embeds, self._cosines(embeds))
        if batch.positives is None or batch.negatives is None:
            return StepOutputs(self.model, batch.labels, batch.images, self._cosines(batch.images))
        count = batch.positives.shape[1]
        crops = torch.cat([batch.positives, batch.negatives], dim=1) if self.needs_oods else batch.positives
        if self.recipe.condition == "self":
            found = self._cosines(crops.flatten(0, 1))
            found = _by_image(found, len(batch.labels))
        else:
            mover = batch.images if self.recipe.condition == "image" else batch.positives[:, 0]
            found = self._cosines(mover, crops)
        oods = _crops(found, slice(count, None)) if self.needs_oods else None
        found = _crops(found, slice(0, count)) if self.needs_oods else found
        return StepOutputs(self.model, batch.labels, batch.positives, found, oods)

    def _cosines(self, images: Tensor, queries: Tensor | None = None) -> TrainingCosines:
        return self.model.training_cosines(images, queries, self.needs_negatives)


def _by_image(found: TrainingCosines, num_images: int) -> TrainingCosines:
    """Return cosines of a flat batch of crops, `[B * Q, K]`, as `[B, Q, K]`."""

    def grouped(values: Tensor) -> Tensor:
        return values.unflatten(0, (num_images, -1)) if len(values) == len(found.labels) else values

    embeds = found.label_embeds
    return TrainingCosines(
        grouped(found.labels),
        grouped(found.negatives),
        grouped(found.kept_labels),
        grouped(found.kept_negatives),
        grouped(found.image_embeds),
        grouped(embeds) if embeds is not None and embeds.ndim == 3 else embeds,
    )


def _crops(found: TrainingCosines, which: slice) -> TrainingCosines:
    """Return the cosines of some crops of every image; what all crops of an image share stays one object."""

    def some(kept: Tensor) -> Tensor:
        return kept[:, which] if kept.ndim == 3 else kept

    return TrainingCosines(
        found.labels[:, which],
        found.negatives[:, which],
        some(found.kept_labels),
        some(found.kept_negatives),
        found.image_embeds[:, which],
        found.label_embeds,
    )
