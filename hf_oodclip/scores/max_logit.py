"""The largest cosine with any label."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class MaxLogit(Score):
    """Maximum logit: how near the image is to its nearest label, whatever the other labels say.

    `S = max_j s_j` over the cosines; this class returns `-S`, in [-1, 1]. A CLIP logit is a
    constant times the cosine, so the scale changes no ranking and is left out.

    Source: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings",
    ICML 2022.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> MaxLogit()(ScoreInputs(similarity=torch.tensor([[0.3, 0.1]])))
        tensor([-0.3000])
    """

    name = "max_logit"
    info = ScoreInfo(
        title="MaxLogit",
        paper="Scaling Out-of-Distribution Detection for Real-World Settings",
        venue="ICML",
        year=2022,
        url="https://arxiv.org/abs/1911.11132",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        return -inputs.similarity.amax(dim=-1)
