"""The training losses: one file each, one line each in the table below.

To add a loss, write `training/losses/<name>.py` with one class that names what it is called with in `needs`
(fields of `training.step.StepOutputs`) and returns a scalar, add its line to `LOSSES`, and write
`tests/training/test_<name>.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from hf_oodclip.errors import unknown_name

from .base import LossInfo, checked_loss

__all__ = ["LOSSES", "LossInfo", "checked_loss", "get_loss", "list_losses"]

LOSSES: dict[str, str] = {
    "classification": "classification:Classification",
    "classification_with_negatives": "classification_with_negatives:ClassificationWithNegatives",
    "ebm": "ebm:EBM",
    "ood_negatives": "ood_negatives:OODNegatives",
    "knowledge_regularization": "knowledge_regularization:KnowledgeRegularization",
}


def list_losses() -> list[str]:
    """Return the names that `get_loss` accepts.

    Example:
        >>> "ood_negatives" in list_losses()
        True
    """
    return sorted(LOSSES)


def get_loss(name: str, **options: Any) -> Any:
    """Return a ready loss by name, with its options.

    Args:
        name: A name from `list_losses()`.
        options: Constructor options of that loss, such as `num_groups`.

    Raises:
        UnknownNameError: No loss, or no option of that loss, has the given name.

    Example:
        >>> get_loss("classification_with_negatives", num_groups=10).num_groups
        10
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    module_name, class_name = LOSSES[name].split(":")
    loss_class = getattr(importlib.import_module(f"{__name__}.{module_name}"), class_name)
    allowed = [field.name for field in dataclasses.fields(loss_class) if field.init]
    for option in options:
        if option not in allowed:
            raise unknown_name(f"option of loss {name!r}", option, allowed)
    return loss_class(**options)
