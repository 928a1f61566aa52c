"""Maximum concept matching: the largest softmax probability at temperature 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class MCM(Score):
    """Maximum concept matching (MCM): how clearly one label beats the others, smoothly.

    The paper's score, higher = more in-distribution, for cosines `s_j = v . c_j`, is
    `S = max_j softmax(s / temperature)_j`; this class returns `-S`, in [-1, -1/N].

    Args:
        temperature: Divides the cosines; 1 in the paper. None takes the model's logit scale, which
            turns the score into `msp`.

    Source: Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language
    Representations", NeurIPS 2022, equation 1.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> MCM()(ScoreInputs(similarity=torch.tensor([[0.3, 0.1], [0.2, 0.2]])))
        tensor([-0.5498, -0.5000])
    """

    temperature: float | None = 1.0

    name = "mcm"
    min_labels = 2
    info = ScoreInfo(
        title="MCM",
        paper="Delving into Out-of-Distribution Detection with Vision-Language Representations",
        venue="NeurIPS",
        year=2022,
        url="https://arxiv.org/abs/2211.13445",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        logits = self.inverse_temperature(self.temperature, inputs) * inputs.similarity
        return -torch.softmax(logits, dim=-1).amax(dim=-1)
