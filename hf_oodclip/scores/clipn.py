"""A label's text against the text that denies it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Score, ScoreInfo, ScoreInputs
from .fitted import check_choice


@dataclass
class CLIPN(Score):
    """CLIPN: is the image more like "a photo of a cat" or like a text that says it is no cat?

    With the cosines `s_j` of the label and `n_j` of its "no" text, `y_j = sigmoid((s_j - n_j) / t)`;
    `S = sum_j y_j softmax(s / t)_j` (agreeing to differ, `atd`) or `S = y_j` of the best label
    (competing to win, `ctw`); this class returns `-S`, in [-1, 0]. The "no" texts come from an encoder
    the paper trains for it; give their cosines as `no_similarity`. Negated prompts of plain CLIP
    ("a photo without a cat") may stand in for them as an experiment: CLIP hardly understands negation.

    Args:
        temperature: Divides the cosines; 0.01 equals CLIP's own logits. None takes the model's logit
            scale.
        variant: `atd` or `ctw`.

    Source: Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", ICCV 2023.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> CLIPN()(ScoreInputs(torch.tensor([[0.3, 0.1]]), no_similarity=torch.tensor([[0.3, 0.1]])))
        tensor([-0.5000])
    """

    temperature: float | None = 0.01
    variant: str = "atd"

    name = "clipn"
    needs = ("similarity", "no_similarity")
    info = ScoreInfo(
        title="CLIPN",
        paper="CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No",
        venue="ICCV",
        year=2023,
        url="https://arxiv.org/abs/2308.12213",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "variant", ("atd", "ctw"))

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.no_similarity is not None
        scale = self.inverse_temperature(self.temperature, inputs)
        yes = torch.sigmoid(scale * (inputs.similarity - inputs.no_similarity))
        if self.variant == "ctw":
            return -yes.gather(-1, inputs.similarity.argmax(dim=-1, keepdim=True)).squeeze(-1)
        return -(yes * torch.softmax(scale * inputs.similarity, dim=-1)).sum(dim=-1)
