"""Images of the pretraining: all in memory as bytes, cropped and coloured on the device, by seed and step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hf_oodclip.training.data import load_image_set
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from hf_oodclip.dataset_images import image_reader
from hf_oodclip.errors import DataError

__all__ = ["MEAN", "SIDE", "STD", "Images", "augment", "load_images", "mix_images", "shuffle_tiles", "standardise"]

SIDE = 64
# Of the Tiny-ImageNet training images; they become part of the image processor.
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


@dataclass(frozen=True)
class Images:
    """Pixels `[n, 3, 64, 64]` uint8, and labels `[n]` that index the given class names."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load_images(sources: Sequence[str], classes: Mapping[str, str], split: str | None = None) -> Images:
    """Return the images of the given classes from 🤗 datasets, folders or parquet files.

    Args:
        sources: As in `load_image_set`; their classes may be called by name or by WordNet id.
        classes: Names by WordNet id; labels are places in this order. Other classes are left out.
        split: The split to take, where sources have several.

    Raises:
        DataError: A source has no labels, or none of the classes.
    """
    place = {alias: index for index, pair in enumerate(classes.items()) for alias in pair}
    pixels, labels = [], []
    for source in sources:
        found = load_image_set(source, split=split)
        if found.label_names is None or found.labels is None:
            raise DataError(f"{source} has no labels: the pocket CLIP is trained on images of named classes.")
        new = [place.get(name, -1) for name in found.label_names]
        rows = [row for row, label in enumerate(found.labels) if new[label] >= 0]
        if not rows:
            raise DataError(
                f"{source} has none of the {len(classes)} classes, such as {next(iter(classes.values()))!r} "
                f"({next(iter(classes))}); it has {', '.join(found.label_names[:5])}."
            )
        read = image_reader(found.images)
        pixels += [_square(read(row)) for row in rows]
        labels += [new[found.labels[row]] for row in rows]
    return Images(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


def _square(image: Image.Image) -> np.ndarray:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (SIDE, SIDE):
        box = (left, top, left + side, top + side)
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    return np.asarray(image)


def standardise(pixels: Tensor) -> Tensor:
    """Return `[B, 3, S, S]` floats of mean 0 and deviation 1 over natural images."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, side: int, smallest_crop: float, generator: torch.Generator) -> Tensor:
    """Return standardised random crops `[B, 3, side, side]`, mirrored by half, with random colours.

    Args:
        pixels: `[B, 3, 64, 64]` uint8.
        side: Pixels of a crop.
        smallest_crop: Least share of the area that a crop keeps; sides differ by up to a quarter.
        generator: On the device of the pixels.
    """
    count, device = len(pixels), pixels.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape, device=device).uniform_(low, high, generator=generator)

    area, ratio = uniform(smallest_crop, 1, count), uniform(-0.22, 0.22, count).exp()
    width, height = ((area * each).sqrt().clamp(max=1) for each in (ratio, 1 / ratio))
    mirrored = 1 - 2 * (uniform(0, 1, count) < 0.5).float()
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 1, 1] = width * mirrored, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1, count) * (1 - width), uniform(-1, 1, count) * (1 - height)
    # A crop that shrinks much is drawn twice as large and averaged, or it would flicker.
    fine = 2 if side <= SIDE // 2 else 1
    grid = affine_grid(theta, [count, 3, fine * side, fine * side], align_corners=False)
    crops = grid_sample(standardise(pixels), grid, padding_mode="reflection", align_corners=False)
    crops = avg_pool2d(crops, fine) if fine > 1 else crops
    grey = crops.mean(1, keepdim=True)
    brightness = torch.empty(count, 1, 1, 1, device=device).normal_(0, 0.15, generator=generator)
    coloured = grey + (crops - grey) * uniform(0.6, 1.4, count, 1, 1, 1)
    return coloured * uniform(0.7, 1.3, count, 1, 1, 1) + brightness


def shuffle_tiles(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Return images whose tiles lie in random order, so that what they showed can no longer be seen.

    By half they are cut into 4 x 4 tiles, by half into 8 x 8, all of a call alike.

    Args:
        crops: `[B, 3, S, S]`, S a multiple of 8.
        generator: On the device of the crops.

    Source: such images as examples of nothing in particular: Sinha et al., Negative Data Augmentation, ICLR 2021.
    """
    count, channels, side, _ = crops.shape
    across = 4 if torch.rand((), generator=generator, device=crops.device).item() < 0.5 else 8
    tiles = crops.unflatten(3, (across, -1)).unflatten(2, (across, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(count, across**2, generator=generator, device=crops.device).argsort(dim=1)
    tiles = tiles[torch.arange(count, device=crops.device)[:, None], order]
    return tiles.unflatten(1, (across, across)).permute(0, 3, 1, 4, 2, 5).reshape(count, channels, side, side)


def mix_images(crops: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Return images mixed in pairs, the place of each partner, and the share of the first of a pair.

    By half it is mixup (Zhang et al., ICLR 2018), by half CutMix (Yun et al., ICCV 2019), share uniform.

    Args:
        crops: `[B, 3, S, S]`.
        generator: On the device of the crops.
    """
    device, side = crops.device, crops.shape[-1]
    partner = torch.randperm(len(crops), generator=generator, device=device)
    share, by_cut, top, left = torch.rand(4, generator=generator, device=device).tolist()
    if by_cut >= 0.5:
        return share * crops + (1 - share) * crops[partner], partner, share
    cut = round(side * math.sqrt(1 - share))
    first, second = round(top * (side - cut)), round(left * (side - cut))
    mixed = crops.clone()
    mixed[:, :, first : first + cut, second : second + cut] = crops[
        partner, :, first : first + cut, second : second + cut
    ]
    return mixed, partner, 1 - cut**2 / side**2
