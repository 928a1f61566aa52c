"""The context prompt tuner: puts `ContextPromptLayer` around a model's `prompt_learner`."""

from __future__ import annotations

from ..base import OODTuner
from .layer import ContextPromptLayer

__all__ = ["ContextPromptModel"]


class ContextPromptModel(OODTuner):
    """A model whose prompts have learnt words: what `get_peft_model(model, ContextPromptConfig())` makes.

    PEFT calls it; use `peft.get_peft_model`, `model.add_adapter`, `model.load_adapter` or
    `PeftModel.from_pretrained`.
    """

    prefix = "context_"
    tuner_layer_cls = ContextPromptLayer
    acts_on = "prompt_learner"
