"""The CLIP-Adapter tuner: puts `CLIPAdapterLayer` around a model's `similarity`."""

from __future__ import annotations

from ..base import OODTuner
from .layer import CLIPAdapterLayer

__all__ = ["CLIPAdapterModel"]


class CLIPAdapterModel(OODTuner):
    """A model with a small network on image features: what `get_peft_model(model, CLIPAdapterConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "clip_adapter_"
    tuner_layer_cls = CLIPAdapterLayer
