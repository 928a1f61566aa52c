"""The layer around a model's `similarity` that scales and shifts image features, text features, or both."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.linalg import vector_norm

from ..feature_map import FeatureMapLayer
from .config import SSFConfig

__all__ = ["SSFLayer"]


class SSFLayer(FeatureMapLayer):
    """Holds the SSF adapters of a model by name, and maps features with the active one.

    Scales are kept as changes, `g - 1` in the notation of `SSFConfig`, so that zero is the identity and
    weight decay pulls towards it.
    """

    adapter_layer_names = ("ssf_image_scale", "ssf_image_shift", "ssf_text_scale", "ssf_text_shift")
    title = "SSF"

    def initialise(self, name: str, values: Tensor, config: SSFConfig, model: Any) -> None:
        nn.init.normal_(values, std=config.init_std)

    def map_images(self, name: str, images: Tensor) -> Tensor:
        return self._scale_and_shift(name, "image", images)

    def map_texts(self, name: str, labels: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        return self._scale_and_shift(name, "text", labels), self._scale_and_shift(name, "text", negatives)

    def _scale_and_shift(self, name: str, feature: str, embeds: Tensor) -> Tensor:
        if self.configs[name].on not in (feature, "both"):
            return embeds
        scale, shift = (getattr(self, f"ssf_{feature}_{part}")[name].to(embeds.dtype) for part in ("scale", "shift"))
        # Of the direction of g * f / |f| + d, and for a new adapter f itself, bit for bit.
        return embeds + scale * embeds + vector_norm(embeds, dim=-1, keepdim=True) * shift
