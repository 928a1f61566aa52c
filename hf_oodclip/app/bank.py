"""A text bank with its scores and calibrations for each choice of labels, around towers that all share."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..calibration import Calibration
from ..scores import Score, get_score, list_scores

__all__ = ["NO_ADAPTER", "Bank", "ImageResult", "Setup", "results_of", "sharing_towers", "usable_scores"]

NO_ADAPTER = "none"
NUM_LABELS_SHOWN = 5
# What the image alone does not give: texts of another encoder, names proposed for it, a second pass.
_NOT_AT_HAND = {"no_similarity", "candidate_similarity", "perturbed_similarity"}


@dataclass(frozen=True)
class Setup:
    """What a visitor has chosen that decides the text features: labels, negatives, adapter (by name)."""

    labels: tuple[str, ...]
    negatives: str
    adapter: str = NO_ADAPTER


@dataclass(frozen=True)
class Bank:
    """A model with the text bank of one setup, the scores that work on it, and its calibrations, by score key."""

    model: Any
    scores: dict[str, Score]
    calibrations: dict[str, Calibration]

    @property
    def default_score(self) -> str:
        """Key of the score in use at first."""
        return self.model.score.key


@dataclass(frozen=True)
class ImageResult:
    """What was found about one image: all scores, so that choosing another needs no second pass.

    Args:
        path: Where it lies.
        labels: The best labels with their probabilities, best first.
        nearest_negative: None without negatives.
        ood_scores: By score key.
    """

    path: Path
    labels: list[tuple[str, float]]
    nearest_negative: str | None
    ood_scores: dict[str, float]


def sharing_towers(model: Any) -> Any:
    """Return a copy with bank, score, calibrations and config of its own around the same towers."""
    shared = (model.clip, model._preprocessing)
    return copy.deepcopy(model, {id(part): part for part in shared})


def usable_scores(model: Any, wanted: str | None) -> dict[str, Score]:
    """Return the scores that work on a model, and have it use the wanted one, or its own, if it is among them."""
    own = model.score if wanted is None else get_score(wanted)
    model.set_score(own if _is_usable(own, model) else None)
    found = [model.score, *(get_score(name) for name in list_scores())]
    return {score.key: score for score in found if _is_usable(score, model)}


def _is_usable(score: Score, model: Any) -> bool:
    return not (
        (score.requires_fit and not score.state_dict())
        or score.online
        or (model.negatives is None and "negative_similarity" in score.needs)
        or _NOT_AT_HAND & set(score.needs)
        or len(model.labels) < score.min_labels
    )


def results_of(bank: Bank, paths: list[Path], images: list[Image.Image]) -> list[ImageResult]:
    """Return what one pass of images finds."""
    model = bank.model
    (inputs,) = model._passes(images, list(bank.scores.values()), len(images))
    values = {key: score(found).tolist() for (key, score), found in zip(bank.scores.items(), inputs, strict=True)}
    probabilities = torch.softmax(inputs[0].logit_scale * inputs[0].similarity, dim=-1)
    values_of_best, rows_of_best = probabilities.topk(min(NUM_LABELS_SHOWN, probabilities.shape[-1]))
    best = [
        [(model.labels[index], value) for index, value in zip(indices, found, strict=True)]
        for indices, found in zip(rows_of_best.tolist(), values_of_best.tolist(), strict=True)
    ]
    negatives = None if model.negatives is None else inputs[0].negative_similarity.argmax(dim=-1).tolist()
    return [
        ImageResult(
            path=path,
            labels=best[row],
            nearest_negative=None if negatives is None else model.negatives.texts[negatives[row]],
            ood_scores={key: column[row] for key, column in values.items()},
        )
        for row, path in enumerate(paths)
    ]
