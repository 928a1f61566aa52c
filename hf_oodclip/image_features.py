"""From whatever holds images to batches of image embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import encoders
from .errors import ImageReadError
from .images import load_image

__all__ = ["iterate_batches", "iterate_image_embeds", "pixel_values_of"]


def pixel_values_of(image_processor: Any, images: list[Any], timeout: float | None = None) -> Tensor:
    """Return the pixel values `[B, 3, H, W]` of images given in any form `load_image` takes."""
    loaded = [load_image(image, timeout) for image in images]
    # Said outright, because the layout of an image 1 or 3 pixels wide cannot be guessed.
    return image_processor(images=loaded, return_tensors="pt", input_data_format="channels_last")["pixel_values"]


def iterate_image_embeds(model: Any, images: Any, batch_size: int = 32) -> Iterator[Tensor]:
    """Yield projected image embeddings `[B, D]` (before normalisation) of any source of images.

    Args:
        model: The model whose vision tower and image processor are used.
        images: A tensor of pixel values `[n, 3, H, W]`, or an iterable of images in any form
            `load_image` takes, or of rows that hold one under `image`.
        batch_size: Images a forward pass.
    """
    if batch_size < 1:
        raise ImageReadError(f"batch_size must be at least 1, got {batch_size}.")
    device, dtype = model.clip.visual_projection.weight.device, model.clip.dtype
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            for batch in iterate_batches(images, batch_size):
                pixels = batch if isinstance(batch, Tensor) else pixel_values_of(model.image_processor, batch)
                embeds, _ = encoders.encode_images(model.clip, pixels.to(device, dtype))
                yield embeds
    finally:
        for module, training in modes:
            module.training = training


def _image_of(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    if "image" not in row:
        raise ImageReadError(f"A row has no 'image' but {sorted(row)}: rename the column, or give the column itself.")
    return row["image"]


def iterate_batches(images: Any, batch_size: int) -> Iterator[Any]:
    """Yield batches of any source of images `iterate_image_embeds` takes: pixel values, or a list of images."""
    if isinstance(images, Tensor):
        yield from images.split(batch_size)
        return
    if isinstance(images, np.ndarray) and images.ndim <= 3:
        images = [images]
    if isinstance(images, str) or not isinstance(images, Iterable):
        images = [images]
    iterator = (_image_of(row) for row in images)
    while batch := list(islice(iterator, batch_size)):
        yield batch
