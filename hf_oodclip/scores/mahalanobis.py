"""Mahalanobis distance to the nearest class of ID training images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import ScoreInfo, ScoreInputs
from .fitted import FEATURE_SPACES, FittedScore, check_choice, features_in
from .gaussian import class_means, squared_distances, whitening


@dataclass
class Mahalanobis(FittedScore):
    """Mahalanobis distance (MDS): how unusual the image is as a member of its nearest class.

    With the class means `mu_c` of the ID training features and the covariance `Sigma` of the features
    minus their class mean, `S = max_c -(f - mu_c)^T Sigma^-1 (f - mu_c)`; this class returns `-S`, at
    least 0. Fitting needs class indices; it runs in fp64, adds `1e-6 tr(Sigma) / D` to the diagonal and
    shrinks `Sigma`, with a warning, when there are too few images for its full rank.

    Args:
        feature_space: `raw` fits the projected embeddings as they are, `normalized` those of length 1.

    Source: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and
    Adversarial Attacks", NeurIPS 2018.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> fitted = Mahalanobis().fit(ScoreInputs(torch.zeros(4, 1), image_embeds=corners), [0, 0, 0, 0])
        >>> fitted(ScoreInputs(torch.zeros(1, 1), image_embeds=torch.tensor([[3.0, 0.0]])))
        tensor([9.0000])
    """

    feature_space: str = "raw"

    name = "mahalanobis"
    needs_class_indices = True
    fit_options = ("feature_space",)
    state_names = ("class_means", "whitening")
    info = ScoreInfo(
        title="Mahalanobis",
        paper="A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
        venue="NeurIPS",
        year=2018,
        url="https://arxiv.org/abs/1807.03888",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "feature_space", FEATURE_SPACES)

    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        assert labels is not None
        features = features_in(self.feature_space, inputs.image_embeds).double()
        means, centred = class_means(features, labels)
        return {"class_means": means, "whitening": whitening(centred, len(means), self.name)}

    def compute(self, inputs: ScoreInputs) -> Tensor:
        features = features_in(self.feature_space, inputs.image_embeds)
        means, matrix = self.state("class_means", features), self.state("whitening", features)
        origin = means.mean(dim=0)
        return squared_distances((features - origin) @ matrix.T, (means - origin) @ matrix.T).amin(dim=-1)
