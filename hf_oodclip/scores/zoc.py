"""Softmax mass of the labels against names proposed for the very image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class ZOC(Score):
    """Zero-shot OOD detection (ZOC): how much the labels explain when the image names its own rivals.

    With the names `U(x)` proposed for the image, `S` is the softmax mass of the labels,
    `softmax(s / t)` over labels and `U(x)` together; this class returns `-S`, in [-1, 0]. The paper
    trains a text decoder on CLIP features to propose names; here they are yours (any captioner), as
    cosines `candidate_similarity` `[B, C]`, padded with -inf where an image has fewer. An image without
    any gets -1.

    Args:
        temperature: Divides the cosines; 0.01 equals softmax over `100 s`. None takes the model's logit
            scale.

    Source: Esmaeilpour et al., "Zero-Shot Out-of-Distribution Detection Based on the Pre-trained Model
    CLIP", AAAI 2022.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> names = torch.tensor([[0.29, -torch.inf], [0.30, 0.30]])
        >>> ZOC()(ScoreInputs(torch.full((2, 1), 0.3), candidate_similarity=names))
        tensor([-0.7311, -0.3333])
    """

    temperature: float | None = 0.01

    name = "zoc"
    needs = ("similarity", "candidate_similarity")
    info = ScoreInfo(
        title="ZOC",
        paper="Zero-Shot Out-of-Distribution Detection Based on the Pre-trained Model CLIP",
        venue="AAAI",
        year=2022,
        url="https://arxiv.org/abs/2109.02748",
    )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.candidate_similarity is not None
        scale = self.inverse_temperature(self.temperature, inputs)
        labels = torch.logsumexp(scale * inputs.similarity, dim=-1)
        return -torch.sigmoid(labels - torch.logsumexp(scale * inputs.candidate_similarity, dim=-1))
