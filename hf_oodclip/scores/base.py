"""What every score is made of: its inputs, its record, and the checks around its formula."""

from __future__ import annotations

import dataclasses
import math
import numbers
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import NonFiniteError, ScoreInputError

__all__ = ["Score", "ScoreInfo", "ScoreInputs"]


@dataclass(frozen=True)
class ScoreInputs:
    """Everything a score may look at for a batch of B images: cosines, and embeddings where needed.

    What a score does not name under `needs` may be None.

    Args:
        similarity: Cosines with the labels, `[B, N]`, in [-1, 1].
        negative_similarity: Cosines with the negatives, `[B, M]`.
        image_embeds: Projected image embeddings before normalisation, `[B, D]`.
        patch_similarity: Cosines of every patch with every label, `[B, P, N]`.
        logit_scale: Factor between a cosine and a CLIP logit (100 for most CLIP checkpoints).
        label_embeds: Text features of the labels, `[N, D]`, the same for all images.
        perturbed_similarity: Cosines with the labels after the score's own change of the pixels, `[B, N]`.
        no_similarity: Cosines with a "no" text of every label, `[B, N]`.
        candidate_similarity: Cosines with names proposed for each image, `[B, C]`, padded with -inf.

    Example:
        >>> import torch
        >>> inputs = ScoreInputs(similarity=torch.tensor([[0.30, 0.10]]))
        >>> inputs.similarity.shape
        torch.Size([1, 2])
    """

    similarity: Tensor
    negative_similarity: Tensor | None = None
    image_embeds: Tensor | None = None
    patch_similarity: Tensor | None = None
    logit_scale: float = 100.0
    label_embeds: Tensor | None = None
    perturbed_similarity: Tensor | None = None
    no_similarity: Tensor | None = None
    candidate_similarity: Tensor | None = None


_FROM_PIXELS = (
    "stored image embeddings do not hold it, so give pixels, to a model with this score in use or by "
    "model.score_inputs(pixel_values, score=...)"
)
_ADVICE = {
    "negative_similarity": "load the model with negatives=... (mined words or your own list)",
    "patch_similarity": _FROM_PIXELS,
    "perturbed_similarity": _FROM_PIXELS,
    "label_embeds": "compute the inputs with model.score_inputs(..., score=...); prompts that each image "
    "writes for itself (conditional adapters) have none",
    "no_similarity": "set it by dataclasses.replace(inputs, no_similarity=...) to the cosines with the features "
    "of a CLIPN 'no' text encoder",
    "candidate_similarity": "set it by dataclasses.replace(inputs, candidate_similarity=...) to the cosines with "
    "the names proposed for each image, padded with -inf",
}
_SHAPES = {"patch_similarity": 3}
_ONE_PER_LABEL = ("patch_similarity", "perturbed_similarity", "no_similarity")


@dataclass(frozen=True)
class ScoreInfo:
    """Where a score comes from, for documentation, cards and tables."""

    title: str
    paper: str
    venue: str
    year: int
    url: str


@dataclass
class Score(ABC):
    """One number an image that says how far it is from every label: larger = more OOD.

    A subclass is a dataclass whose fields are its options; it sets `name`, `needs` and `info` and
    implements `compute`. Calling a score checks the inputs, runs the formula in fp32 (fp64 stays
    fp64) and refuses non-finite values.

    A score with `requires_fit` learns from ID images first (see `FittedScore`) and names under
    `fit_options` the options its fit depends on; one that is `online` remembers the images it has
    seen, so that its results depend on their order, and has `reset()`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("similarity",)
    requires_fit: ClassVar[bool] = False
    fit_options: ClassVar[tuple[str, ...]] = ()
    online: ClassVar[bool] = False
    min_labels: ClassVar[int] = 1
    info: ClassVar[ScoreInfo]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
                # One option, one key: 2, 2.0 and a numpy 2.0 name the same calibration.
                setattr(self, field.name, float(value))
        temperature = getattr(self, "temperature", None)
        if temperature is not None and not (isinstance(temperature, float) and 0 < temperature < math.inf):
            raise ScoreInputError(
                f"Score {self.name!r}: temperature must be a positive number (or None for the model's logit scale), "
                f"got {temperature!r}."
            )

    @abstractmethod
    def compute(self, inputs: ScoreInputs) -> Tensor:
        """Return `ood_score` `[B]` for checked inputs in fp32 or fp64."""

    def __call__(self, inputs: ScoreInputs) -> Tensor:
        """Return `ood_score` `[B]`, larger = more OOD.

        Raises:
            ScoreInputError: An input this score needs is missing or has the wrong shape.
            NonFiniteError: An input or the result has NaN or infinity.
        """
        if self.requires_fit and not self.state_dict():
            raise ScoreInputError(
                f"Score {self.name!r} is not fitted: call model.fit_score(images, labels, score={self.name!r}) with "
                "ID training images, or score.fit(inputs, labels)."
            )
        return self._finite("ood_score", self.compute(self._checked(inputs)).to(torch.float32))

    @property
    def options(self) -> dict[str, Any]:
        """The constructor options, as plain values that JSON can hold."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    @property
    def key(self) -> str:
        """Name plus the options that differ from their defaults: what a calibration belongs to."""
        changed = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.init and getattr(self, field.name) != field.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def state_dict(self) -> dict[str, Tensor]:
        """Return what fitting learned, as tensors (empty for a score that needs no fit)."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ScoreInputError: The state has entries this score does not know.
        """
        if state:
            raise ScoreInputError(f"Score {self.name!r} keeps no state but was given {sorted(state)}.")

    def perturb(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Return the pixel values whose cosines the score wants as `perturbed_similarity`."""
        return pixel_values

    def inverse_temperature(self, temperature: float | None, inputs: ScoreInputs) -> float:
        """Return the factor on the cosines: `1 / temperature`, or the model's logit scale for None."""
        return inputs.logit_scale if temperature is None else 1.0 / temperature

    def _checked(self, inputs: ScoreInputs) -> ScoreInputs:
        batch, num_labels = self._checked_shape("similarity", inputs.similarity).shape
        # What a score never reads is left out, so that it pays for no check of it.
        used = {"similarity": inputs.similarity}
        for name in self.needs:
            value = self._checked_shape(name, getattr(inputs, name))
            rows = num_labels if name == "label_embeds" else batch
            if value.shape[0] != rows:
                raise ScoreInputError(f"{name} has {value.shape[0]} rows but similarity is for {rows}.")
            if name in _ONE_PER_LABEL and value.shape[-1] != num_labels:
                raise ScoreInputError(f"{name} is for {value.shape[-1]} labels but similarity for {num_labels}.")
            used[name] = self._finite(name, value if value.dtype == torch.float64 else value.float())
        return ScoreInputs(**used, logit_scale=inputs.logit_scale)

    def _checked_shape(self, name: str, value: Tensor | None) -> Tensor:
        if value is None or (name != "similarity" and value.ndim > 0 and value.shape[-1] == 0):
            advice = _ADVICE.get(name, "compute the inputs with model.score_inputs(...)")
            raise ScoreInputError(f"Score {self.name!r} needs {name}, which is missing: {advice}.")
        if value.ndim != _SHAPES.get(name, 2) or value.shape[-1] == 0:
            expected = "with at least one label" if name == "similarity" else "as ScoreInputs describes it"
            raise ScoreInputError(f"{name} must be [batch, ...] {expected}, got shape {tuple(value.shape)}.")
        if name == "similarity" and value.shape[1] < self.min_labels:
            raise ScoreInputError(
                f"Score {self.name!r} compares labels with each other and is constant for a single one: "
                "give more labels, or use max_logit, energy, delta_energy, or neglabel with negatives."
            )
        return value

    def _finite(self, name: str, value: Tensor) -> Tensor:
        finite = torch.isfinite(value)
        if name == "candidate_similarity":
            finite |= value == -torch.inf
        if not finite.all():
            rows = torch.nonzero(~finite.reshape(len(finite), -1).all(1)).flatten().tolist()
            raise NonFiniteError(
                f"{name} has NaN or infinity in rows {rows[:10]}: look for NaN in the checkpoint's "
                "weights or in the pixel values (fp16 overflow is a common cause: use dtype=float32)."
            )
        return value
