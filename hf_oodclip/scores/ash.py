"""Energy of the labels after all but the largest activations are taken away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs
from .energy import Energy
from .fitted import FEATURE_SPACES, check_choice, features_in


@dataclass
class ASH(Score):
    """Activation shaping (ASH): the energy of the labels for a sparse version of the embedding.

    Keep the `k = D - round(D * percentile / 100)` largest activations, shape them, and take
    `S = t * log sum_j exp(f' . c_j / t)` with the labels `c_j`; this class returns `-S`. Shapes: `p`
    leaves the kept ones as they are, `b` sets each to `s1 / k`, `s` multiplies all by `exp(s1 / s2)`,
    where `s1` and `s2` are sums over the activations before and after. The adaptation to CLIP is ours:
    embeddings have both signs, so only the positive part enters these sums, and `s` leaves an image
    without any as it is. Feature adapters, which act on the cosines, have no part in it.

    Args:
        variant: `b`, `p` or `s`.
        percentile: Share of activations taken away, in percent; 90 in OpenOOD, which searches 65 to 95.
        temperature: Divides the products; 0.01 equals the energy of CLIP's own logits. None takes the
            model's logit scale.
        feature_space: `normalized` shapes the embedding of length 1, `raw` the projected one as it is.

    Source: Djurisic et al., "Extremely Simple Activation Shaping for Out-of-Distribution Detection",
    ICLR 2023.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> images = ScoreInputs(
        ...     torch.ones(1, 1), image_embeds=torch.tensor([[0.6, 0.8]]), label_embeds=torch.tensor([[0.0, 1.0]])
        ... )
        >>> ASH(percentile=50.0)(images)
        tensor([-1.4000])
    """

    variant: str = "b"
    percentile: float = 90.0
    temperature: float | None = 0.01
    feature_space: str = "normalized"

    name = "ash"
    needs = ("image_embeds", "label_embeds")
    info = ScoreInfo(
        title="ASH",
        paper="Extremely Simple Activation Shaping for Out-of-Distribution Detection",
        venue="ICLR",
        year=2023,
        url="https://arxiv.org/abs/2209.09858",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "variant", ("b", "p", "s"))
        check_choice(self, "feature_space", FEATURE_SPACES)
        if not 0 <= self.percentile < 100:
            raise ScoreInputError(f"Score 'ash': percentile must be in [0, 100), got {self.percentile}.")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.label_embeds is not None
        shaped = self._shape(features_in(self.feature_space, inputs.image_embeds))
        products = shaped @ normalize(inputs.label_embeds, dim=-1).T
        return Energy(self.temperature).compute(ScoreInputs(products, logit_scale=inputs.logit_scale))

    def _shape(self, features: Tensor) -> Tensor:
        width = features.shape[-1]
        count = max(1, width - round(width * self.percentile / 100))
        kept = features.topk(count, dim=-1)
        before = features.clamp_min(0).sum(dim=-1, keepdim=True)
        values = kept.values
        if self.variant == "b":
            values = (before / count).expand_as(values)
        elif self.variant == "s":
            after = values.clamp_min(0).sum(dim=-1, keepdim=True)
            smallest = torch.finfo(values.dtype).eps
            values = values * torch.where(after > smallest, (before / after.clamp_min(smallest)).exp(), 1.0)
        return torch.zeros_like(features).scatter(-1, kept.indices, values)
