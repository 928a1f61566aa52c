"""The NFT tuner: puts `NFTLayer` around a model's `similarity`."""

from __future__ import annotations

from ..base import OODTuner
from .layer import NFTLayer

__all__ = ["NFTModel"]


class NFTModel(OODTuner):
    """A model whose text features every image moves a little: what `get_peft_model(model, NFTConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "tuned_"
    tuner_layer_cls = NFTLayer
