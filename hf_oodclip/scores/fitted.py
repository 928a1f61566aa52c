"""What the scores that learn from ID images share: fit, state, and the checks around both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ScoreInputError, unknown_name
from .base import Score, ScoreInputs

__all__ = ["FEATURE_SPACES", "FittedScore", "check_choice", "features_in"]

FEATURE_SPACES = ("raw", "normalized")


def check_choice(score: Score, option: str, allowed: Sequence[str]) -> None:
    """Raise `UnknownNameError` unless the option has one of the allowed values."""
    if getattr(score, option) not in allowed:
        raise unknown_name(f"{option} of score {score.name!r}", getattr(score, option), allowed)


def features_in(space: str, image_embeds: Tensor | None) -> Tensor:
    """Return the image embeddings as they are (`raw`) or scaled to length 1 (`normalized`), `[B, D]`."""
    assert image_embeds is not None
    return image_embeds if space == "raw" else normalize(image_embeds, dim=-1)


@dataclass
class FittedScore(Score):
    """A score that learns some tensors from ID images before it can judge others.

    A subclass names these tensors in `state_names` and implements `learn`.
    """

    _state: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    requires_fit = True
    needs: ClassVar[tuple[str, ...]] = ("image_embeds",)
    needs_class_indices: ClassVar[bool] = False
    state_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def learn(self, inputs: ScoreInputs, labels: Tensor | None) -> dict[str, Tensor]:
        """Return the state by name, from checked inputs and class indices on the CPU."""

    def fit(self, inputs: ScoreInputs, labels: Tensor | Sequence[int] | None = None) -> Self:
        """Learn from ID images and return the score, ready for use.

        Args:
            inputs: Of ID training images, as `model.score_inputs` returns them.
            labels: Class index of every image, `[n]`, for the scores that look at classes.

        Raises:
            ScoreInputError: Too few images, or class indices that are missing or no such thing.
            NonFiniteError: An input has NaN or infinity.
        """
        checked = self._checked(inputs)
        on_cpu = {name: getattr(checked, name).cpu() for name in {"similarity", *self.needs}}
        num_images, num_labels = checked.similarity.shape
        if num_images < 2:
            raise ScoreInputError(f"Score {self.name!r} needs at least 2 ID images to fit, got {num_images}.")
        indices = None
        if self.needs_class_indices:
            indices = self._class_indices(labels, num_images, num_labels)
        # Integers and bf16 have no place here: what is learnt is as precise as what it is compared with.
        dtype = torch.float64 if checked.similarity.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            learnt = self.learn(ScoreInputs(**on_cpu, logit_scale=checked.logit_scale), indices)
            self._state = {name: learnt[name].to(dtype) for name in self.state_names}
        return self

    def state(self, name: str, like: Tensor) -> Tensor:
        """Return a learnt tensor with the device and dtype of another tensor.

        Raises:
            ScoreInputError: The other tensor has embeddings of another width than those fitted to.
        """
        value = self._state[name].to(like)
        if value.ndim == 2 and value.shape[-1] != like.shape[-1]:
            raise ScoreInputError(
                f"Score {self.name!r} was fitted to embeddings of width {value.shape[-1]} but got {like.shape[-1]}: "
                "fit it with this model."
            )
        return value

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state and set(state) != set(self.state_names):
            raise ScoreInputError(
                f"Score {self.name!r} keeps the state {sorted(self.state_names)} but was given {sorted(state)}."
            )
        self._state = dict(state)

    def _class_indices(self, labels: Tensor | Sequence[int] | None, num_images: int, num_labels: int) -> Tensor:
        if labels is None:
            raise ScoreInputError(f"Score {self.name!r} is fitted by class: give labels, a class index an image.")
        indices = torch.as_tensor(labels).cpu()
        if indices.shape != (num_images,) or indices.is_floating_point() or indices.dtype == torch.bool:
            raise ScoreInputError(
                f"labels must be {num_images} class indices, one an image, got {indices.dtype} of shape "
                f"{tuple(indices.shape)}."
            )
        if indices.min() < 0 or indices.max() >= num_labels:
            raise ScoreInputError(
                f"labels must be class indices from 0 to {num_labels - 1}, got {int(indices.min())} to "
                f"{int(indices.max())}: use the order of model.labels."
            )
        return indices.long()
