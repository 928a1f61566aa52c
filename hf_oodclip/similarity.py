"""From image embeddings to cosines, and what the model returns for a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers.utils import ModelOutput

__all__ = ["OODImageClassifierOutput", "OODSimilarity", "TrainingCosines"]


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


@dataclass(frozen=True)
class TrainingCosines:
    """What the losses need of one batch: cosines, and how far every text feature was moved.

    Args:
        labels: Cosines with the adapted label features, `[B, N]`, or `[B, Q, N]` for crops.
        negatives: Cosines with the adapted negative features, `[B, M]` or `[B, Q, M]`.
        kept_labels: Cosines of adapted with original label features, `[B, N]`; `[1, N]` when they are
            the same for all images.
        kept_negatives: The same of the negatives.
        image_embeds: The adapted image features that were compared, `[B, D]` or `[B, Q, D]`.
        label_embeds: The adapted label features, `[N, D]` or `[B, N, D]`; None where they are never built.
    """

    labels: Tensor
    negatives: Tensor
    kept_labels: Tensor
    kept_negatives: Tensor
    image_embeds: Tensor
    label_embeds: Tensor | None = None


class OODSimilarity(nn.Module):
    """Cosines of images with labels and negatives, in fp32: the place where feature adapters act."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def check_classes(self, num_labels: int, num_negatives: int) -> None:
        """Accept any number of classes; an adapter around this may know its own, and raise `AdapterError`."""

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines of `[B, D]` images.

        Text features are `[K, D]`, or `[B, K, D]` where every image has its own.
        """
        found = self.training_cosines(image_embeds, label_embeds, negative_embeds)
        return found.labels, found.negatives

    def training_cosines(
        self,
        image_embeds: Tensor,
        label_embeds: Tensor,
        negative_embeds: Tensor,
        queries: Tensor | None = None,
    ) -> TrainingCosines:
        """Return the cosines of images, or of their crops (`queries`, `[B, Q, D]`), with nothing moved."""
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, label_embeds.dtype), torch.float32)
        asked = image_embeds if queries is None else queries
        with torch.autocast(image_embeds.device.type, enabled=False):
            images = normalize(asked.to(dtype), dim=-1)
            labels, negatives = (
                _products(images, normalize(embeds.to(dtype), dim=-1)) for embeds in (label_embeds, negative_embeds)
            )
        ones = images.new_ones(1, label_embeds.shape[-2]), images.new_ones(1, negative_embeds.shape[-2])
        return TrainingCosines(labels, negatives, ones[0], ones[1], asked, label_embeds)


def _products(images: Tensor, texts: Tensor) -> Tensor:
    """Return `[B, K]` or `[B, Q, K]` products with `[K, D]` or `[B, K, D]` texts."""
    if texts.ndim == 2:
        return images @ texts.T
    if images.ndim == 3:
        return images @ texts.mT
    return (texts @ images.unsqueeze(-1)).squeeze(-1)
