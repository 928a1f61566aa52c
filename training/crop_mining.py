"""The crops of an image most and least like its label, found without keeping the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from hf_oodclip.errors import FeatureStoreError, NonFiniteError

from .augmentation import Cropper

__all__ = ["CHUNK", "MinedCrops", "check_counts", "mine_crops"]

CHUNK = 64  # crops encoded at once


@dataclass(frozen=True)
class MinedCrops:
    """The crops of an image most and least like its label.

    Args:
        positives: Projected embeddings before normalisation, `[Q, D]`, most similar first.
        negatives: `[Q, D]`, least similar first.
        positive_crops: Their crop numbers, `[Q]` int64.
        negative_crops: `[Q]` int64.
    """

    positives: Tensor
    negatives: Tensor
    positive_crops: Tensor
    negative_crops: Tensor


def mine_crops(
    encode: Callable[[Tensor], Tensor],
    image: Image.Image,
    image_processor: Any,
    label_embed: Tensor,
    *,
    num_crops: int,
    num_selected: int,
    augmentation: str = "paper",
    seed: int = 0,
    chunk_size: int = CHUNK,
) -> MinedCrops:
    """Return the crops of an image most and least like its label.

    Crops are ranked by the cosine of their embedding with the label's, then by number; the first `num_selected`
    and the last `num_selected` are returned. Memory does not grow with `num_crops`.

    Args:
        encode: Turns pixel values `[B, 3, H, W]` into embeddings `[B, D]`.
        image: Any form `load_image` takes.
        image_processor: Gives size, mean and standard deviation.
        label_embed: Text embedding of the image's label, `[D]`.
        num_crops: Crops looked at (256 in the paper, 128 in its code).
        num_selected: Crops kept of each kind (32); at most half of them all.
        augmentation: A name in `AUGMENTATIONS`.
        seed: Any whole number.
        chunk_size: Crops encoded at once.

    Raises:
        FeatureStoreError: The numbers do not fit.
        UnknownNameError: There is no such augmentation.
        NonFiniteError: The label's embedding is NaN, infinite or zero, or a crop's is NaN or infinite.

    Source: KR-NFT, ACM MM 2025, and its code.

    Example:
        >>> import hf_oodclip
        >>> from hf_oodclip.feature_store import embed_images
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> mined = mine_crops(
        ...     lambda pixels: embed_images(model, pixels),
        ...     Image.linear_gradient("L"),
        ...     model.image_processor,
        ...     model.text_bank.label_embeds[0],
        ...     num_crops=8,
        ...     num_selected=2,
        ... )
        >>> mined.positives.shape, len(mined.negative_crops)
        (torch.Size([2, 256]), 2)
    """
    check_counts(num_crops, num_selected, chunk_size)
    cropper = Cropper(image, image_processor, augmentation, seed)
    best: tuple[Tensor, ...] = ()
    worst: tuple[Tensor, ...] = ()
    for start in range(0, num_crops, chunk_size):
        stop = min(start + chunk_size, num_crops)
        embeds = encode(cropper.crops(start, stop))
        cosines = _cosines(embeds, label_embed, start)
        chunk = (cosines, embeds, torch.arange(start, stop, device=embeds.device))
        # Both sorts are stable: in one, lower numbers come first, in the other, higher ones.
        best = _first(best, chunk, num_selected, descending=True)
        worst = _first(tuple(part.flip(0) for part in chunk), worst, num_selected, descending=False)
    return MinedCrops(best[1], worst[1], best[2], worst[2])


def _first(before: tuple[Tensor, ...], after: tuple[Tensor, ...], count: int, descending: bool) -> tuple[Tensor, ...]:
    parts = [torch.cat(pair) for pair in zip(before, after, strict=True)] if before and after else before or after
    order = torch.sort(parts[0], stable=True, descending=descending).indices[:count]
    return tuple(part[order] for part in parts)


def _cosines(embeds: Tensor, label_embed: Tensor, start: int) -> Tensor:
    dtype = torch.promote_types(embeds.dtype, torch.float32)
    label = label_embed.to(embeds.device, dtype)
    if not torch.isfinite(label).all() or not label.any():
        raise NonFiniteError("The label's embedding is NaN, infinite or zero: crops cannot be compared with it.")
    # Not a matrix product: a row of one must not depend on how many there are.
    cosines = (normalize(embeds.to(dtype), dim=-1) * normalize(label, dim=-1)).sum(-1)
    if not torch.isfinite(cosines).all():
        first = start + int((~torch.isfinite(cosines)).nonzero()[0])
        raise NonFiniteError(
            f"The embedding of crop {first} is NaN or infinite: the checkpoint's weights are damaged, or its dtype "
            "overflows; try dtype=torch.float32."
        )
    return cosines


def check_counts(num_crops: int, num_selected: int, chunk_size: int = CHUNK) -> None:
    """Raise unless so many crops can be chosen from so many.

    Raises:
        FeatureStoreError: They cannot.
    """
    if num_selected < 1 or 2 * num_selected > num_crops:
        raise FeatureStoreError(
            f"num_selected must be at least 1 and at most half of num_crops, so that no crop is both like and unlike "
            f"its label; got num_selected={num_selected}, num_crops={num_crops}."
        )
    if chunk_size < 1:
        raise FeatureStoreError(f"chunk_size must be at least 1, got {chunk_size}.")
