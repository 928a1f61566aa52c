"""The task residual tuner: puts `TaskResidualLayer` around a model's `similarity`."""

from __future__ import annotations

from ..base import OODTuner
from .layer import TaskResidualLayer

__all__ = ["TaskResidualModel"]


class TaskResidualModel(OODTuner):
    """A model whose labels each have a learnt vector: what `get_peft_model(model, TaskResidualConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "residual_"
    tuner_layer_cls = TaskResidualLayer
