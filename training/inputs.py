"""What a run trains on and is measured with: shots, their features, and held-out sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_oodclip.dataset_images import image_reader, read_images
from hf_oodclip.errors import DataError, RecipeError
from hf_oodclip.feature_store import FeatureStore, embed_images

from .augmentation import Cropper
from .crops import crop_features, view_features
from .data import ImageSet, load_image_set
from .data_sources import open_source, source_and_split
from .few_shot import few_shot, few_shot_from_stream
from .recipe import Recipe
from .step import Batch

__all__ = ["HeldOut", "Inputs", "ShotSets", "choose_shots", "features_of", "make_inputs"]

# A shard is what a kill loses and what a process takes: some images with all their crops.
CROP_SHARD_ROWS = 8


@dataclass(frozen=True)
class ShotSets:
    """The images trained on, and those of the same source that are not."""

    shots: ImageSet
    rest: ImageSet | None

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return list(self.shots.label_names or [])


def choose_shots(recipe: Recipe) -> ShotSets:
    """Return the images a recipe trains on, the same ones for the same seed.

    Raises:
        DataError: The source has no labels, lacks images, or cannot be read.
    """
    columns: dict[str, Any] = _columns(recipe)
    if recipe.streaming:
        if recipe.shots is None or recipe.classes is not None:
            raise DataError("A stream is trained on by shots of all its classes: give shots, leave classes out.")
        stream = open_source(
            recipe.dataset,
            split=recipe.split,
            config_name=recipe.dataset_config,
            revision=recipe.dataset_revision,
            streaming=True,
        )
        return ShotSets(
            few_shot_from_stream(stream, recipe.shots, recipe.seed, source=recipe.dataset, **columns), None
        )
    images = _load(recipe.dataset, recipe.split, recipe)
    if images.label_names is None:
        raise DataError(f"{images.source} has no labels to train on. Name their column: label_column.")
    if recipe.classes is not None:
        images = images.of_classes(recipe.classes)
    if recipe.shots is None:
        return ShotSets(images, None)
    shots, rest = few_shot(images, recipe.shots, recipe.seed)
    return ShotSets(shots, rest if len(rest) else None)


@dataclass(frozen=True)
class Inputs:
    """The images trained on, ready to be put into batches.

    Args:
        recipe: How they are used.
        labels: Right labels, `[n]`.
        rows: Rows of the shots, `[n]`: images that could not be read are missing.
        tensors: Features by name, see `training.crops`.
        skipped: Why an image is missing, by row.
        images: The shots, for recipes that train through the vision tower.
        image_processor: That of the model.
    """

    recipe: Recipe
    labels: Tensor
    rows: Tensor
    tensors: dict[str, Tensor]
    skipped: dict[int, str]
    images: Any = None
    image_processor: Any = None
    _read: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor, epoch: int, device: torch.device) -> Batch:
        """Return the batch of some positions in `rows`, in this epoch."""
        kind = self.recipe.inputs
        labels, rows = self.labels[positions].to(device), self.rows[positions].tolist()
        if kind == "pixels":
            return Batch(labels, rows, self._pixels(rows, epoch).to(device))
        if kind == "views":
            views = self.tensors["views"]
            return Batch(labels, rows, views[positions, epoch % views.shape[1]].to(device))
        images = self.tensors["image_embeds"][positions].to(device)
        if kind == "images":
            return Batch(labels, rows, images)
        crops = (self.tensors[name][positions].to(device) for name in ("positives", "negatives"))
        return Batch(labels, rows, images, *crops)

    def _pixels(self, rows: list[int], epoch: int) -> Tensor:
        read = self._read.setdefault("reader", image_reader(self.images))
        skipped: dict[int, str] = {}
        found = [
            Cropper(image, self.image_processor, self.recipe.augmentation, self.recipe.seed).crops(epoch, epoch + 1)
            for _, image in read_images(read, rows, skipped)
        ]
        if skipped:
            raise DataError(f"Images that were readable at the start are not any more: {skipped}.")
        return torch.cat(found)


def make_inputs(
    recipe: Recipe, model: Any, shots: ImageSet, store: FeatureStore, accelerator: Any = None, progress: bool = False
) -> Inputs:
    """Return the features of the shots, from the store or made now.

    Raises:
        DataError: No image can be read.
    """
    labels = torch.tensor(shots.labels)
    shared: dict[str, Any] = {"accelerator": accelerator, "progress": progress}
    crops = {"augmentation": recipe.augmentation, "seed": recipe.seed, **shared}
    by_crops = FeatureStore(store.folder, CROP_SHARD_ROWS)
    if recipe.inputs == "pixels":
        skipped: dict[int, str] = {}
        kept = [row for row, _ in read_images(image_reader(shots.images), list(range(len(shots))), skipped)]
        rows, tensors = torch.tensor(kept, dtype=torch.int64), {}
    else:
        if recipe.inputs == "crops":
            names = list(shots.label_names or [])
            found = crop_features(
                by_crops,
                model,
                shots.images,
                labels.tolist(),
                model.text_encoder().embed(names, recipe.crop_template),
                num_crops=recipe.num_crops,
                num_selected=recipe.selected_crops,
                **crops,
            )
        elif recipe.inputs == "views":
            found = view_features(by_crops, model, shots.images, num_views=recipe.num_crops, **crops)
        else:
            found = store.image_features(model, shots.images, batch_size=recipe.extract_batch_size, **shared)
        rows, tensors, skipped = found.rows, found.tensors, found.skipped
    if len(rows) == 0:
        raise DataError(
            f"None of the {len(shots)} images of {shots.source} can be read: {dict(list(skipped.items())[:3])}."
        )
    return Inputs(recipe, labels[rows], rows, tensors, skipped, shots.images, model.image_processor)


@dataclass(frozen=True)
class HeldOut:
    """Images a run is measured with, by name; the ID ones are under `id`."""

    sets: Mapping[str, ImageSet]
    calibration: ImageSet | None

    @classmethod
    def of(cls, recipe: Recipe, shots: ShotSets) -> HeldOut:
        """Return the sets a recipe names.

        Raises:
            DataError: A set cannot be loaded, or its classes are not those trained on.
            RecipeError: `best_metric` cannot be measured with these sets.
        """
        sets: dict[str, ImageSet] = {}
        if (found := _named(recipe.eval_dataset, recipe.eval_split, recipe, shots)) is not None:
            sets["id"] = _limited(found, recipe.eval_limit)
        for source in recipe.ood_datasets:
            if source in sets:
                raise DataError(f"There are two evaluation sets called {source!r}: name this one otherwise, as ./id.")
            place, split = source_and_split(source)
            sets[source] = _limited(load_image_set(place, split=split, label_column=""), recipe.eval_limit)
        if recipe.best_metric and ("id" not in sets or (recipe.best_metric != "id_accuracy" and len(sets) == 1)):
            raise RecipeError(
                f"best_metric {recipe.best_metric!r} cannot be measured: id_accuracy needs eval_dataset (and images "
                "that are not trained on, where it is rest); auroc and fpr95 need ood_datasets too."
            )
        calibration = _named(recipe.calibration_dataset, recipe.calibration_split, recipe, shots)
        if calibration is None and recipe.calibration_dataset is not None:
            raise DataError("There is nothing left to calibrate on: all images are trained on. Name a source.")
        return cls(sets, calibration)


def features_of(
    images: ImageSet, recipe: Recipe, model: Any, store: FeatureStore, accelerator: Any = None, progress: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return image embeddings and labels of a held-out set, without the images that cannot be read."""
    if recipe.inputs == "pixels":
        # The vision tower is another one after every step: nothing worth keeping.
        read, skipped = image_reader(images.images), dict[int, str]()
        parts, rows = [], []
        for start in range(0, len(images), recipe.extract_batch_size):
            batch = range(start, min(start + recipe.extract_batch_size, len(images)))
            readable = dict(read_images(read, list(batch), skipped))
            rows += list(readable)
            parts.append(embed_images(model, list(readable.values()), recipe.extract_batch_size))
        embeds, kept = torch.cat(parts), torch.tensor(rows, dtype=torch.int64)
    else:
        found = store.image_features(
            model, images.images, batch_size=recipe.extract_batch_size, accelerator=accelerator, progress=progress
        )
        embeds, kept = found.image_embeds, found.rows
    return embeds, None if images.labels is None else torch.tensor(images.labels)[kept]


def _named(source: str | None, split: str | None, recipe: Recipe, shots: ShotSets) -> ImageSet | None:
    if source is None:
        return None
    if source == "rest":
        return shots.rest
    images = _load(source, split, recipe)
    if images.label_names != shots.labels:
        images = images.of_classes(shots.labels)
    return images


def _load(source: str, split: str | None, recipe: Recipe) -> ImageSet:
    from_hub = {"config_name": recipe.dataset_config, "revision": recipe.dataset_revision}
    options: dict[str, Any] = {**_columns(recipe), **(from_hub if source == recipe.dataset else {})}
    return load_image_set(source, split=split, **options)


def _columns(recipe: Recipe) -> dict[str, Any]:
    return {
        "image_column": recipe.image_column,
        "label_column": recipe.label_column,
        "label_names": recipe.label_names,
    }


def _limited(images: ImageSet, limit: int) -> ImageSet:
    if len(images) <= limit:
        return images
    # Evenly over the rows, for they may be sorted by class.
    return images.select([index * len(images) // limit for index in range(limit)])
