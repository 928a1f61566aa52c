"""The only file that touches CLIP internals and the version quirks of transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, LabelError, NonFiniteError

__all__ = [
    "bare_text_tower",
    "context_length",
    "embed_tokens",
    "encode_images",
    "encode_images_and_patches",
    "encode_patches",
    "encode_prompts",
    "encode_tokens",
    "find_overlong",
    "is_supported_model_type",
    "text_tower_adapters",
    "text_tower_fingerprint",
    "text_tower_mode",
    "text_tower_state",
    "tokenize",
    "tokenizer_fingerprint",
    "vision_tower_fingerprint",
]

SUPPORTED_MODEL_TYPES = ("clip",)


def is_supported_model_type(model_type: str) -> bool:
    """Tell whether a plain checkpoint of this `model_type` can be wrapped."""
    return model_type in SUPPORTED_MODEL_TYPES


def context_length(clip: Any) -> int:
    """Return how many tokens the text tower takes, start and end tokens included."""
    return int(clip.config.text_config.max_position_embeddings)


def encode_images(clip: Any, pixel_values: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
    """Return projected image embeddings `[B, D]` before normalisation, and the vision tower's output.

    Since transformers 5 `get_image_features` returns an output object whose `pooler_output` is the
    projected feature.
    """
    output = clip.get_image_features(pixel_values=pixel_values, **kwargs)
    return output.pooler_output, output


def encode_images_and_patches(clip: Any, pixel_values: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor, Any]:
    """Return what `encode_images` does with, between the two, the embeddings of the patches `[B, P, D]`.

    For the input `x` of the last block of a vision transformer, `w = x + OutProj(VProj(LN1(x)))` lets
    every patch speak for itself instead of attending to others; `w + MLP(LN2(w))` then goes through the
    last norm and the projection as the image does.

    Raises:
        CheckpointError: The vision tower is no CLIP transformer.

    Source: Miyai et al., "GL-MCM", IJCV 2025.
    """
    vision = clip.vision_model
    block = next(reversed(getattr(getattr(vision, "encoder", None), "layers", [])), None)
    parts = ("layer_norm1", "self_attn.v_proj", "self_attn.out_proj", "layer_norm2", "mlp")
    modules = {name: _find(block, name) for name in parts}
    if block is None or None in modules.values() or _find(vision, "post_layernorm") is None:
        raise CheckpointError(
            f"Patch embeddings need the vision transformer of CLIP; {type(vision).__name__} is none. Use a score "
            "that does not need patch_similarity."
        )
    hidden: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    try:
        image_embeds, output = encode_images(clip, pixel_values, **kwargs)
    finally:
        hook.remove()
    tokens = hidden[0][:, 1:]
    values = modules["self_attn.v_proj"](modules["layer_norm1"](tokens))
    tokens = tokens + modules["self_attn.out_proj"](values)
    tokens = tokens + modules["mlp"](modules["layer_norm2"](tokens))
    return image_embeds, clip.visual_projection(vision.post_layernorm(tokens)), output


def encode_patches(clip: Any, pixel_values: Tensor) -> Tensor:
    """Return the projected embeddings of the patches `[B, P, D]` before normalisation."""
    return encode_images_and_patches(clip, pixel_values)[1]


def _find(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, start and end tokens included, never truncated."""
    return tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of all that decides a text's tokens."""
    record = json.loads(tokenizer.backend_tokenizer.to_str())
    # What the last call asked for.
    record.pop("padding", None)
    record.pop("truncation", None)
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def find_overlong(token_ids: Sequence[Sequence[int]], limit: int) -> list[int]:
    """Return the positions of the texts with more than `limit` tokens."""
    return [index for index, ids in enumerate(token_ids) if len(ids) > limit]


def check_lengths(texts: Sequence[str], token_ids: Sequence[Sequence[int]], limit: int) -> None:
    """Raise `LabelError` naming the texts that do not fit the text tower."""
    overlong = find_overlong(token_ids, limit)
    if overlong:
        first = overlong[0]
        raise LabelError(
            f"{len(overlong)} of {len(texts)} prompts are longer than the {limit} tokens this text tower "
            f"takes; the first is {texts[first]!r} with {len(token_ids[first])}. Shorten the label or the "
            "template."
        )


def _batches(token_ids: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    # Sorted by length, a batch is padded to its own longest prompt instead of the context window.
    order = sorted(range(len(token_ids)), key=lambda index: (len(token_ids[index]), index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def encode_tokens(clip: Any, token_ids: Sequence[Sequence[int]], batch_size: int = 256) -> Tensor:
    """Return projected text embeddings `[T, D]` before normalisation, on the CPU, in fp32 or fp64.

    Raises:
        NonFiniteError: The text tower produced NaN or infinity.
    """
    device = clip.text_projection.weight.device
    dtype = torch.float64 if clip.dtype == torch.float64 else torch.float32
    embeds = torch.empty(len(token_ids), clip.config.projection_dim, dtype=dtype)
    was_training = clip.training
    clip.eval()
    try:
        for batch in _batches(token_ids, batch_size):
            width = max(len(token_ids[index]) for index in batch)
            # Padding with the end token needs no mask: attention is causal, and both pooling rules of
            # CLIP (highest id, first end token) take the first one.
            rows = [[*token_ids[index], *[token_ids[index][-1]] * width][:width] for index in batch]
            output = clip.get_text_features(input_ids=torch.tensor(rows, device=device))
            embeds[batch] = output.pooler_output.to("cpu", dtype)
    finally:
        clip.train(was_training)
    if not torch.isfinite(embeds).all():
        raise NonFiniteError(
            "The text tower produced NaN or infinity: the checkpoint's weights are damaged, or its dtype "
            f"({clip.dtype}) overflows; try dtype=torch.float32."
        )
    return embeds


def encode_prompts(clip: Any, prompt_embeds: Tensor, end_positions: Tensor) -> Tensor:
    """Return projected text embeddings `[T, D]` of prompts given as token embeddings, with gradients.

    Args:
        clip: A `CLIPModel`.
        prompt_embeds: Token embeddings before positions are added, `[T, L, W]`. What follows the end token
            is without effect: attention is causal.
        end_positions: Position of the end token of each prompt, `[T]`.
    """
    from transformers.masking_utils import create_causal_mask

    text_model = clip.text_model
    hidden = text_model.embeddings(inputs_embeds=prompt_embeds)
    mask = create_causal_mask(
        config=text_model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    output = text_model.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True)
    hidden = text_model.final_layer_norm(output.last_hidden_state)
    rows = torch.arange(len(hidden), device=hidden.device)
    return clip.text_projection(hidden[rows, end_positions.to(hidden.device)])


def embed_tokens(clip: Any, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token embeddings `[T, L, W]`, padded to the longest row, and the length of each row `[T]`."""
    width = max(len(row) for row in token_ids)
    rows = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in token_ids])
    embedding = clip.text_model.embeddings.token_embedding
    return embedding(rows.to(embedding.weight.device)), torch.tensor([len(row) for row in token_ids])


@contextmanager
def bare_text_tower(clip: Any) -> Iterator[None]:
    """Switch the adapters inside the text tower off for a while, without touching what is trainable."""
    layers = [
        module
        for tower in (clip.text_model, clip.text_projection)
        for module in tower.modules()
        if hasattr(module, "_disable_adapters")
    ]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def text_tower_state(clip: Any) -> tuple[tuple[int, int], ...]:
    """Return a cheap mark of the text tower's weights: it differs once they are changed in place."""
    modules = (clip.text_model, clip.text_projection)
    return tuple((id(weight), weight._version) for module in modules for weight in module.parameters())


def text_tower_mode(clip: Any) -> str:
    """Return what decides an embedding besides the weights: adapters switched on or off, and autocast."""
    return _mode(clip.text_model, clip.text_projection)


def text_tower_adapters(clip: Any) -> str:
    """Return which adapters sit inside the text tower and whether they are on; empty without any."""
    return _adapters(clip.text_model, clip.text_projection)


def _adapters(*modules: Any) -> str:
    return "|".join(
        f"{name}: {module.disable_adapters} {module.active_adapters} {getattr(module, 'scaling', None)}"
        for tower in modules
        for name, module in tower.named_modules()
        # The towers themselves, as all models of transformers, have methods of these names.
        if hasattr(module, "active_adapters") and isinstance(getattr(module, "disable_adapters", None), bool)
    )


def _mode(*modules: Any) -> str:
    modes = [_adapters(*modules)]
    device = modules[-1].weight.device.type
    if torch.is_autocast_enabled(device):
        modes.append(str(torch.get_autocast_dtype(device)))
    return "|".join(filter(None, modes))


def text_tower_fingerprint(clip: Any) -> str:
    """Return a hash of the text tower: architecture, weights and dtypes, adapters in it included."""
    return _fingerprint(clip.config.text_config, clip.text_model, clip.text_projection)


def vision_tower_fingerprint(clip: Any) -> str:
    """Return a hash of what decides an image embedding: the vision tower, adapters in it and whether they are
    switched on, and autocast.
    """
    modules = (clip.vision_model, clip.visual_projection)
    mode = _mode(*modules)
    return _fingerprint(clip.config.vision_config, *modules) + (
        hashlib.blake2b(mode.encode(), digest_size=8).hexdigest() if mode else ""
    )


def _fingerprint(config: Any, *modules: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(sorted(config.to_dict().items(), key=str)).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            raw = tensor.detach().to("cpu").contiguous().flatten()
            digest.update(np.ascontiguousarray(raw.view(torch.uint8).numpy()).data)
    return digest.hexdigest()
