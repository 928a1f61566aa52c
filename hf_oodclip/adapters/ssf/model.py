"""The SSF tuner: puts `SSFLayer` around a model's `similarity`."""

from __future__ import annotations

from ..base import OODTuner
from .layer import SSFLayer

__all__ = ["SSFModel"]


class SSFModel(OODTuner):
    """A model whose features are scaled and shifted: what `get_peft_model(model, SSFConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "ssf_"
    tuner_layer_cls = SSFLayer
