"""Which parts of an image drove its OOD score: a signed relevance for every patch of the vision tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..scores import Score

__all__ = ["patch_relevance", "relevance_picture"]

RAISES, LOWERS = (214, 39, 40), (31, 119, 180)


def patch_relevance(model: Any, pixel_values: Tensor, score: Score) -> Tensor | None:
    """Return how much every patch raised (> 0) or lowered (< 0) the OOD score of one image, `[rows, columns]`.

    For the attention maps `A_l` `[heads, tokens, tokens]` and their gradients `G_l` of the score `s`, relevance
    is passed from layer to layer, `R <- R + mean_heads(max(0, A_l * G_l)) R` with `R = I` at the start; the row of
    the class token says what spoke for a high score. The same with `-s` says what spoke against one; returned is
    the difference, scaled to [-1, 1].

    Args:
        model: An `OODCLIPForImageClassification` with eager attention (the other kinds keep no maps).
        pixel_values: One image, `[1, 3, H, W]`.
        score: The score to explain.

    Returns:
        The relevance, or None when the score does not come from these attention maps.

    Source: Chefer et al., "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers", ICCV 2021. The difference of the two signs is ours: it follows what blanking
    parts of the image does more closely than one sign, or than gradients times activations.
    """
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixel_values.detach().clone().requires_grad_()
        image_embeds, patch_embeds, output = model.encode(pixels, [score], output_attentions=True)
        inputs = model.score_inputs(image_embeds=image_embeds, patch_embeds=patch_embeds, score=score)
        attentions, value = output.attentions, score(inputs).sum()
        if not value.requires_grad:
            return None
        gradients = torch.autograd.grad(value, attentions, allow_unused=True)
    raises, lowers = None, None
    for attention, gradient in zip(attentions, gradients, strict=True):
        if gradient is None:
            continue
        found = (attention * gradient).detach().float()[0]
        raises, lowers = (_pass_on(raises, found), _pass_on(lowers, -found))
    if raises is None or lowers is None:
        return None
    relevance = (raises - lowers)[0, 1:]
    largest = relevance.abs().amax()
    rows = pixel_values.shape[-2] // _patch_size(model)
    return (relevance / largest.clamp_min(torch.finfo(relevance.dtype).tiny)).reshape(rows, -1)


def _pass_on(relevance: Tensor | None, found: Tensor) -> Tensor:
    relevance = torch.eye(found.shape[-1], device=found.device) if relevance is None else relevance
    return relevance + found.clamp_min(0).mean(0) @ relevance


def _patch_size(model: Any) -> int:
    return int(model.config.clip_config.vision_config.patch_size)


def relevance_picture(seen: Image.Image, relevance: Tensor, size: int = 384) -> Image.Image:
    """Return the image with what raised the OOD score in red and what lowered it in blue.

    Args:
        seen: What the model saw, after its processor cropped and resized the image.
        relevance: Of every patch, in [-1, 1], `[rows, columns]`.
        size: Width of the picture.
    """
    size = max(size, seen.width)
    height = round(size * seen.height / seen.width)
    picture = ImageOps.grayscale(seen).convert("RGB").resize((size, height), Image.Resampling.BICUBIC)
    heat = Image.fromarray(relevance.cpu().float().numpy(), mode="F").resize(picture.size, Image.Resampling.BILINEAR)
    values = np.asarray(heat)[..., None]
    colours = np.where(values > 0, np.array(RAISES, dtype=np.float32), np.array(LOWERS, dtype=np.float32))
    opacity = 0.75 * np.abs(values) ** 0.7
    mixed = (1 - opacity) * np.asarray(picture, dtype=np.float32) + opacity * colours
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
