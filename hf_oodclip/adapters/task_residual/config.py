"""What a task residual adapter looks like: how strong the residual is, and for how many labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import AdapterError
from ..base import OODAdapterConfig, class_numbers_error
from ..peft_types import OODPeftType

__all__ = ["TaskResidualConfig"]


@dataclass
class TaskResidualConfig(OODAdapterConfig):
    """Settings of an adapter that learns one vector a label, added to the label's text feature.

    With `c` the text feature of a label as the model's text bank stores it and `x` its vector, `[D]`,

        c' = c + residual_scale * x

    and cosines are taken with `c'`. `x` starts at zero: a new adapter changes nothing. Negatives stay as
    they are. The vectors belong to the labels they were trained with. The paper adds them to means over
    templates that are not normalised: `model.set_labels(..., average="unnormalized")`.

    Source: "Task Residual for Tuning Vision-Language Models" (Yu et al., CVPR 2023).

    Example:
        >>> import hf_oodclip
        >>> from peft import get_peft_model
        >>> model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> get_peft_model(model, TaskResidualConfig()).get_nb_trainable_parameters()[0]
        512
    """

    residual_scale: float = field(default=0.5, metadata={"help": "Factor on the learnt vectors."})
    num_labels: int | None = field(
        default=None, metadata={"help": "Labels the adapter is for; None takes those of the model."}
    )

    adapter_type: ClassVar[OODPeftType] = OODPeftType.OODCLIP_TASK_RESIDUAL
    title: ClassVar[str] = "Task residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        scale = self.residual_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale == 0:
            raise AdapterError(f"{self.title}: residual_scale must be a number, finite and not 0, got {scale!r}.")
        if self.num_labels is not None:
            self.check_count("num_labels", 1)

    @property
    def is_class_specific(self) -> bool:
        """Whether the adapter belongs to the very classes it was trained with: it does."""
        return True

    def settle_classes(self, num_labels: int, num_negatives: int) -> None:
        """Take the number of labels of a model, or check it.

        Args:
            num_labels: Labels of the model; 0 when they come after the adapter.
            num_negatives: Its negatives, of any number.

        Raises:
            AdapterError: The adapter is for another number.
        """
        if num_labels == 0:
            return
        if self.num_labels is None:
            self.num_labels = num_labels
        if self.num_labels != num_labels:
            raise class_numbers_error(self.title, (self.num_labels, None), (num_labels, num_negatives))

    def parameter_shapes(self, dim: int, text_width: int = 0) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name.

        Raises:
            AdapterError: The number of labels is not known.

        Example:
            >>> TaskResidualConfig(num_labels=20).parameter_shapes(512)
            {'residual_labels': (20, 512)}
        """
        if self.num_labels is None:
            raise AdapterError(f"{self.title}: needs num_labels; set labels on the model first, or give it.")
        return {"residual_labels": (self.num_labels, dim)}
