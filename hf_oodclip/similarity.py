"""From image embeddings to cosines, and what the model returns for a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.utils import ModelOutput

__all__ = ["OODImageClassifierOutput", "OODSimilarity"]


@dataclass
class OODImageClassifierOutput(ModelOutput):
    """What the model says about a batch of images.

    Args:
        loss: Cross-entropy, when `labels` were given.
        logits: CLIP logits over the labels, never over negatives, `[B, N]`.
        ood_score: Larger = more OOD, fp32, `[B]`.
        image_embeds: Projected image embeddings before normalisation, fp32, `[B, D]`.
        hidden_states: Of the vision tower, when asked for.
        attentions: Of the vision tower, when asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    ood_score: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class OODSimilarity(nn.Module):
    """Cosines of images with labels and negatives, in fp32: the place where feature adapters act."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def check_classes(self, num_labels: int, num_negatives: int) -> None:
        """Accept any number of classes; an adapter around this may know its own, and raise `AdapterError`."""

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines."""
        with torch.autocast(image_embeds.device.type, enabled=False):
            return self._cosines(image_embeds, label_embeds, negative_embeds)

    def _cosines(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(image_embeds.dtype, label_embeds.dtype)
        images = normalize(image_embeds.to(dtype), dim=-1)
        labels, negatives = (normalize(e.to(dtype), dim=-1) for e in (label_embeds, negative_embeds))
        return images @ labels.T, images @ negatives.T
