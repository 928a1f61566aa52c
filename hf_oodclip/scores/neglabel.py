"""Softmax mass of the labels against groups of mined negative words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs
from .grouping import group_margin


@dataclass
class NegLabel(Score):
    """NegLabel: how much of the image the labels explain when thousands of other words compete.

    With `P` the logsumexp of the label logits `s / temperature` and `Q_g` that of the g-th group of
    negatives, `S = mean_g sigmoid(P - Q_g)`, which equals the softmax mass of the labels among
    labels and group, averaged over groups; this class returns `-S`, in [-1, 0].

    Args:
        temperature: Divides the cosines; 0.01 equals softmax over `100 s`. None takes the model's
            logit scale.
        num_groups: Groups the negatives are split into; 100 in the paper, 1 is the plain mass. The
            last `M mod num_groups` negatives are dropped.
        seed: Seed of the private generator that permutes the negatives once.

    Source: Jiang et al., "Negative Label Guided OOD Detection with Pretrained Vision-Language
    Models", ICLR 2024, equations 6 and 7.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> inputs = ScoreInputs(torch.tensor([[0.30]]), negative_similarity=torch.tensor([[0.29, 0.29]]))
        >>> NegLabel(num_groups=2)(inputs)
        tensor([-0.7311])
    """

    temperature: float | None = 0.01
    num_groups: int = 100
    seed: int = 0

    name = "neglabel"
    needs = ("similarity", "negative_similarity")
    info = ScoreInfo(
        title="NegLabel",
        paper="Negative Label Guided OOD Detection with Pretrained Vision-Language Models",
        venue="ICLR",
        year=2024,
        url="https://arxiv.org/abs/2403.20078",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups < 1:
            raise ScoreInputError(f"Score 'neglabel': num_groups must be at least 1, got {self.num_groups}.")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.negative_similarity is not None
        scale = self.inverse_temperature(self.temperature, inputs)
        margin = group_margin(
            scale * inputs.similarity, scale * inputs.negative_similarity, self.num_groups, self.seed
        )
        return -torch.sigmoid(margin).mean(dim=-1)
