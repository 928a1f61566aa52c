"""Energy of the labels after the largest activations are cut down to what ID images show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ScoreInputError
from .base import ScoreInfo, ScoreInputs
from .energy import Energy
from .fitted import FEATURE_SPACES, FittedScore, check_choice, features_in


@dataclass
class ReAct(FittedScore):
    """Rectified activations (ReAct): the energy of the labels once no activation is unusually large.

    With `q` the given percentile of all activations of the ID images, over dimensions and images,
    `S = t * log sum_j exp(s'_j / t)` over the cosines `s'_j` of the clipped embedding `min(f, q)` with
    the labels; this class returns `-S`. The adaptation to CLIP is ours: its embeddings have both signs
    and only the upper tail is clipped; they are compared as cosines. Feature adapters, which act on
    the cosines, have no part in it.

    Args:
        percentile: 90 by default; 85 to 99 are usual.
        temperature: Divides the cosines; 0.01 equals the energy of CLIP's own logits. None takes the
            model's logit scale.
        feature_space: `raw` clips the projected embedding and scales it to length 1 again,
            `normalized` clips that of length 1 and leaves it so.

    Source: Sun et al., "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> one = {"similarity": torch.ones(1, 1), "label_embeds": torch.tensor([[1.0, 0.0]])}
        >>> seen = ScoreInputs(torch.ones(2, 1), image_embeds=torch.ones(2, 2), label_embeds=one["label_embeds"])
        >>> ReAct().fit(seen)(ScoreInputs(image_embeds=torch.tensor([[9.0, 1.0]]), **one))
        tensor([-0.7071])
    """

    percentile: float = 90.0
    temperature: float | None = 0.01
    feature_space: str = "raw"

    name = "react"
    needs = ("image_embeds", "label_embeds")
    fit_options = ("percentile", "feature_space")
    state_names = ("limit",)
    info = ScoreInfo(
        title="ReAct",
        paper="ReAct: Out-of-distribution Detection With Rectified Activations",
        venue="NeurIPS",
        year=2021,
        url="https://arxiv.org/abs/2111.12797",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "feature_space", FEATURE_SPACES)
        if not 0 < self.percentile <= 100:
            raise ScoreInputError(f"Score 'react': percentile must be in (0, 100], got {self.percentile}.")

    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        # torch.quantile refuses more than 2^24 values.
        features = features_in(self.feature_space, inputs.image_embeds).double().numpy()
        return {"limit": torch.tensor(np.percentile(features, self.percentile))}

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.label_embeds is not None
        features = features_in(self.feature_space, inputs.image_embeds)
        clipped = torch.minimum(features, self.state("limit", features))
        if self.feature_space == "raw":
            clipped = normalize(clipped, dim=-1)
        cosines = clipped @ normalize(inputs.label_embeds, dim=-1).T
        return Energy(self.temperature).compute(ScoreInputs(cosines, logit_scale=inputs.logit_scale))
