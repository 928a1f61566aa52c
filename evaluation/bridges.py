"""Scores of this package inside other people's benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_oodclip.errors import RunError, ScoreInputError
from hf_oodclip.scores import Score, get_score
from hf_oodclip.scores.fitted import FittedScore

__all__ = ["to_pytorch_ood"]


def to_pytorch_ood(score: str | Score, model: Any) -> Any:
    """Return a pytorch-ood detector that judges images with one of our scores.

    Both sides hold that a larger score means more OOD, so the figures are the same ones. `predict` and
    `fit` take pixel values of the model's image processor, `predict_features` and `fit_features`
    projected image embeddings before normalisation, `[B, D]`; results are on the CPU. Fitting skips
    images whose label is negative, which is pytorch-ood's mark of OOD images.

    Args:
        score: Name or `Score`; fitting the detector leaves the given one as it is.
        model: A model with labels, and with negatives where the score needs them.

    Raises:
        RunError: pytorch-ood is not installed.
        UnknownNameError: There is no such score.

    Source: Kirchheim et al., "PyTorch-OOD: A Library for Out-of-Distribution Detection Based on
    PyTorch", CVPR workshops 2022, https://github.com/kkirchheim/pytorch-ood.

    Example:
        >>> detector = to_pytorch_ood("mcm", model)  # doctest: +SKIP
        >>> pytorch_ood.benchmark.ImageNet_OpenOOD(root="data").evaluate(detector)  # doctest: +SKIP
    """
    try:
        from pytorch_ood.api import Detector
    except ImportError as error:
        raise RunError(f"A pytorch-ood detector needs pytorch-ood ({error}): pip install pytorch-ood.") from error

    class ScoreDetector(Detector):  # type: ignore[misc]
        def __init__(self, chosen: Score) -> None:
            super().__init__()
            self.score, self.model = chosen, model
            self.requires_fit = chosen.requires_fit

        def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]], device: Any = None) -> Any:
            if not self.requires_fit:
                return self
            embeds, labels = [], []
            for pixel_values, batch_labels in data_loader:
                inputs = _inputs(self.model, "max_logit", pixel_values=pixel_values)
                embeds.append(inputs.image_embeds)
                labels.append(batch_labels)
            if not embeds:
                raise ScoreInputError(
                    f"Score {self.score.name!r} was given no images to fit; give ID training images."
                )
            return self.fit_features(torch.cat(embeds), torch.cat(labels))

        def fit_features(self, x: Tensor, y: Tensor) -> Any:
            if isinstance(self.score, FittedScore):
                known = (y >= 0).cpu()
                inputs = _inputs(self.model, self.score, image_embeds=x[known.to(x.device)])
                # A new one, for the given score may be in use with another fit.
                fresh = get_score(self.score.name, **self.score.options)
                assert isinstance(fresh, FittedScore)
                self.score = fresh.fit(inputs, y.cpu()[known])
            return self

        def predict(self, x: Tensor) -> Tensor:
            return self._judge(pixel_values=x)

        def predict_features(self, x: Tensor) -> Tensor:
            return self._judge(image_embeds=x)

        def _judge(self, **images: Tensor) -> Tensor:
            with torch.no_grad():
                return self.score(_inputs(self.model, self.score, **images)).cpu()

    return ScoreDetector(get_score(score))


def _inputs(model: Any, score: str | Score, **images: Tensor) -> Any:
    with torch.no_grad():
        moved = {name: value.to(model.device) for name, value in images.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
        return model.score_inputs(**moved, score=score)
