"""Distance to the k-th nearest ID training image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging

from ..errors import ScoreInputError
from .base import ScoreInfo, ScoreInputs
from .fitted import FittedScore, features_in

__all__ = ["KNN"]

logger = logging.get_logger("hf_oodclip.scores")


@dataclass
class KNN(FittedScore):
    """Deep nearest neighbours (KNN): how far the image is from the ID images it is most like.

    With `v` and the ID training features normalised and `v_(k)` the k-th nearest of them,
    `S = -||v - v_(k)||^2 = 2 cos_(k) - 2`; this class returns `-S`, in [0, 4]. Fitting keeps one
    vector an ID image; labels are not looked at.

    Args:
        k: Which neighbour; 50 in OpenOOD, which searches 50 to 1000. With fewer ID images than that,
            the farthest of them, with a warning.

    Source: Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> seen = ScoreInputs(torch.zeros(2, 1), image_embeds=torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        >>> KNN(k=1).fit(seen)(ScoreInputs(torch.zeros(1, 1), image_embeds=torch.tensor([[3.0, 4.0]])))
        tensor([0.4000])
    """

    k: int = 50

    name = "knn"
    state_names = ("bank",)
    info = ScoreInfo(
        title="KNN",
        paper="Out-of-Distribution Detection with Deep Nearest Neighbors",
        venue="ICML",
        year=2022,
        url="https://arxiv.org/abs/2204.06507",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ScoreInputError(f"Score 'knn': k must be at least 1, got {self.k}.")

    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        assert inputs.image_embeds is not None
        if len(inputs.image_embeds) < self.k:
            logger.warning(f"Score 'knn': k={self.k} but only {len(inputs.image_embeds)} ID images; k is lowered.")
        return {"bank": normalize(inputs.image_embeds, dim=-1)}

    def compute(self, inputs: ScoreInputs) -> Tensor:
        features = features_in("normalized", inputs.image_embeds)
        bank = self.state("bank", features)
        cosines = features @ bank.T
        return 2 - 2 * cosines.topk(min(self.k, len(bank)), dim=-1).values[:, -1]
