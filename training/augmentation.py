"""Random crops of an image that depend on its pixels, a seed and the crop's number alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from hf_oodclip.errors import FeatureStoreError, unknown_name
from hf_oodclip.images import load_image

__all__ = ["AUGMENTATIONS", "Augmentation", "Cropper", "find_augmentation", "random_crops"]

_TRIES = 10  # boxes drawn until one lies within the image
_DRAWS = 64  # random numbers a crop, more than are used: the numbers of crop k start at k times this


@dataclass(frozen=True)
class Augmentation:
    """How a random crop is made: a box of the image, resized, flipped, and changed in colour.

    Args:
        scale: Range of the box's share of the image's area.
        ratio: Range of its width to its height, drawn on a logarithmic scale.
        flip: Probability of a mirrored crop.
        jitter: Probability of a change of colour.
        brightness: Brightness is multiplied by a factor in 1 -+ this.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Hue is turned by up to this share of the circle, either way.
        gray: Probability of a grey crop.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray: float = 0.0


# The paper of KR-NFT names colour jitter and grey, the strengths are our choice; its code has neither.
AUGMENTATIONS: dict[str, Augmentation] = {"paper": Augmentation(jitter=0.8, gray=0.2), "code": Augmentation()}


def find_augmentation(name: str) -> Augmentation:
    """Return an augmentation by its name.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


class Cropper:
    """Makes the crops of one image; crop k takes its random numbers from a place of its own in the image's stream."""

    def __init__(self, image: Image.Image, image_processor: Any, augmentation: str, seed: int) -> None:
        self.augmentation = find_augmentation(augmentation)
        self.image = load_image(image)
        self.width, self.height = _crop_size(image_processor)
        self.scale, self.shift = _normalization(image_processor)
        digest = hashlib.blake2b(f"{seed}|{self.image.size}|".encode(), digest_size=16)
        digest.update(self.image.tobytes())
        self.key = int.from_bytes(digest.digest(), "little")

    def crops(self, start: int, stop: int) -> Tensor:
        """Return crops `start` to `stop` as pixel values `[stop - start, 3, H, W]`."""
        # The stream yields 4 numbers a step.
        stream = np.random.Philox(key=self.key, counter=start * _DRAWS // 4)
        draws = np.random.Generator(stream).random((stop - start, _DRAWS))
        lefts, tops, widths, heights = self._boxes(draws[:, : 4 * _TRIES])
        pixels = np.empty((stop - start, self.height, self.width, 3), dtype=np.uint8)
        for index in range(stop - start):
            left, top = int(lefts[index]), int(tops[index])
            box = (left, top, left + int(widths[index]), top + int(heights[index]))
            crop = self.image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
            pixels[index] = np.asarray(_recolour(crop, self.augmentation, draws[index, 4 * _TRIES + 1 :]))
        mirrored = draws[:, 4 * _TRIES] < self.augmentation.flip
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(self.scale).add_(self.shift)

    def _boxes(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return left, top, width and height of the first box of each crop that fits, else the middle of the image."""
        area, ratio, across, down = draws.reshape(len(draws), _TRIES, 4).transpose(2, 0, 1)
        (low, high), (thin, wide) = self.augmentation.scale, self.augmentation.ratio
        area = (low + (high - low) * area) * self.image.width * self.image.height
        ratio = np.exp(np.log(thin) + (np.log(wide) - np.log(thin)) * ratio)
        widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (widths > 0) & (widths <= self.image.width) & (heights > 0) & (heights <= self.image.height)
        lefts = np.floor(across * (self.image.width - widths + 1)).astype(np.int64)
        tops = np.floor(down * (self.image.height - heights + 1)).astype(np.int64)
        middle = self._middle()
        first, rows, fitting = fits.argmax(axis=1), np.arange(len(draws)), fits.any(axis=1)
        found = (lefts, tops, widths, heights)
        left, top, width, height = (
            np.where(fitting, values[rows, first], fallback) for values, fallback in zip(found, middle, strict=True)
        )
        return left, top, width, height

    def _middle(self) -> tuple[int, int, int, int]:
        thin, wide = self.augmentation.ratio
        width = min(self.image.width, max(1, round(self.image.height * wide)))
        height = min(self.image.height, max(1, round(self.image.width / thin)))
        return (self.image.width - width) // 2, (self.image.height - height) // 2, width, height


def _recolour(crop: Image.Image, augmentation: Augmentation, draws: np.ndarray) -> Image.Image:
    if draws[0] < augmentation.jitter:
        factors = 2 * draws[2:6] - 1
        for change in np.argsort(draws[6:10]):
            if change == 0:
                crop = ImageEnhance.Brightness(crop).enhance(1 + augmentation.brightness * factors[0])
            elif change == 1:
                crop = ImageEnhance.Contrast(crop).enhance(1 + augmentation.contrast * factors[1])
            elif change == 2:
                crop = ImageEnhance.Color(crop).enhance(1 + augmentation.saturation * factors[2])
            else:
                crop = _turn_hue(crop, augmentation.hue * factors[3])
    if draws[1] < augmentation.gray:
        crop = crop.convert("L").convert("RGB")
    return crop


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turn = round(255 * share)
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _crop_size(image_processor: Any) -> tuple[int, int]:
    settings = image_processor.to_dict()
    size = settings.get("crop_size" if settings.get("do_center_crop") else "size") or {}
    return size.get("width") or size["shortest_edge"], size.get("height") or size["shortest_edge"]


def _normalization(image_processor: Any) -> tuple[Tensor, Tensor]:
    """Return factor and shift `[3, 1, 1]` that turn 0..255 into pixel values."""
    rescale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    mean = torch.tensor(image_processor.image_mean if image_processor.do_normalize else [0.0] * 3)
    std = torch.tensor(image_processor.image_std if image_processor.do_normalize else [1.0] * 3)
    return (rescale / std).reshape(3, 1, 1), (-mean / std).reshape(3, 1, 1)


def random_crops(
    image: Image.Image, image_processor: Any, augmentation: str, seed: int, start: int, stop: int
) -> Tensor:
    """Return random crops of an image as pixel values, `[stop - start, 3, H, W]` float32.

    A crop is a function of the seed, the image's pixels and the crop's number: crop 5 is the same whether it is
    made alone or among a thousand, and wherever the image lies. `paper` and `code` share boxes and flips.

    Args:
        image: Any form `load_image` takes.
        image_processor: Gives size, mean and standard deviation.
        augmentation: A name in `AUGMENTATIONS`: `paper` or `code`.
        seed: Any whole number.
        start: Number of the first crop.
        stop: Number after the last.

    Raises:
        FeatureStoreError: Not `0 <= start <= stop`.
        UnknownNameError: There is no such augmentation.

    Source: KR-NFT, ACM MM 2025, and its code.

    Example:
        >>> import hf_oodclip
        >>> from transformers import AutoImageProcessor
        >>> processor = AutoImageProcessor.from_pretrained(hf_oodclip.pocket_path())
        >>> image = Image.linear_gradient("L")
        >>> crops = random_crops(image, processor, "code", seed=0, start=0, stop=8)
        >>> bool((crops[5:] == random_crops(image, processor, "code", seed=0, start=5, stop=8)).all())
        True
    """
    if not 0 <= start <= stop:
        raise FeatureStoreError(f"Crops are numbered from 0: need 0 <= start <= stop, got {start} and {stop}.")
    return Cropper(image, image_processor, augmentation, seed).crops(start, stop)
