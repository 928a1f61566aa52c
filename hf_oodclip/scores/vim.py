"""Evidence for the labels against the part of the embedding that ID images do not use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from ..errors import ScoreInputError
from .base import ScoreInfo, ScoreInputs
from .fitted import FEATURE_SPACES, FittedScore, check_choice, features_in

__all__ = ["ViM"]

logger = logging.get_logger("hf_oodclip.scores")


@dataclass
class ViM(FittedScore):
    """Virtual-logit matching (ViM): the energy of the labels less the size of what no ID image explains.

    With `R` the eigenvectors of the uncentred covariance of the ID training features beyond the first
    `dim`, logits `z = logit_scale * f . c_j`, and `a` the mean largest logit over the mean of
    `||R^T f||` on the ID images, `S = logsumexp(z) - a ||R^T f||`; this class returns `-S`. The
    adaptation to CLIP is ours: its head has no bias, so the paper's origin is 0, and the label features
    `c_j` of length 1 are its rows.

    Args:
        dim: Size of the principal space, fewer than the embedding has; 256 or 1000 in OpenOOD. Choose
            about half the width of the embedding.
        feature_space: `raw` takes `f` as it is projected, `normalized` at length 1.

    Source: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> seen = ScoreInputs(torch.ones(2, 1), image_embeds=torch.tensor([[1.0, 0.1], [1.0, -0.1]]))
        >>> across = ScoreInputs(torch.tensor([[1.0], [0.0]]), image_embeds=torch.eye(2))
        >>> ViM(dim=1).fit(seen)(across).round()
        tensor([-100., 1005.])
    """

    dim: int = 256
    feature_space: str = "raw"

    name = "vim"
    needs = ("similarity", "image_embeds")
    fit_options = ("dim", "feature_space")
    state_names = ("residual_space", "residual_factor")
    info = ScoreInfo(
        title="ViM",
        paper="ViM: Out-Of-Distribution with Virtual-logit Matching",
        venue="CVPR",
        year=2022,
        url="https://arxiv.org/abs/2203.10807",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "feature_space", FEATURE_SPACES)
        if self.dim < 1:
            raise ScoreInputError(f"Score 'vim': dim must be at least 1, got {self.dim}.")

    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        features = features_in(self.feature_space, inputs.image_embeds).double()
        num_images, width = features.shape
        if self.dim >= width:
            raise ScoreInputError(
                f"Score 'vim': dim={self.dim} leaves nothing of embeddings of width {width}; choose fewer, such as "
                f"score=get_score('vim', dim={max(1, width // 2)})."
            )
        if num_images <= self.dim:
            raise ScoreInputError(
                f"Score 'vim': {num_images} ID images cannot span a principal space of {self.dim} dimensions; give "
                "more images, or choose a smaller dim."
            )
        if num_images < width:
            logger.warning(
                f"Score 'vim': {num_images} ID images do not span the {width} dimensions of the embedding, so its "
                "residual space is in part arbitrary. More ID images make it better."
            )
        # Eigenvalues ascend.
        residual_space = torch.linalg.eigh(features.T @ features / num_images).eigenvectors[:, : width - self.dim].T
        residual = torch.linalg.vector_norm(features @ residual_space.T, dim=-1).mean()
        largest = self._logits(inputs).double().amax(dim=-1).mean()
        if not residual > 1e-9 * torch.linalg.vector_norm(features, dim=-1).mean():
            raise ScoreInputError(
                f"Score 'vim': the ID images leave nothing outside {self.dim} dimensions; choose a smaller dim."
            )
        return {"residual_space": residual_space, "residual_factor": largest / residual}

    def _logits(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.image_embeds is not None
        # f . c_j is the cosine times the length of f, whatever adapter made the cosine.
        length = 1 if self.feature_space == "normalized" else inputs.image_embeds.norm(dim=-1, keepdim=True)
        return inputs.logit_scale * inputs.similarity * length

    def compute(self, inputs: ScoreInputs) -> Tensor:
        features = features_in(self.feature_space, inputs.image_embeds)
        residual = torch.linalg.vector_norm(features @ self.state("residual_space", features).T, dim=-1)
        virtual_logit = self.state("residual_factor", features) * residual
        return virtual_logit - torch.logsumexp(self._logits(inputs), dim=-1)
