"""The layer around a model's `similarity`: cosines with text features that the image moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...similarity import TrainingCosines
from ..base import OODAdapterLayer
from .config import NFTConfig
from .gemm import TextMap, TunedCosines, tuned_cosines

__all__ = ["NFTLayer"]

_PARAMETERS = (
    "tuned_scale",
    "tuned_shift",
    *(
        f"tuned_{network}_{layer}_{part}"
        for network in ("scale", "shift", "text")
        for layer in ("down", "up")
        for part in ("weight", "bias")
    ),
)


class NFTLayer(OODAdapterLayer):
    """Holds the NFT adapters of a model by name, and computes cosines with the active one.

    Parameters are kept as changes: `tuned_scale` is `w - 1` in the notation of `NFTConfig`, so that zero
    is the identity and weight decay pulls towards it. The networks of labels and negatives are stacked.
    """

    adapter_layer_names = _PARAMETERS
    title = "NFT"

    def initialise(self, name: str, values: Tensor, config: NFTConfig, model: Any) -> None:
        if "_down_" in name:
            # As torch initialises a linear layer of this width.
            bound = 1 / math.sqrt(self.dim)
            nn.init.uniform_(values, -bound, bound)

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines."""
        adapter_name = self.acting_adapter()
        if adapter_name is None:
            return self.base_layer(image_embeds, label_embeds, negative_embeds)
        labels, negatives = self._cosines(adapter_name, image_embeds, label_embeds, negative_embeds, None, False)
        return labels[0], negatives[0]

    def training_cosines(
        self,
        image_embeds: Tensor,
        label_embeds: Tensor,
        negative_embeds: Tensor,
        queries: Tensor | None = None,
    ) -> TrainingCosines:
        """Return the cosines of images, or of their crops, with the knowledge cosines `c . c'`.

        Args:
            image_embeds: The images that move the text features, `[B, D]`.
            label_embeds: Text features of the labels, `[N, D]`.
            negative_embeds: Text features of the negatives, `[M, D]`.
            queries: Features to compare with the moved text features, `[B, Q, D]`, such as Q crops an
                image; the images themselves when None.
        """
        adapter_name = self.acting_adapter()
        if adapter_name is None:
            return self.base_layer.training_cosines(image_embeds, label_embeds, negative_embeds, queries)
        labels, negatives = self._cosines(
            adapter_name, image_embeds, label_embeds, negative_embeds, queries, knowledge=True
        )
        asked = image_embeds if queries is None else queries
        return TrainingCosines(labels[0], negatives[0], labels[1], negatives[1], asked)

    def _cosines(
        self,
        adapter_name: str,
        image_embeds: Tensor,
        label_embeds: Tensor,
        negative_embeds: Tensor,
        queries: Tensor | None,
        knowledge: bool,
    ) -> tuple[Any, Any]:
        config = self.configs[adapter_name]
        self.check_classes(label_embeds.shape[-2], negative_embeds.shape[-2], adapter_name)
        if label_embeds.ndim == 3 or negative_embeds.ndim == 3:
            found = []
            for row in range(len(image_embeds)):
                own_labels = label_embeds[row] if label_embeds.ndim == 3 else label_embeds
                own_negatives = negative_embeds[row] if negative_embeds.ndim == 3 else negative_embeds
                image, query = image_embeds[row : row + 1], None if queries is None else queries[row : row + 1]
                found.append(self._cosines(adapter_name, image, own_labels, own_negatives, query, knowledge))
            return _together([each[0] for each in found]), _together([each[1] for each in found])
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, label_embeds.dtype), torch.float32)
        # Cosines lose their meaning in half precision, whatever an autocast region around this says.
        with torch.autocast(image_embeds.device.type, enabled=False):
            images = normalize(image_embeds.to(dtype), dim=-1)
            asked = images if queries is None else normalize(queries.to(dtype), dim=-1)
            groups = [normalize(embeds.to(dtype), dim=-1) for embeds in (label_embeds, negative_embeds)]
            maps = self._text_maps(adapter_name, config, images, groups)
            deltas_dtype = None if config.deltas_dtype is None else getattr(torch, config.deltas_dtype)
            labels, negatives = (
                tuned_cosines(asked, classes, text_map, knowledge=knowledge, deltas_dtype=deltas_dtype)
                for classes, text_map in zip(groups, maps, strict=True)
            )
        return labels, negatives

    def _text_maps(self, name: str, config: NFTConfig, images: Tensor, groups: list[Tensor]) -> list[TextMap]:
        """Return how the images move labels and negatives."""
        dtype = images.dtype
        shared = config.variant in ("uni", "constant")
        scales: Tensor | None = None
        shifts: Tensor | None = None
        if config.conditional:
            shifts = self._network(name, "shift", images.expand(1 if shared else 2, *images.shape))
            if config.variant != "mlp":
                scales = self._network(name, "scale", images.expand(1 if shared else 2, *images.shape))
        maps = []
        for group, classes in enumerate(groups):
            row = 0 if shared else group
            scale = None if scales is None else scales[row]
            shift = None if shifts is None else shifts[row]
            if config.variant == "mlp":
                moved = self._network(name, "text", classes.unsqueeze(0), row)[0]
                maps.append(TextMap(shift=shift, delta=moved))
                continue
            vectors = [getattr(self, f"tuned_{what}")[name].to(dtype) for what in ("scale", "shift")]
            if config.variant == "class_specific":
                first = 0 if group == 0 else len(groups[0])
                vectors = [vector[first : first + len(classes)] for vector in vectors]
                maps.append(TextMap(scale, shift, vectors[0] * classes + vectors[1]))
            elif scale is None or shift is None:
                maps.append(TextMap(delta=vectors[0][row] * classes + vectors[1][row]))
            else:
                maps.append(TextMap(scale + vectors[0][row], shift + vectors[1][row]))
        return maps

    def _network(self, name: str, network: str, inputs: Tensor, row: int | None = None) -> Tensor:
        """Return `up(relu(down(x)))` of `[G, T, D]` features by the stacked networks, or by one of them."""
        rows = slice(None) if row is None else slice(row, row + 1)

        def weights(what: str) -> Tensor:
            return getattr(self, f"tuned_{network}_{what}")[name][rows].to(inputs.dtype)

        hidden = torch.baddbmm(weights("down_bias").unsqueeze(1), inputs, weights("down_weight").mT).relu()
        outputs = torch.baddbmm(weights("up_bias").unsqueeze(1), hidden, weights("up_weight").mT)
        return outputs * self.configs[name].residual_scale


def _together(found: list[TunedCosines]) -> TunedCosines:
    """Put the cosines of single images into one batch."""
    knowledge = [each.knowledge for each in found if each.knowledge is not None]
    return TunedCosines(torch.cat([each.cosines for each in found]), torch.cat(knowledge) if knowledge else None)
