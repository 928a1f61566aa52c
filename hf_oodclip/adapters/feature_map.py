"""Adapters that map image features, text features, or both, before their cosines are taken."""

from __future__ import annotations

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
        """Return the adapted features of labels `[N, D]` and negatives `[M, D]`, not normalised."""
        return labels, negatives

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines."""
        found = self.training_cosines(image_embeds, label_embeds, negative_embeds)
        return found.labels, found.negatives

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
        self.check_classes(label_embeds.shape[-2], negative_embeds.shape[-2], name)
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, label_embeds.dtype), torch.float32)
        asked = image_embeds if queries is None else queries
        with torch.autocast(image_embeds.device.type, enabled=False):
            asked, label_embeds, negative_embeds = (x.to(dtype) for x in (asked, label_embeds, negative_embeds))
            images = self.map_images(name, asked)
            labels, negatives = self.map_texts(name, label_embeds, negative_embeds)
            cosines = self.base_layer.training_cosines(
                images if queries is None else image_embeds, labels, negatives, None if queries is None else images
            )
            kept = (
                (normalize(old, dim=-1) * normalize(new, dim=-1)).sum(-1).reshape(-1, old.shape[-2])
                for old, new in ((label_embeds, labels), (negative_embeds, negatives))
            )
            return TrainingCosines(cosines.labels, cosines.negatives, *kept)
