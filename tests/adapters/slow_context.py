"""Context prompts the slow way: token ids with placeholders through an unmodified CLIP, one prompt a pass."""

import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from hf_oodclip.adapters.context_prompt import ContextPromptLayer

PLACEHOLDER = "x"


def plain_clip(folder, dtype=torch.float32):
    """Return a CLIP that this package has never touched, and its tokenizer."""
    return CLIPModel.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def token_ids(tokenizer, text):
    return tokenizer(text)["input_ids"][1:-1]


def encode(clip, tokenizer, parts):
    """Return the unit-length feature `[D]` of a prompt given as texts and vectors `[n, W]`, in order."""
    ids, places, vectors = [tokenizer.bos_token_id], [], []
    for part in parts:
        if isinstance(part, str):
            ids += token_ids(tokenizer, part)
            continue
        places += range(len(ids), len(ids) + len(part))
        vectors.append(part)
        ids += token_ids(tokenizer, PLACEHOLDER) * len(part)

    def replace(module, inputs, embeds):
        embeds = embeds.clone()
        embeds[0, places] = torch.cat(vectors).to(embeds.dtype)
        return embeds

    hook = clip.text_model.embeddings.token_embedding.register_forward_hook(replace) if vectors else None
    try:
        features = clip.get_text_features(input_ids=torch.tensor([[*ids, tokenizer.eos_token_id]])).pooler_output[0]
    finally:
        if hook is not None:
            hook.remove()
    return normalize(features, dim=-1)


def ordered(vectors, name, position, suffix="."):
    """Return the parts of a prompt: learnt vectors `[n, W]` around a name."""
    if position == "end":
        return [vectors, name, suffix]
    if position == "front":
        return [name, vectors, suffix]
    half = len(vectors) // 2
    return [vectors[:half], name, vectors[half:], suffix]


def moves(layer, image, name="default"):
    """Return what a conditional adapter adds to every learnt vector for one image `[D]`: `[W]`."""
    down, up = layer.context_down_weight[name], layer.context_up_weight[name]
    hidden = torch.relu(down @ normalize(image, dim=-1) + layer.context_down_bias[name])
    return up @ hidden + layer.context_up_bias[name]


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, ContextPromptLayer))


def randomise(model, seed=0, size=0.2):
    """Give every parameter of the context prompts of a model a random value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "context_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model
