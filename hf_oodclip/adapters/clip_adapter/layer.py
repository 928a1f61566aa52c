"""The layer around a model's `similarity` that mixes the output of a small network into image features."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from ..feature_map import FeatureMapLayer
from .config import CLIPAdapterConfig

__all__ = ["CLIPAdapterLayer"]


class CLIPAdapterLayer(FeatureMapLayer):
    """Holds the CLIP-Adapters of a model by name, and maps image features with the active one."""

    adapter_layer_names = ("clip_adapter_down", "clip_adapter_up")
    title = "CLIP-Adapter"

    clip_adapter_down: nn.ParameterDict
    clip_adapter_up: nn.ParameterDict

    def initialise(self, name: str, values: Tensor, config: CLIPAdapterConfig, model: Any) -> None:
        # As torch initialises a linear layer of this width.
        bound = 1 / math.sqrt(values.shape[1])
        nn.init.uniform_(values, -bound, bound)

    def map_images(self, name: str, images: Tensor) -> Tensor:
        ratio = self.configs[name].ratio
        hidden = linear(images, self.clip_adapter_down[name].to(images.dtype)).relu()
        return ratio * linear(hidden, self.clip_adapter_up[name].to(images.dtype)).relu() + (1 - ratio) * images
