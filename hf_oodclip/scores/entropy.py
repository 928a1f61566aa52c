"""Entropy of the label distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class Entropy(Score):
    """Entropy: how evenly the probability is spread over the labels.

    With `p = softmax(s / temperature)`, `S = sum_j p_j log p_j`; this class returns `-S`, the
    entropy in nats, in [0, log N].

    Args:
        temperature: Divides the cosines; 0.01 by default, the scale of CLIP's own logits. The MCM
            repository uses 1, at which every distribution is nearly even. None takes the model's
            logit scale.

    Source: the entropy baseline of Ming et al., NeurIPS 2022 (code of MCM).

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> Entropy()(ScoreInputs(similarity=torch.tensor([[0.2, 0.2]])))
        tensor([0.6931])
    """

    temperature: float | None = 0.01

    name = "entropy"
    min_labels = 2
    info = ScoreInfo(
        title="Entropy",
        paper="Delving into Out-of-Distribution Detection with Vision-Language Representations",
        venue="NeurIPS",
        year=2022,
        url="https://arxiv.org/abs/2211.13445",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        scale = self.inverse_temperature(self.temperature, inputs)
        log_probabilities = torch.log_softmax(scale * inputs.similarity, dim=-1)
        return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
