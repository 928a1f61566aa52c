"""The best label against the best of the outlier names somebody envisioned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class EOE(Score):
    """Envisioning outlier exposure (EOE): does the best label beat the best envisioned outlier?

    With `p = softmax(s / t)` over labels and outlier names together,
    `S = max_label p - beta * max_outlier p`; this class returns `-S`, in [-1, beta]. The outlier names
    are the model's negatives: load it with `negatives=[...]`, what a language model (the paper asks for
    500) or a person expects to be mistaken for the labels.

    Args:
        temperature: Divides the cosines; 1 in the paper. None takes the model's logit scale.
        beta: Weight of the outliers, at least 0; 0.25 in the paper.

    Source: Cao et al., "Envisioning Outlier Exposure by Large Language Models for Out-of-Distribution
    Detection", ICML 2024.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> EOE()(ScoreInputs(torch.tensor([[0.3]]), negative_similarity=torch.tensor([[0.3]])))
        tensor([-0.3750])
    """

    temperature: float | None = 1.0
    beta: float = 0.25

    name = "eoe"
    needs = ("similarity", "negative_similarity")
    info = ScoreInfo(
        title="EOE",
        paper="Envisioning Outlier Exposure by Large Language Models for Out-of-Distribution Detection",
        venue="ICML",
        year=2024,
        url="https://arxiv.org/abs/2406.00806",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ScoreInputError(f"Score 'eoe': beta must be at least 0, got {self.beta}.")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.negative_similarity is not None
        scale = self.inverse_temperature(self.temperature, inputs)
        together = torch.cat([inputs.similarity, inputs.negative_similarity], dim=-1)
        probabilities = torch.softmax(scale * together, dim=-1)
        num_labels = inputs.similarity.shape[-1]
        best_label, best_outlier = probabilities[:, :num_labels].amax(-1), probabilities[:, num_labels:].amax(-1)
        return self.beta * best_outlier - best_label
