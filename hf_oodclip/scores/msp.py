"""Maximum softmax probability on CLIP logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class MSP(Score):
    """Maximum softmax probability (MSP): one minus how sure the classifier is of its answer.

    For cosines `s_j`, `S = max_j softmax(s / temperature)_j`; this class returns `-S`, in
    [-1, -1/N]. It is `mcm` at the temperature CLIP was trained with.

    Args:
        temperature: Divides the cosines; 0.01 equals softmax over `100 s`. None takes the model's
            logit scale.

    Source: Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", ICLR 2017.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> MSP()(ScoreInputs(similarity=torch.tensor([[0.31, 0.30], [0.2, 0.2]])))
        tensor([-0.7311, -0.5000])
    """

    temperature: float | None = 0.01

    name = "msp"
    min_labels = 2
    info = ScoreInfo(
        title="MSP",
        paper="A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural Networks",
        venue="ICLR",
        year=2017,
        url="https://arxiv.org/abs/1610.02136",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        logits = self.inverse_temperature(self.temperature, inputs) * inputs.similarity
        return -torch.softmax(logits, dim=-1).amax(dim=-1)
