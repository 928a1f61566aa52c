"""Plain cross-entropy over the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_oodclip.errors import LossError

from .base import LossInfo, right_logits

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification:
    """Mean cross-entropy of the right label among all labels; negatives play no part.

    With `z` the label logits of an image or crop and `y` its right label,

        L = mean over images and crops of  logsumexp(z) - z_y

    Args:
        This loss has no options.

    Source: as in CoOp (Zhou et al., IJCV 2022) and what came after it.

    Example:
        >>> import torch
        >>> Classification()(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """

    name: ClassVar[str] = "classification"
    needs: ClassVar[tuple[str, ...]] = ("label_logits", "labels")
    info: ClassVar[LossInfo] = LossInfo(
        title="Classification",
        paper="Learning to Prompt for Vision-Language Models",
        venue="IJCV",
        year=2022,
        url="https://arxiv.org/abs/2109.01134",
    )

    def __call__(self, label_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar.

        Args:
            label_logits: `[B, N]`, or `[B, Q, N]` for Q crops an image.
            labels: Index of the right label of each image, `[B]`.

        Raises:
            LossError: The shapes do not fit, or a label is out of range.
        """
        if label_logits.ndim < 2 or label_logits.shape[-1] == 0:
            raise LossError(
                f"Loss {self.name!r} needs logits [..., labels] with at least one label, got "
                f"{tuple(label_logits.shape)}."
            )
        right = right_logits(self.name, label_logits, labels)
        return (torch.logsumexp(label_logits, dim=-1, keepdim=True) - right).mean()
