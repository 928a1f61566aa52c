"""A CLIP vision tower in bf16, as fast as it goes on a CPU: the same function as transformers computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, linear, normalize, scaled_dot_product_attention
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from .recipe import PocketRecipe, Tower

__all__ = ["HEAD_WIDTH", "image_features", "new_vision_tower"]

HEAD_WIDTH = 64


def new_vision_tower(recipe: PocketRecipe, tower: Tower, side: int) -> CLIPVisionModelWithProjection:
    """Return a tower with initial weights; seed torch before."""
    config = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=4 * tower.width,
        projection_dim=recipe.projection_dim,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.width // HEAD_WIDTH,
        image_size=side,
        patch_size=recipe.patch_size,
        hidden_act="gelu",
    )
    model = CLIPVisionModelWithProjection(config)
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim == 2 and "position" not in name:
                last = name.endswith(("out_proj.weight", "fc2.weight"))
                values.normal_(std=(0.3 if last else 1.0) * values.shape[1] ** -0.5)
        embeddings.patch_embedding.weight.normal_(std=(3 * recipe.patch_size**2) ** -0.5)
        embeddings.class_embedding.normal_(std=0.02)
        embeddings.position_embedding.weight[0] = 0
        embeddings.position_embedding.weight[1:] = _waves(side // recipe.patch_size, tower.width)
    return model


def _waves(grid: int, width: int) -> Tensor:
    """Return two-dimensional sinusoids `[grid * grid, width]` to start the position embedding from."""
    frequencies = 100.0 ** (-torch.arange(width // 4) / (width // 4))
    line = torch.linspace(-4, 4, grid)
    axes = torch.meshgrid(line, line, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in axes]
    return 0.3 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def image_features(model: Any, pixels: Tensor, kept: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Return unit image features `[B, D]` in fp32, computed in bf16.

    Args:
        model: A `CLIPVisionModelWithProjection` with GELU.
        pixels: Standardised images of any side that patches divide; positions are interpolated.
        kept: Share of the patches that are looked at, others being dropped image by image
            (Li et al., FLIP, CVPR 2023).
        generator: Draws the patches that are kept.
    """
    tower, size = model.vision_model, model.config.patch_size
    count, side = len(pixels), pixels.shape[-1] // size
    patches = pixels.bfloat16().reshape(count, 3, side, size, side, size).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(count, side * side, -1)
    positions = _positions(tower.embeddings.position_embedding.weight, side).bfloat16()
    weight = tower.embeddings.patch_embedding.weight.flatten(1)
    hidden = _linear(patches, weight, None) + positions[1:]
    if kept < 1:
        order = torch.rand(count, side * side, generator=generator, device=pixels.device).argsort(dim=1)
        chosen = order[:, : max(1, round(kept * side * side)), None].expand(-1, -1, hidden.shape[-1])
        hidden = hidden.gather(1, chosen)
    first = (tower.embeddings.class_embedding.bfloat16() + positions[0]).expand(count, 1, -1)
    hidden = _norm(torch.cat([first, hidden], dim=1), tower.pre_layrnorm)
    for layer in tower.encoder.layers:
        hidden = hidden + _attention(_norm(hidden, layer.layer_norm1), layer.self_attn)
        inner = gelu(_linear(_norm(hidden, layer.layer_norm2), layer.mlp.fc1.weight, layer.mlp.fc1.bias))
        hidden = hidden + _linear(inner, layer.mlp.fc2.weight, layer.mlp.fc2.bias)
    pooled = _norm(hidden[:, 0], tower.post_layernorm)
    return normalize(_linear(pooled, model.visual_projection.weight, None).float(), dim=-1)


def _positions(weight: Tensor, side: int) -> Tensor:
    grid = round((len(weight) - 1) ** 0.5)
    if side == grid:
        return weight
    plane = weight[1:].T.reshape(1, -1, grid, grid)
    plane = interpolate(plane, size=(side, side), mode="bilinear", align_corners=False)
    return torch.cat([weight[:1], plane.flatten(2)[0].T])


def _attention(hidden: Tensor, attention: Any) -> Tensor:
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    joined = _linear(hidden, weight, bias).unflatten(-1, (3, -1, HEAD_WIDTH))
    queries, keys, values = joined.permute(2, 0, 3, 1, 4).unbind(0)
    if hidden.is_cuda:
        mixed = scaled_dot_product_attention(queries, keys, values)
    else:
        # On a CPU the backward pass of the fused kernel is several times slower at these lengths.
        mixed = ((queries * HEAD_WIDTH**-0.5) @ keys.mT).softmax(-1) @ values
    return _linear(mixed.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(values, weight.bfloat16(), None if bias is None else bias.bfloat16())


def _norm(values: Tensor, norm: Any) -> Tensor:
    weight, bias = norm.weight.to(values.dtype), norm.bias.to(values.dtype)
    return layer_norm(values, (values.shape[-1],), weight, bias, norm.eps)
