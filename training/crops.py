"""The crops of images most and least like their label, and random views of images, as stored features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_oodclip.dataset_images import image_reader, read_images
from hf_oodclip.errors import FeatureStoreError, NonFiniteError
from hf_oodclip.feature_store import FeatureRows, Features, FeatureStore, embed_images, features_key

from .augmentation import AUGMENTATIONS, Augmentation, Cropper, find_augmentation, random_crops
from .crop_mining import CHUNK, MinedCrops, check_counts, mine_crops

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "MinedCrops",
    "crop_features",
    "mine_crops",
    "random_crops",
    "view_features",
]


def crop_features(
    store: FeatureStore,
    model: Any,
    dataset: Any,
    labels: Sequence[int],
    label_embeds: Tensor,
    *,
    num_crops: int,
    num_selected: int,
    augmentation: str,
    seed: int,
    image_column: str = "image",
    accelerator: Any = None,
    progress: bool = False,
) -> Features:
    """Return embeddings of each image and of its crops most and least like its label, see `mine_crops`.

    The tensors are `image_embeds` `[n, D]` of the whole image, `positives` and `negatives` `[n, Q, D]`, all
    before normalisation, and the crops' numbers `positive_crops` and `negative_crops` `[n, Q]`.

    Args:
        store: Where they are kept. A killed run loses up to `shard_rows` images with all their crops.
        model: The model whose vision tower and image processor are used.
        dataset: As in `FeatureStore.image_features`.
        labels: Class index of each row of the dataset.
        label_embeds: Text embeddings of the classes, `[N, D]`.
        num_crops: Crops of each image looked at.
        num_selected: Crops kept of each kind, Q.
        augmentation: A name in `AUGMENTATIONS`.
        seed: Any whole number.
        image_column: Where a row holds its image.
        accelerator: An `accelerate.Accelerator` whose processes share the work.
        progress: Show a bar.

    Raises:
        FeatureStoreError: Counts or labels do not fit, or see `FeatureStore.collect`.
        UnknownNameError: There is no such augmentation or column.
        NonFiniteError: A label's embedding is NaN, infinite or zero, or an image's is NaN; the message names its row.
    """
    check_counts(num_crops, num_selected)
    classes = _checked_labels(labels, dataset, label_embeds)
    if not torch.isfinite(label_embeds).all():
        raise NonFiniteError("label_embeds holds NaN or infinity: the text tower's weights are damaged.")
    options = {
        "features": "mined crops",
        "num_crops": num_crops,
        "num_selected": num_selected,
        "labels": _hash(torch.tensor(classes)),
        "label_embeds": _hash(label_embeds),
    }

    def features_of(row: int, image: Image.Image) -> dict[str, Tensor]:
        mined = mine_crops(
            lambda pixels: embed_images(model, pixels, CHUNK),
            image,
            model.image_processor,
            label_embeds[classes[row]],
            num_crops=num_crops,
            num_selected=num_selected,
            augmentation=augmentation,
            seed=seed,
        )
        return {"image_embeds": embed_images(model, [image])[0], **vars(mined)}

    nothing = embed_images(model, [])
    numbers = torch.empty(0, num_selected, dtype=torch.int64)
    crops = nothing.new_empty(0, num_selected, nothing.shape[1])
    empty = {
        "image_embeds": nothing,
        "positives": crops,
        "negatives": crops,
        "positive_crops": numbers,
        "negative_crops": numbers,
    }
    return _collect(
        store, model, dataset, options, augmentation, seed, features_of, empty, image_column, accelerator, progress
    )


def view_features(
    store: FeatureStore,
    model: Any,
    dataset: Any,
    *,
    num_views: int,
    augmentation: str,
    seed: int,
    image_column: str = "image",
    accelerator: Any = None,
    progress: bool = False,
) -> Features:
    """Return embeddings of each image and of random crops of it, all before normalisation.

    The tensors are `image_embeds` `[n, D]` of the whole image and `views` `[n, num_views, D]`, by crop number.

    Args:
        store: Where they are kept.
        model: The model whose vision tower and image processor are used.
        dataset: As in `FeatureStore.image_features`.
        num_views: Crops of each image.
        augmentation: A name in `AUGMENTATIONS`.
        seed: Any whole number.
        image_column: Where a row holds its image.
        accelerator: An `accelerate.Accelerator` whose processes share the work.
        progress: Show a bar.

    Raises:
        FeatureStoreError: `num_views` is below 1, or see `FeatureStore.collect`.
        UnknownNameError: There is no such augmentation or column.
        NonFiniteError: The vision tower produces NaN or infinity.
    """
    if num_views < 1:
        raise FeatureStoreError(f"num_views must be at least 1, got {num_views}.")

    def features_of(row: int, image: Image.Image) -> dict[str, Tensor]:
        cropper = Cropper(image, model.image_processor, augmentation, seed)
        views = [
            embed_images(model, cropper.crops(start, min(start + CHUNK, num_views)), CHUNK)
            for start in range(0, num_views, CHUNK)
        ]
        return {"image_embeds": embed_images(model, [image])[0], "views": torch.cat(views)}

    nothing = embed_images(model, [])
    empty = {"image_embeds": nothing, "views": nothing.new_empty(0, num_views, nothing.shape[1])}
    options = {"features": "views", "num_views": num_views}
    return _collect(
        store, model, dataset, options, augmentation, seed, features_of, empty, image_column, accelerator, progress
    )


def _collect(
    store: FeatureStore,
    model: Any,
    dataset: Any,
    options: dict[str, Any],
    augmentation: str,
    seed: int,
    features_of: Callable[[int, Image.Image], dict[str, Tensor]],
    empty: dict[str, Tensor],
    image_column: str,
    accelerator: Any,
    progress: bool,
) -> Features:
    options = {**options, "augmentation": asdict(find_augmentation(augmentation)), "seed": seed}
    read = image_reader(dataset, image_column)

    def compute(rows: list[int]) -> FeatureRows:
        kept: list[int] = []
        skipped: dict[int, str] = {}
        parts = {name: [tensor] for name, tensor in empty.items()}
        for row, image in read_images(read, rows, skipped):
            try:
                found = features_of(row, image)
            except NonFiniteError as error:
                raise NonFiniteError(f"Row {row}: {error}") from error
            kept.append(row)
            for name, tensor in found.items():
                parts[name].append(tensor.unsqueeze(0))
        return FeatureRows({name: torch.cat(tensors) for name, tensors in parts.items()}, kept, skipped)

    key = features_key(model, dataset, image_column=image_column, **options)
    return store.collect(key, len(dataset), compute, accelerator=accelerator, progress=progress)


def _checked_labels(labels: Sequence[int], dataset: Any, label_embeds: Tensor) -> list[int]:
    classes = [int(label) for label in labels]
    if len(classes) != len(dataset):
        raise FeatureStoreError(f"Each row needs one label: got {len(classes)} labels for {len(dataset)} rows.")
    if label_embeds.ndim != 2:
        raise FeatureStoreError(f"label_embeds must be [classes, width], got shape {tuple(label_embeds.shape)}.")
    for row, label in enumerate(classes):
        if not 0 <= label < len(label_embeds):
            raise FeatureStoreError(
                f"Row {row} has label {label}, but label_embeds holds classes 0 to {len(label_embeds) - 1}: drop rows "
                "without a label, or give the embeddings of all classes."
            )
    return classes


def _hash(tensor: Tensor) -> str:
    raw = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy()
    described = f"{tuple(tensor.shape)} {tensor.dtype}|".encode()
    return hashlib.blake2b(described + raw.tobytes(), digest_size=16).hexdigest()
