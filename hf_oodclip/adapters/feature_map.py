"""Adapters that map image features, text features, or both, before their cosines are taken."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..similarity import TrainingCosines
from .base import OODAdapterLayer

__all__ = ["FeatureMapLayer"]


class FeatureMapLayer(OODAdapterLayer):
    """A layer around `similarity` that maps image features, text features, or both, one by one.

    A kind of adapter overrides `map_images`, `map_texts`, or both.
    """

    def map_images(self, name: str, images: Tensor) -> Tensor:
        """Return the adapted features of images or crops, `[..., D]` in and out, not normalised."""
        return images

    def map_texts(self, name: str, labels: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """Return the adapted features of labels and negatives, `[K, D]` or `[B, K, D]`, not normalised."""
        return labels, negatives

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines."""
        name = self.acting_adapter()
        if name is None:
            return self.base_layer(image_embeds, label_embeds, negative_embeds)
        return self.base_layer(*self._mapped(name, image_embeds, label_embeds, negative_embeds))

    def training_cosines(
        self,
        image_embeds: Tensor,
        label_embeds: Tensor,
        negative_embeds: Tensor,
        queries: Tensor | None = None,
    ) -> TrainingCosines:
        """Return the cosines of images, or of their crops (`queries`, `[B, Q, D]`), with knowledge cosines."""
        name = self.acting_adapter()
        if name is None:
            return self.base_layer.training_cosines(image_embeds, label_embeds, negative_embeds, queries)
        asked = image_embeds if queries is None else queries
        images, labels, negatives = self._mapped(name, asked, label_embeds, negative_embeds)
        found = self.base_layer.training_cosines(
            images if queries is None else image_embeds, labels, negatives, None if queries is None else images
        )
        return replace(
            found, kept_labels=_kept(label_embeds, labels), kept_negatives=_kept(negative_embeds, negatives)
        )

    def _mapped(
        self, name: str, asked: Tensor, label_embeds: Tensor, negative_embeds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return images or crops, labels and negatives as the adapter maps them, in fp32 at least."""
        self.check_classes(label_embeds.shape[-2], negative_embeds.shape[-2], name)
        dtype = torch.promote_types(torch.promote_types(asked.dtype, label_embeds.dtype), torch.float32)
        with torch.autocast(asked.device.type, enabled=False):
            images = self.map_images(name, asked.to(dtype))
            return images, *self.map_texts(name, label_embeds.to(dtype), negative_embeds.to(dtype))


def _kept(old: Tensor, new: Tensor) -> Tensor:
    """Return the cosines of text features before and after, `[1, K]` or `[B, K]`."""
    return torch.atleast_2d((normalize(old.to(new.dtype), dim=-1) * normalize(new, dim=-1)).sum(-1))
