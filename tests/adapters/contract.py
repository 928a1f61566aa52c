"""What the contract tests share: every adapter of this package by name, fresh and randomised."""

import pytest
import torch
from peft import get_peft_model
from slow_nft import parameters_of

from hf_oodclip.adapters import get_adapter_classes, list_adapters

CLASSES = {name: get_adapter_classes(name) for name in list_adapters()}
PLACES = {name: tuner.acts_on for name, (_, tuner) in CLASSES.items()}

each_adapter = pytest.mark.parametrize("name", list_adapters())


def cosines_of(model, image_embeds):
    """Cosines with labels and negatives, `[B, N + M]`."""
    with torch.no_grad():
        inputs = model.score_inputs(image_embeds=image_embeds)
    parts = (inputs.similarity, inputs.negative_similarity)
    return torch.cat([part for part in parts if part is not None], dim=-1)


def new_config(name):
    return CLASSES[name][0]()


def layer_of(model, name):
    return next(module for module in model.modules() if isinstance(module, CLASSES[name][1].tuner_layer_cls))


def randomise(model, name, adapter_name="default", seed=0):
    """Move every parameter of one adapter away from its start, so that it does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in parameters_of(layer_of(model, name), adapter_name).values():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return model


def adapted(base, name, seed=0):
    return randomise(get_peft_model(base, new_config(name)), name, seed=seed).eval()
