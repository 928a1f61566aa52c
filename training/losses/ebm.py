"""A loss that makes the energy gap of DeltaEnergy grow, by what is left out of masked image features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from hf_oodclip.errors import LossError, unknown_name

from .base import LossInfo, check_labels

__all__ = ["EBM"]

# What the loss makes of an image's gap, and the temperature that suits it.
_PHIS = {"softplus": 0.01, "exp": 1.0, "identity": 0.01}
_BOUNDS = ("plain", "safe")
_ANCHORS = ("predicted", "label")
# `exp` of more says nothing any more. Cosines differ by at most 2: from a temperature of 0.1 on it is never reached.
_MAX_EXPONENT = 20.0


@dataclass(frozen=True)
class EBM:
    """Mean of `phi(E_0 - E_2)`: how much the energy of an image falls when the evidence for its class is isolated.

    **A reconstruction**: the paper was not at hand in full; temperature, mask and `phi` are our choices.

    With `v` and `c_j` image and label features of unit length, `k` the anchor class and `m` the mask of the
    `ceil(mask_fraction * D)` largest entries of `v * c_k`, held constant,

        E_0 = -logsumexp_j(v . c_j / t),    E_2 = -logsumexp_j((v * m) . c_j / t)
        L   = mean over images (and crops) of  phi(E_0 - E_2)

    With `E_1` the energy after setting the `num_cropped` largest cosines to 0, the DeltaEnergy score is
    `E_1 - E_0 >= min(E_1, E_2) - E_0`: wherever `E_2 <= E_1`, making `E_2 - E_0` large makes a lower bound
    of that score large. Features in a narrow cone, as CLIP's, meet this in our tests; `bound="safe"` needs
    no condition. The mask drops what speaks against the class, so `(v * m) . c_k` exceeds `v . c_k` at
    first; the gradient rewards text features for what the coordinates outside the mask say for the class.

    Args:
        phi: `softplus`; `exp`, whose exponent is cut at 20 (no gradient beyond; never reached for a
            temperature of 0.1 or more); or `identity`, which has no lower bound.
        temperature: `t`; None is 0.01, and 1.0 for `exp`.
        mask_fraction: Share of the coordinates that the mask keeps, between 0 and 1.
        num_cropped: How many of the largest cosines `E_1` goes without; at most N - 1, and 1 when N = 1.
        bound: `plain`, or `safe`: `min(E_1, E_2)` in place of `E_2`, a lower bound without conditions.
        anchor: The class whose evidence is kept: the `predicted` one, or the right `label`.
        only_correct: Leave out images that are classified wrongly; 0 when none is left.
        renormalize: Give the masked image feature unit length again.

    Source: our reading of EBM in "Delta Energy" (Zhu et al., NeurIPS 2025).

    Example:
        >>> import torch
        >>> images, labels = torch.tensor([[0.6, 0.8]]), torch.eye(2)
        >>> EBM(phi="identity", temperature=1.0, mask_fraction=0.5)(images, labels)
        tensor(-0.2270)
    """

    phi: str = "softplus"
    temperature: float | None = None
    mask_fraction: float = 0.6
    num_cropped: int = 1
    bound: str = "plain"
    anchor: str = "predicted"
    only_correct: bool = False
    renormalize: bool = False

    name: ClassVar[str] = "ebm"
    needs: ClassVar[tuple[str, ...]] = ("image_embeds", "label_embeds", "labels")
    info: ClassVar[LossInfo] = LossInfo(
        title="EBM (reconstruction)",
        paper="Delta Energy: Optimizing Energy Change During Vision-Language Alignment Improves both "
        "OOD Detection and OOD Generalization",
        venue="NeurIPS",
        year=2025,
        url="https://arxiv.org/abs/2510.11296",
    )

    def __post_init__(self) -> None:
        for option, allowed in (("phi", _PHIS), ("bound", _BOUNDS), ("anchor", _ANCHORS)):
            if getattr(self, option) not in allowed:
                raise unknown_name(f"{option} of loss {self.name!r}", getattr(self, option), allowed)
        if self.temperature is not None and not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise LossError(f"Loss {self.name!r}: temperature must be above 0, or None, got {self.temperature!r}.")
        if not (_is_number(self.mask_fraction) and 0 < self.mask_fraction < 1):
            raise LossError(
                f"Loss {self.name!r}: mask_fraction must be between 0 and 1, got {self.mask_fraction!r}; a mask that "
                "keeps nothing, or everything, teaches nothing."
            )
        if isinstance(self.num_cropped, bool) or not isinstance(self.num_cropped, int) or self.num_cropped < 1:
            raise LossError(f"Loss {self.name!r}: num_cropped must be at least 1, got {self.num_cropped!r}.")
        for option in ("only_correct", "renormalize"):
            if not isinstance(getattr(self, option), bool):
                raise LossError(f"Loss {self.name!r}: {option} must be True or False, got {getattr(self, option)!r}.")

    def __call__(self, image_embeds: Tensor, label_embeds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            image_embeds: Image features of any length, `[B, D]`, or `[B, Q, D]` for Q crops an image.
            label_embeds: Label features of any length, `[N, D]`, or `[B, N, D]` where every image has its own.
            labels: Index of the right label of each image, `[B]`; for `anchor="label"` and `only_correct`.

        Raises:
            LossError: The shapes do not fit, or labels are missing or out of range.
        """
        self._check(image_embeds, label_embeds, labels)
        dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, label_embeds.dtype), torch.float32)
        with torch.autocast(image_embeds.device.type, enabled=False):
            images, texts = (normalize(embeds.to(dtype), dim=-1) for embeds in (image_embeds, label_embeds))
            images = images.unsqueeze(1) if images.ndim == 2 else images
            cosines = images @ texts.mT
            predicted = cosines.argmax(dim=-1)
            right = predicted if labels is None else labels.unsqueeze(1).expand_as(predicted)
            masked = self._masked(images, texts, right if self.anchor == "label" else predicted)
            gap = self._gap(cosines, masked @ texts.mT)
            if not self.only_correct:
                return self._shaped(gap).mean()
            correct = predicted == right
            return self._shaped(gap[correct]).sum() / correct.sum().clamp(min=1)

    def _masked(self, images: Tensor, texts: Tensor, anchors: Tensor) -> Tensor:
        """Return the images `[B, Q, D]` with all but the strongest evidence for the anchors `[B, Q]` set to 0."""
        dim = images.shape[-1]
        if texts.ndim == 2:
            anchor_texts = texts[anchors]
        else:
            anchor_texts = texts.gather(1, anchors.unsqueeze(-1).expand(-1, -1, dim))
        # Not one more than meant where 0.6 * 5 is a little more than 3.
        count = math.ceil(self.mask_fraction * dim - 1e-9)
        kept = (images * anchor_texts).detach().topk(count, dim=-1).indices
        masked = images * torch.zeros_like(images).scatter(-1, kept, 1.0)
        return normalize(masked, dim=-1) if self.renormalize else masked

    def _gap(self, cosines: Tensor, masked_cosines: Tensor) -> Tensor:
        """Return `E_0 - E_2`, or `E_0 - min(E_1, E_2)`, `[B, Q]`."""
        temperature = _PHIS[self.phi] if self.temperature is None else self.temperature
        energy, masked_energy = (-torch.logsumexp(each / temperature, dim=-1) for each in (cosines, masked_cosines))
        if self.bound == "safe":
            top = cosines.topk(max(1, min(self.num_cropped, cosines.shape[-1] - 1)), dim=-1).indices
            cropped_energy = -torch.logsumexp(cosines.scatter(-1, top, 0.0) / temperature, dim=-1)
            masked_energy = torch.minimum(masked_energy, cropped_energy)
        return energy - masked_energy

    def _shaped(self, gap: Tensor) -> Tensor:
        if self.phi == "softplus":
            return softplus(gap)
        return gap if self.phi == "identity" else gap.clamp(max=_MAX_EXPONENT).exp()

    def _check(self, image_embeds: Tensor, label_embeds: Tensor, labels: Tensor | None) -> None:
        images, texts = tuple(image_embeds.shape), tuple(label_embeds.shape)
        of_images = len(texts) == 3 and texts[:1] == images[:1]
        if (
            len(images) not in (2, 3)
            or not (len(texts) == 2 or of_images)
            or images[-1] != texts[-1]
            or 0 in texts[-2:]
        ):
            raise LossError(
                f"Loss {self.name!r} needs image features [B, D] or [B, Q, D] and features of at least one label, "
                f"[N, D] or [B, N, D], got {images} and {texts}."
            )
        if labels is not None:
            check_labels(self.name, labels, images[0], texts[-2])
        elif self.only_correct or self.anchor == "label":
            option = "only_correct" if self.only_correct else "anchor='label'"
            raise LossError(f"Loss {self.name!r} with {option} needs labels: give the index of every image's.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
