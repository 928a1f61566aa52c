"""A loss that keeps tuned text features, or what follows from them, close to the original ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_oodclip.errors import LossError, unknown_name

from .base import KRNFT, LossInfo, check_logits

__all__ = ["KnowledgeRegularization"]

_KINDS = ("feature", "logit", "probability")


@dataclass(frozen=True)
class KnowledgeRegularization:
    """How far tuning has moved the text features (or logits, or probabilities); 0 is not at all.

    * `feature`: `1 - mean cos(c', c)` over labels and negatives together, the paper's;
    * `logit`: mean squared difference of tuned and original logits;
    * `probability`: KL divergence of the tuned from the original softmax over labels and negatives.

    The paper names the last two as ablations without giving them: these are our readings.

    Args:
        on: What is kept.

    Source: KR-NFT, ACM MM 2025, equation 9.

    Example:
        >>> import torch
        >>> loss = KnowledgeRegularization()
        >>> loss(torch.tensor([[1.0, 0.9]]), torch.tensor([[0.8]]))
        tensor(0.1000)
    """

    on: str = "feature"

    name: ClassVar[str] = "knowledge_regularization"
    info: ClassVar[LossInfo] = LossInfo(title="Knowledge regularisation", **KRNFT)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.on not in _KINDS:
            raise unknown_name(f"kind of loss {self.name!r}", self.on, _KINDS)

    @property
    def needs(self) -> tuple[str, ...]:
        """What of a training step it is called with."""
        if self.on == "feature":
            return ("kept_labels", "kept_negatives")
        return ("label_logits", "negative_logits", "original_label_logits", "original_negative_logits")

    def __call__(
        self,
        labels: Tensor,
        negatives: Tensor,
        original_labels: Tensor | None = None,
        original_negatives: Tensor | None = None,
    ) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            labels: On features: cosines of tuned with original label features, `[B, N]` or `[1, N]`.
                Else: tuned label logits, `[B, N]` or `[B, Q, N]`.
            negatives: The same of the negatives.
            original_labels: Label logits of the untuned model, unless on features.
            original_negatives: The same of the negatives.

        Raises:
            LossError: The shapes do not fit, or the original logits are missing.
        """
        check_logits(self.name, labels, negatives)
        count = labels.numel() + negatives.numel()
        if self.on == "feature":
            # The mean over both, without putting them together.
            return ((1 - labels).sum() + (1 - negatives).sum()) / count
        if original_labels is None or original_negatives is None:
            raise LossError(
                f"Loss {self.name!r} on {self.on!r} needs the logits of the untuned model too (original_labels, "
                "original_negatives)."
            )
        if (original_labels.shape, original_negatives.shape) != (labels.shape, negatives.shape):
            raise LossError(
                f"Loss {self.name!r}: tuned logits {tuple(labels.shape)}, {tuple(negatives.shape)} and original "
                f"ones {tuple(original_labels.shape)}, {tuple(original_negatives.shape)} differ in shape."
            )
        if self.on == "logit":
            return (
                (labels - original_labels).square().sum() + (negatives - original_negatives).square().sum()
            ) / count
        tuned_mass, original_mass = _log_mass(labels, negatives), _log_mass(original_labels, original_negatives)
        total = labels.new_zeros(labels.shape[:-1])
        for tuned, original in ((labels, original_labels), (negatives, original_negatives)):
            log_original = original - original_mass
            total = total + (log_original.exp() * (log_original - (tuned - tuned_mass))).sum(-1)
        return total.mean()


def _log_mass(labels: Tensor, negatives: Tensor) -> Tensor:
    """Return the logsumexp over labels and negatives, `[..., 1]`."""
    among_labels = torch.logsumexp(labels, dim=-1, keepdim=True)
    if negatives.shape[-1] == 0:
        return among_labels
    return torch.logaddexp(among_labels, torch.logsumexp(negatives, dim=-1, keepdim=True))
