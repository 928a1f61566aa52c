"""What every loss shares: its record, its checks, and the refusal of a value that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_oodclip.errors import LossError, NonFiniteError

__all__ = ["LossInfo", "check_labels", "check_logits", "checked_loss", "right_logits"]


@dataclass(frozen=True)
class LossInfo:
    """Where a loss comes from, for documentation, cards and tables."""

    title: str
    paper: str
    venue: str
    year: int
    url: str


KRNFT = {
    "paper": "Knowledge Regularized Negative Feature Tuning of Vision-Language Models for "
    "Out-of-Distribution Detection",
    "venue": "ACM MM",
    "year": 2025,
    "url": "https://arxiv.org/abs/2507.19847",
}


def checked_loss(value: Tensor, name: str, batch: Sequence[object] = ()) -> Tensor:
    """Return the loss unchanged, or raise before a step is taken with NaN or infinity.

    Args:
        value: A scalar.
        name: Name of the loss.
        batch: What the batch was made of, such as row numbers or paths: named in the message.

    Raises:
        NonFiniteError: The value is NaN or infinite.

    Example:
        >>> checked_loss(torch.tensor(0.5), "classification")
        tensor(0.5000)
    """
    if torch.isfinite(value).all():
        return value
    shown = ", ".join(str(item) for item in batch[:10]) + (", ..." if len(batch) > 10 else "")
    raise NonFiniteError(
        f"The loss {name!r} is {float(value.detach())} on batch [{shown}]: look for damaged images or features "
        "there, or lower the learning rate or the weight of a loss without lower bound (ood_negatives). The last "
        "good checkpoint is untouched."
    )


def check_logits(name: str, label_logits: Tensor, negative_logits: Tensor) -> None:
    """Raise unless the logits of labels and negatives are of one batch.

    Args:
        name: Name of the loss.
        label_logits: `[..., N]`.
        negative_logits: `[..., M]`.

    Raises:
        LossError: The shapes do not fit, or there is no label.
    """
    if label_logits.shape[:-1] != negative_logits.shape[:-1] or label_logits.shape[-1] == 0:
        raise LossError(
            f"Loss {name!r} needs logits [..., labels] with at least one label and [..., negatives] of the same "
            f"batch, got {tuple(label_logits.shape)} and {tuple(negative_logits.shape)}."
        )


def check_labels(name: str, labels: Tensor, num_images: int, num_labels: int) -> None:
    """Raise unless there is one label index an image, and each is the index of a label.

    Args:
        name: Name of the loss.
        labels: The indices.
        num_images: Images in the batch.
        num_labels: Labels there are.

    Raises:
        LossError: Another shape or dtype, or an index out of range.
    """
    if labels.shape != (num_images,) or labels.is_floating_point():
        raise LossError(
            f"Loss {name!r} needs one label index an image, [{num_images}], got {tuple(labels.shape)} of "
            f"{labels.dtype}."
        )
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise LossError(
            f"Loss {name!r}: labels must be from 0 to {num_labels - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}."
        )


def right_logits(name: str, label_logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the right label, `[..., 1]` of `[..., N]`: all crops of an image share its label.

    Raises:
        LossError: The labels do not fit, see `check_labels`.
    """
    check_labels(name, labels, len(label_logits), label_logits.shape[-1])
    index = labels.view(-1, *[1] * (label_logits.ndim - 1)).expand(*label_logits.shape[:-1], 1)
    return label_logits.gather(-1, index)
