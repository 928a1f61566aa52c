"""Free energy of the label logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class Energy(Score):
    """Energy: how much evidence there is for all labels together.

    `S = t * log sum_j exp(s_j / t)` over the cosines `s_j` with temperature `t`; this class returns
    `-S`, the free energy, in units of a cosine. Adding a constant to every cosine shifts it by that
    constant; as `t -> 0` it becomes `max_logit`.

    Args:
        temperature: 0.01 by default, the scale of CLIP's own logits; the MCM repository uses 1, at
            which the score is nearly the mean cosine. None takes the model's logit scale.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 3.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> Energy(temperature=1.0)(ScoreInputs(similarity=torch.tensor([[0.0, 0.0]])))
        tensor([-0.6931])
    """

    temperature: float | None = 0.01

    name = "energy"
    info = ScoreInfo(
        title="Energy",
        paper="Energy-based Out-of-distribution Detection",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2010.03759",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        scale = self.inverse_temperature(self.temperature, inputs)
        return -torch.logsumexp(scale * inputs.similarity, dim=-1) / scale
