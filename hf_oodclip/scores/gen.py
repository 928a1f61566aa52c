"""Generalised entropy of the most likely labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class GEN(Score):
    """Generalised entropy (GEN): spread of the top probabilities, with small ones made to count.

    With `p = softmax(s / temperature)` and the M largest of its entries,
    `S = -sum_m p_m^gamma (1 - p_m)^gamma`; this class returns `-S`, in [0, M / 4^gamma].

    Args:
        temperature: Divides the cosines; 0.01 equals softmax over `100 s`. None takes the model's
            logit scale.
        gamma: Exponent in (0, 1]; smaller makes small probabilities count more.
        top_m: How many of the largest probabilities enter; all when there are fewer labels.

    Source: Liu, Lochman and Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution
    Detection", CVPR 2023, equation 4.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> GEN(gamma=1.0)(ScoreInputs(similarity=torch.tensor([[0.2, 0.2]])))
        tensor([0.5000])
    """

    temperature: float | None = 0.01
    gamma: float = 0.1
    top_m: int = 100

    name = "gen"
    min_labels = 2
    info = ScoreInfo(
        title="GEN",
        paper="GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
        venue="CVPR",
        year=2023,
        url="https://openaccess.thecvf.com/content/CVPR2023/html/"
        "Liu_GEN_Pushing_the_Limits_of_Softmax-Based_Out-of-Distribution_Detection_CVPR_2023_paper.html",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1 or self.top_m < 1:
            raise ScoreInputError(
                f"Score 'gen': gamma must be in (0, 1] and top_m at least 1, got {self.gamma}, {self.top_m}."
            )

    def compute(self, inputs: ScoreInputs) -> Tensor:
        logits = self.inverse_temperature(self.temperature, inputs) * inputs.similarity
        top = logits.topk(min(self.top_m, logits.shape[-1]), dim=-1).values
        total = torch.logsumexp(logits, dim=-1, keepdim=True)
        log_mass = top - total
        # 1 - p of the winner is lost to rounding once p is near 1, and a small gamma magnifies it:
        # take it from the sum of the other labels instead. The others have p of at most a half.
        others = logits.scatter(-1, logits.argmax(-1, keepdim=True), -torch.inf)
        winner_rest = torch.logsumexp(others, dim=-1, keepdim=True) - total
        log_rest = torch.cat([winner_rest, torch.log1p(-log_mass[:, 1:].exp())], dim=-1)
        return torch.exp(self.gamma * (log_mass + log_rest)).sum(dim=-1)
