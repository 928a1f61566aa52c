"""Maximum concept matching of the whole image and of its best patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs
from .mcm import MCM


@dataclass
class GLMCM(Score):
    """Global and local maximum concept matching (GL-MCM): a label may win by a part of the image.

    With the cosines `s_j` of the image and `l_rj` of patch `r`,
    `S = max_j softmax(s / t)_j + local_weight * max_rj softmax(l_r / t)_j`; this class returns `-S`, in
    [-(1 + local_weight), 0]. It needs the pixels: stored image embeddings know no patches.

    Args:
        temperature: Divides the cosines; 1 in the paper. None takes the model's logit scale.
        local_weight: Weight of the patches; 1 by default, 0.5 in the paper's ImageNet script, 0 leaves
            MCM.

    Source: Miyai et al., "GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot
    Out-of-Distribution Detection", IJCV 2025.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> patches = torch.tensor([[[0.1, 0.1], [0.1, 0.3]]])
        >>> GLMCM()(ScoreInputs(torch.tensor([[0.2, 0.2]]), patch_similarity=patches))
        tensor([-1.0498])
    """

    temperature: float | None = 1.0
    local_weight: float = 1.0

    name = "gl_mcm"
    needs = ("similarity", "patch_similarity")
    min_labels = 2
    info = ScoreInfo(
        title="GL-MCM",
        paper="GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection",
        venue="IJCV",
        year=2025,
        url="https://arxiv.org/abs/2304.04521",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.local_weight >= 0:
            raise ScoreInputError(f"Score 'gl_mcm': local_weight must be at least 0, got {self.local_weight}.")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.patch_similarity is not None
        scale = self.inverse_temperature(self.temperature, inputs)
        best_patch = torch.softmax(scale * inputs.patch_similarity, dim=-1).amax(dim=(-2, -1))
        return MCM(self.temperature).compute(inputs) - self.local_weight * best_patch
