"""The layer around a model's `similarity` that adds a learnt vector to the text feature of every label."""

from __future__ import annotations

from torch import Tensor, nn

from ..feature_map import FeatureMapLayer

__all__ = ["TaskResidualLayer"]


class TaskResidualLayer(FeatureMapLayer):
    """Holds the task residual adapters of a model by name, and moves its labels with the active one."""

    adapter_layer_names = ("residual_labels",)
    title = "Task residual"

    residual_labels: nn.ParameterDict

    def map_texts(self, name: str, labels: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        return labels + self.configs[name].residual_scale * self.residual_labels[name].to(labels.dtype), negatives
