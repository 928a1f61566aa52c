"""Mahalanobis distance to the nearest class, relative to that to all ID images together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ScoreInputError
from .base import ScoreInfo, ScoreInputs
from .fitted import FEATURE_SPACES, FittedScore, check_choice, features_in
from .gaussian import class_means, squared_distances, whitening


@dataclass
class RMDS(FittedScore):
    """Relative Mahalanobis distance (RMDS): how much better a class explains the image than no class.

    With the distance `M_c` of `mahalanobis` and `M_0` the same with the mean and covariance of all ID
    training features, classes ignored, `S = max_c -M_c(f) + M_0(f)`; this class returns `-S`. What is
    unusual alike for every class, such as a blurred image, cancels out.

    Args:
        feature_space: `raw` fits the projected embeddings as they are, `normalized` those of length 1.

    Source: Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
    arXiv 2021.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> seen = torch.tensor([[1.0, 2.0], [1.0, 4.0], [3.0, 2.0], [3.0, 4.0]])
        >>> seen = ScoreInputs(torch.zeros(8, 2), image_embeds=torch.cat([seen, -seen]))
        >>> fitted = RMDS().fit(seen, [0, 0, 0, 0, 1, 1, 1, 1])
        >>> images = ScoreInputs(torch.zeros(2, 2), image_embeds=torch.tensor([[2.0, 3.0], [0.0, 0.0]]))
        >>> bool(fitted(images).diff() > 0)
        True
    """

    feature_space: str = "raw"

    name = "rmds"
    needs_class_indices = True
    fit_options = ("feature_space",)
    state_names = ("class_means", "whitening", "overall_mean", "overall_whitening")
    info = ScoreInfo(
        title="RMDS",
        paper="A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection",
        venue="arXiv",
        year=2021,
        url="https://arxiv.org/abs/2106.09022",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "feature_space", FEATURE_SPACES)

    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        assert labels is not None
        if len(labels.unique()) < 2:
            raise ScoreInputError(
                "Score 'rmds' compares classes with all of them together: with images of one class it would be "
                "constant. Give images of at least two, or use mahalanobis."
            )
        features = features_in(self.feature_space, inputs.image_embeds).double()
        means, centred = class_means(features, labels)
        overall = features.mean(dim=0, keepdim=True)
        return {
            "class_means": means,
            "whitening": whitening(centred, len(means), self.name),
            "overall_mean": overall,
            "overall_whitening": whitening(features - overall, 1, self.name),
        }

    def compute(self, inputs: ScoreInputs) -> Tensor:
        features = features_in(self.feature_space, inputs.image_embeds)
        overall, matrix = self.state("overall_mean", features), self.state("whitening", features)
        centred, means = features - overall, self.state("class_means", features) - overall
        nearest = squared_distances(centred @ matrix.T, means @ matrix.T).amin(dim=-1)
        return nearest - (centred @ self.state("overall_whitening", features).T).square().sum(dim=-1)
