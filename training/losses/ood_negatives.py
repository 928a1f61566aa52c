"""A loss that teaches crops without the object to look like negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from hf_oodclip.errors import LossError
from hf_oodclip.scores.grouping import group_margin

from .base import KRNFT, LossInfo, check_logits

__all__ = ["OODNegatives"]


@dataclass(frozen=True)
class OODNegatives:
    """Mean log of the softmax mass that the labels get on OOD crops; smaller is better.

    With `P` the logsumexp of the label logits and `Q_g` that of the g-th group of negatives,

        L_n = mean over crops and groups of  log sigmoid(P - Q_g)

    It has no lower bound (its gradient is the share of the negatives' mass, at most 1), so its weight must
    stay small: 0.3 in the paper.

    Args:
        num_groups: Groups the negatives are split into: 1 in the paper, 10 in its released code.
        seed: Seed of the private generator that permutes the negatives once.

    Source: KR-NFT, ACM MM 2025, equation 8 (its code adds 1e-16 inside the log; the closed form needs none).

    Example:
        >>> import torch
        >>> OODNegatives()(torch.tensor([[0.0]]), torch.tensor([[0.0]]))
        tensor(-0.6931)
    """

    num_groups: int = 1
    seed: int = 0

    name: ClassVar[str] = "ood_negatives"
    needs: ClassVar[tuple[str, ...]] = ("ood_label_logits", "ood_negative_logits")
    info: ClassVar[LossInfo] = LossInfo(title="OOD loss on negative crops", **KRNFT)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise LossError(f"Loss {self.name!r}: num_groups must be at least 1, got {self.num_groups}.")

    def __call__(self, label_logits: Tensor, negative_logits: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            label_logits: Of OOD crops, `[B, N]` or `[B, Q, N]`.
            negative_logits: `[B, M]` or `[B, Q, M]`.

        Raises:
            LossError: The shapes do not fit, or there are no negatives.
        """
        check_logits(self.name, label_logits, negative_logits)
        if negative_logits.shape[-1] == 0:
            raise LossError(f"Loss {self.name!r} needs negatives, and the model has none: load it with negatives=...")
        return logsigmoid(group_margin(label_logits, negative_logits, self.num_groups, self.seed)).mean()
