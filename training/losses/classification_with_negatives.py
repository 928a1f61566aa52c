"""Cross-entropy in which the negatives compete with the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hf_oodclip.errors import LossError
from hf_oodclip.scores.grouping import group_margin

from .base import KRNFT, LossInfo, check_logits, right_logits

__all__ = ["ClassificationWithNegatives"]


@dataclass(frozen=True)
class ClassificationWithNegatives:
    """Mean cross-entropy of the right label among all labels and each group of negatives.

    With `P` the logsumexp of the label logits `z`, `Q_g` that of the g-th group of negatives and `y` the
    right label,

        L_p = mean over images and groups of  logaddexp(P, Q_g) - z_y

    which equals soft-maxing labels and group together, with no concatenation. Without negatives it is
    plain cross-entropy.

    Args:
        num_groups: Groups the negatives are split into: 1 in the paper, 10 in its released code. The
            last `M mod num_groups` negatives are dropped.
        seed: Seed of the private generator that permutes the negatives once.

    Source: KR-NFT, ACM MM 2025, equation 7.

    Example:
        >>> import torch
        >>> loss = ClassificationWithNegatives()
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor(0.3408)
    """

    num_groups: int = 1
    seed: int = 0

    name: ClassVar[str] = "classification_with_negatives"
    needs: ClassVar[tuple[str, ...]] = ("label_logits", "negative_logits", "labels")
    info: ClassVar[LossInfo] = LossInfo(title="Classification with negatives", **KRNFT)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.num_groups < 1:
            raise LossError(f"Loss {self.name!r}: num_groups must be at least 1, got {self.num_groups}.")

    def __call__(self, label_logits: Tensor, negative_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            label_logits: `[B, N]`, or `[B, Q, N]` for Q crops an image.
            negative_logits: `[B, M]` or `[B, Q, M]`.
            labels: Index of the right label of each image, `[B]`.

        Raises:
            LossError: The shapes do not fit, or a label is out of range.
        """
        check_logits(self.name, label_logits, negative_logits)
        right = right_logits(self.name, label_logits, labels)
        among_labels = torch.logsumexp(label_logits, dim=-1, keepdim=True) - right
        if negative_logits.shape[-1] == 0:
            return among_labels.mean()
        margin = group_margin(label_logits, negative_logits, self.num_groups, self.seed)
        # logaddexp(P, Q) = P + softplus(Q - P)
        return (among_labels + softplus(-margin)).mean()
