"""Gaussians fitted to features: class means, and a covariance as the map that makes it the identity."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging

from ..errors import ScoreInputError

__all__ = ["class_means", "squared_distances", "whitening"]

RIDGE = 1e-6

logger = logging.get_logger("hf_oodclip.scores")


def class_means(features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the classes that have images, `[C, D]`, and the features minus their class mean."""
    _, classes = indices.unique(return_inverse=True)
    counts = torch.bincount(classes)
    means = torch.zeros(len(counts), features.shape[1], dtype=features.dtype).index_add_(0, classes, features)
    means /= counts[:, None]
    return means, features - means[classes]


def whitening(centred: Tensor, num_means: int, score_name: str) -> Tensor:
    """Return `W`, `[D, D]`, with `W^T W = (Sigma + ridge)^-1` for the covariance of centred features.

    `Sigma = X^T X / n`, shrunk towards a multiple of the identity (Ledoit and Wolf, 2004) when there
    are too few images for its full rank; `ridge = 1e-6 tr(Sigma) / D`.

    Args:
        centred: Features minus the mean of their class, `[n, D]`, in fp64.
        num_means: Means that were taken off: each costs one degree of freedom.
        score_name: For messages.
    """
    num_images, dim = centred.shape
    covariance = centred.T @ centred / num_images
    variance = covariance.trace() / dim
    if not variance > 0:
        raise ScoreInputError(f"Score {score_name!r}: the features of the ID images do not vary; give more images.")
    if num_images - num_means < dim:
        shrinkage = _ledoit_wolf(centred, covariance)
        covariance = (1 - shrinkage) * covariance
        covariance.diagonal().add_(shrinkage * variance)
        logger.warning(
            f"Score {score_name!r}: {num_images} images of {num_means} class(es) are too few for a covariance of "
            f"{dim} dimensions; it was shrunk by {float(shrinkage):.3f}. More ID images make it better."
        )
    values, vectors = torch.linalg.eigh(covariance)
    return (values.clamp_min(0) + RIDGE * variance).rsqrt()[:, None] * vectors.T


def _ledoit_wolf(centred: Tensor, covariance: Tensor) -> Tensor:
    num_images, dim = centred.shape
    variance = covariance.trace() / dim
    squared = covariance.square().sum()
    noise = (centred.square().sum(1).square().sum() / num_images - squared) / num_images
    spread = squared - dim * variance.square()
    return (noise / spread).clamp(0, 1) if spread > 0 else torch.ones_like(spread)


def squared_distances(whitened: Tensor, means: Tensor) -> Tensor:
    """Return the squared distance of every row `[B, D]` from every mean `[C, D]`, `[B, C]`."""
    # Not by ||a||^2 + ||b||^2 - 2ab, which loses the small distances to rounding.
    return torch.cdist(whitened, means, compute_mode="donot_use_mm_for_euclid_dist").square()
