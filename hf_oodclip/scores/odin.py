"""Softmax probability after a small step of the pixels towards the predicted label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import encoders
from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs


@dataclass
class ODIN(Score):
    """ODIN: how sure the classifier gets when the pixels are changed a little in its favour.

    With logits `z` of the image, `T` the temperature and `y` the best label, the normalised pixels
    become `x' = x - epsilon * sign(grad_x CE(z / T, y)) / std`, a step of `epsilon` in pixels from 0 to
    1; `S = max_j softmax(z' / T)_j` of the changed image; this class returns `-S`, in [-1, -1/N]. It
    needs the pixels and a backward pass through the vision tower: stored embeddings will not do. The
    adaptation to CLIP is ours.

    Args:
        logit_temperature: Divides the logits (not the cosines); 1000 in the paper.
        epsilon: Size of the step; 0.0014 in the paper.

    Source: Liang et al., "Enhancing The Reliability of Out-of-distribution Image Detection in Neural
    Networks", ICLR 2018.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> cosines = torch.tensor([[0.30, 0.10]])
        >>> ODIN()(ScoreInputs(cosines, perturbed_similarity=cosines))
        tensor([-0.5050])
    """

    logit_temperature: float = 1000.0
    epsilon: float = 0.0014

    name = "odin"
    needs = ("perturbed_similarity",)
    min_labels = 2
    info = ScoreInfo(
        title="ODIN",
        paper="Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
        venue="ICLR",
        year=2018,
        url="https://arxiv.org/abs/1706.02690",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.logit_temperature < math.inf and 0 <= self.epsilon < math.inf):
            raise ScoreInputError(
                "Score 'odin': logit_temperature must be positive and epsilon at least 0, got "
                f"{self.logit_temperature} and {self.epsilon}."
            )

    def perturb(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Return the pixel values `[B, 3, H, W]` a step towards the label each image is nearest to."""
        with torch.inference_mode(False), torch.enable_grad():
            pixels = pixel_values.detach().clone().requires_grad_()
            embeds, _ = encoders.encode_images(model.clip, pixels)
            cosines, _ = model.cosines(embeds.to(torch.promote_types(embeds.dtype, torch.float32)))
            logits = cosines * (model.logit_scale / self.logit_temperature)
            # Times the temperature, lest the gradient vanish in half precision; its sign is all that counts.
            loss = -torch.log_softmax(logits, dim=-1).amax(dim=-1).sum() * self.logit_temperature
            (gradient,) = torch.autograd.grad(loss, pixels)
        std = torch.tensor(model.image_processor.image_std).to(pixel_values).view(-1, 1, 1)
        return pixel_values - self.epsilon * torch.where(gradient >= 0, 1.0, -1.0).to(pixel_values) / std

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.perturbed_similarity is not None
        logits = inputs.perturbed_similarity * (inputs.logit_scale / self.logit_temperature)
        return -torch.softmax(logits, dim=-1).amax(dim=-1)
