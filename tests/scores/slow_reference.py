"""Slow fp64 arithmetic for the tests of the scores: plain Python loops, one image at a time."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_oodclip.scores import Score, ScoreInputs

BATCH = 16
LABEL_COUNTS = (1, 2, 7, 400)
# A CLIP logit near 40 has a rounding step of 4e-6 in fp32, which moves a probability by up to a quarter of that.
FP32_TOLERANCE = 1e-6
FP64_TOLERANCE = 1e-12


def log_sum_exp(values: Sequence[float]) -> float:
    """Return the log of the sum of exponentials, summed without rounding."""
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))


def softmax(values: Sequence[float]) -> list[float]:
    """Return the probabilities of some logits."""
    total = log_sum_exp(values)
    return [math.exp(value - total) for value in values]


def random_cosines(num_images: int, num_texts: int, seed: int = 0, high: float = 0.4) -> Tensor:
    """Return cosines as a CLIP gives them, `[num_images, num_texts]`, in fp32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, num_texts, generator=generator) * (high + 0.1) - 0.1


def check_against(
    score: Score,
    reference: Callable[..., float],
    num_labels: int,
    num_negatives: int = 0,
    fp32_tolerance: float = FP32_TOLERANCE,
    logit_scale: float = 100.0,
) -> None:
    """Compare a score with its reference, image by image: the formula in fp64, the call in fp32."""
    banks: list[Tensor] = [random_cosines(BATCH, num_labels)]
    if num_negatives:
        banks.append(random_cosines(BATCH, num_negatives, seed=1))
    expected = torch.tensor(
        [reference(*images) for images in zip(*(bank.double().tolist() for bank in banks), strict=True)],
        dtype=torch.float64,
    )
    exact = score.compute(ScoreInputs(*(bank.double() for bank in banks), logit_scale=logit_scale))
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, expected, rtol=FP64_TOLERANCE, atol=FP64_TOLERANCE)
    if num_labels >= score.min_labels:
        rounded = score(ScoreInputs(*banks, logit_scale=logit_scale))
        torch.testing.assert_close(rounded.double(), expected, rtol=fp32_tolerance, atol=fp32_tolerance)


def value_of(score: Score, *banks: list[float], **inputs: Any) -> float:
    """Return the fp64 score of one image from its cosines."""
    return score.compute(ScoreInputs(*(torch.tensor([bank], dtype=torch.float64) for bank in banks), **inputs)).item()


def fp64_scores(score: Score, *banks: Tensor, **inputs: Any) -> Tensor:
    """Return the fp64 scores of a batch."""
    return score.compute(ScoreInputs(*(bank.double() for bank in banks), **inputs))
