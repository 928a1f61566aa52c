"""Energy lost when the best-matching labels are taken away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class DeltaEnergy(Score):
    """Delta-energy: how much the energy changes when the match with the best labels is broken.

    Let `T` be the indices of the c largest cosines `s_j` and `t` the temperature. With
    `E0 = -logsumexp(s / t)` and `E1` the same after setting `s_j = low_similarity` for `j in T`,
    the paper's score is `S = E1 - E0`; this class returns `-S` (no unit, at most 0 while the
    cropped cosines exceed `low_similarity`). An ID image loses more energy than an OOD image.
    With `p = softmax(s / t)`, `S = -log1p(-sum_{j in T} p_j (1 - exp(-(s_j - low) / t)))`: at
    `temperature=0.01, top_c=1` this ranks images exactly as `msp` does (up to rounding); it says
    something of its own for `top_c > 1` or temperatures of about 0.05 and more.

    Args:
        temperature: Divides the cosines. None takes the model's logit scale.
        top_c: How many of the largest cosines are cropped; at most N - 1 are, and 1 when N = 1.
        low_similarity: The value the cropped cosines are set to.
        joint: Crop all `top_c` at once (True), or average `S` over cropping each of them alone.

    Source: Zhu et al., "Delta Energy: Optimizing Energy Change During Vision-Language Alignment
    Improves both OOD Detection and OOD Generalization", NeurIPS 2025. The paper gives the shape of
    the score (crop the largest cosines, compare energies); temperature, `joint` and
    `low_similarity` are a reconstruction.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> DeltaEnergy(temperature=1.0)(ScoreInputs(similarity=torch.tensor([[0.5]])))
        tensor([-0.5000])
    """

    temperature: float | None = 0.01
    top_c: int = 1
    low_similarity: float = 0.0
    joint: bool = True

    name = "delta_energy"
    info = ScoreInfo(
        title="DeltaEnergy",
        paper="Delta Energy: Optimizing Energy Change During Vision-Language Alignment Improves both "
        "OOD Detection and OOD Generalization",
        venue="NeurIPS",
        year=2025,
        url="https://arxiv.org/abs/2510.11296",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_c < 1:
            raise ScoreInputError(f"Score 'delta_energy': top_c must be at least 1, got {self.top_c}.")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        scale = self.inverse_temperature(self.temperature, inputs)
        logits = scale * inputs.similarity
        num_labels = logits.shape[-1]
        top = logits.topk(max(1, min(self.top_c, num_labels - 1)), dim=-1).indices
        crops = [top] if self.joint else list(top.split(1, dim=-1))
        energy = -torch.logsumexp(logits, dim=-1)
        changes = [
            -torch.logsumexp(logits.scatter(-1, crop, scale * self.low_similarity), dim=-1) - energy for crop in crops
        ]
        return -torch.stack(changes).mean(dim=0)
