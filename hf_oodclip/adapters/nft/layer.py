"""The layer around a model's `similarity`: cosines with text features that the image moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...errors import AdapterError
from ...similarity import OODSimilarity
from .config import NFTConfig
from .gemm import TextMap, tuned_cosines

__all__ = ["NFTCosines", "NFTLayer"]

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


@dataclass(frozen=True)
class NFTCosines:
    """What training needs of one batch: cosines, and how far every text feature was moved.

    Args:
        labels: Cosines with moved label features, `[B, N]`, or `[B, Q, N]` for crops.
        negatives: Cosines with moved negative features, `[B, M]` or `[B, Q, M]`.
        kept_labels: Cosines of moved with original label features, `[B, N]`; `[1, N]` when they are
            the same for all images.
        kept_negatives: The same of the negatives.
    """

    labels: Tensor
    negatives: Tensor
    kept_labels: Tensor
    kept_negatives: Tensor


class NFTLayer(nn.Module, BaseTunerLayer):
    """Holds the NFT adapters of a model by name, and computes cosines with the active one.

    Parameters are kept as changes: `tuned_scale` is `w - 1` in the notation of `NFTConfig`, so that zero
    is the identity and weight decay pulls towards it. The networks of labels and negatives are stacked.

    Args:
        base_layer: The `similarity` of the model.
        adapter_name: Name of the first adapter.
        config: Its settings.
        device: Where its parameters go.
    """

    adapter_layer_names = _PARAMETERS
    other_param_names = ("configs",)

    def __init__(
        self, base_layer: OODSimilarity, adapter_name: str, config: NFTConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.configs: dict[str, NFTConfig] = {}
        for name in _PARAMETERS:
            setattr(self, name, nn.ParameterDict())
        self.update_layer(adapter_name, config, device)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.base_layer.dim

    def update_layer(self, adapter_name: str, config: NFTConfig, device: torch.device | None = None) -> None:
        """Add an adapter that changes nothing yet."""
        for name, shape in config.parameter_shapes(self.dim).items():
            values = torch.zeros(shape, device=device)
            if "_down_" in name:
                # As torch initialises a linear layer of this width.
                bound = 1 / math.sqrt(self.dim)
                nn.init.uniform_(values, -bound, bound)
            getattr(self, name)[adapter_name] = nn.Parameter(values)
        self.configs[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def check_classes(self, num_labels: int, num_negatives: int, adapter_name: str | None = None) -> None:
        """Raise `AdapterError` when an adapter that knows its classes is given another number of them.

        Args:
            num_labels: How many labels there are, or would be.
            num_negatives: How many negatives.
            adapter_name: Ask this adapter; all of them when None.
        """
        for name, config in self.configs.items():
            if adapter_name in (None, name):
                config.settle_classes(num_labels, num_negatives)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise AdapterError(
            "NFT moves the text features anew for every image, so it cannot be merged into the model; keep it "
            "active, or call unload() for the model without it."
        )

    def unmerge(self) -> None:
        """Do nothing: NFT is never merged."""

    def acting_adapter(self) -> str | None:
        """Return the name of the adapter that acts, or None when the base does.

        Raises:
            AdapterError: Two NFT adapters are active at once.
        """
        acting = [name for name in self.active_adapters if name in self.configs]
        if self.disable_adapters or not acting:
            return None
        if len(acting) > 1:
            raise AdapterError(
                f"The NFT adapters {acting} are active together, but their maps do not add up: activate one, "
                f"such as set_adapter({acting[0]!r})."
            )
        return acting[0]

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
    ) -> NFTCosines:
        """Return the cosines of images, or of their crops, with the knowledge cosines `c . c'`.

        Args:
            image_embeds: The images that move the text features, `[B, D]`.
            label_embeds: Text features of the labels, `[N, D]`.
            negative_embeds: Text features of the negatives, `[M, D]`.
            queries: Features to compare with the moved text features, `[B, Q, D]`, such as Q crops an
                image; the images themselves when None.

        Raises:
            AdapterError: No NFT adapter is active.
        """
        adapter_name = self.acting_adapter()
        if adapter_name is None:
            raise AdapterError(f"No NFT adapter is active (there are {sorted(self.configs)}): call set_adapter first.")
        labels, negatives = self._cosines(
            adapter_name, image_embeds, label_embeds, negative_embeds, queries, knowledge=True
        )
        return NFTCosines(labels[0], negatives[0], labels[1], negatives[1])

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
        self.check_classes(len(label_embeds), len(negative_embeds), adapter_name)
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
