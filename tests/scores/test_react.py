"""ReAct: energy of the labels after activations are clipped at a percentile of those of ID images."""

import math

import numpy as np
import pytest
import torch
from post_hoc_inputs import DIM, id_images, inputs_of, label_embeds, new_images
from slow_reference import log_sum_exp

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import get_score


def slow_react(image: list[float], limit: float, scale: float, renormalize: bool) -> float:
    """Return the score of one image with loops."""
    clipped = [min(value, limit) for value in image]
    length = math.sqrt(math.fsum(value * value for value in clipped)) if renormalize else 1.0
    cosines = [
        math.fsum(a * b for a, b in zip(clipped, label, strict=True)) / length for label in label_embeds().tolist()
    ]
    return -log_sum_exp([scale * cosine for cosine in cosines]) / scale


def percentile_of(values: list[float], share: float) -> float:
    """Return the linearly interpolated percentile."""
    ordered = sorted(values)
    position = share / 100 * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("percentile", [50.0, 90.0, 100.0])
@pytest.mark.parametrize("space", ["raw", "normalized"])
def test_the_formula(space: str, percentile: float) -> None:
    seen, images = id_images()[0].image_embeds, new_images()
    embeds = images.image_embeds
    if space == "normalized":
        seen, embeds = (each / each.norm(dim=1, keepdim=True) for each in (seen, embeds))
    limit = percentile_of(seen.flatten().tolist(), percentile)
    expected = [slow_react(image, limit, 100.0, space == "raw") for image in embeds.tolist()]
    fitted = get_score("react", percentile=percentile, feature_space=space).fit(id_images()[0])
    assert float(fitted.state_dict()["limit"]) == pytest.approx(limit, abs=1e-12)
    computed = fitted.compute(images)
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_images_below_the_limit_have_their_plain_energy() -> None:
    seen, _ = id_images()
    fitted = get_score("react", percentile=100.0).fit(seen)
    torch.testing.assert_close(fitted.compute(seen), get_score("energy").compute(seen))


def test_only_the_upper_tail_is_clipped() -> None:
    fitted = get_score("react", percentile=100.0).fit(id_images()[0])
    low = inputs_of(-50 * torch.eye(DIM, dtype=torch.float64))
    torch.testing.assert_close(fitted.compute(low), get_score("energy").compute(low))
    high = inputs_of(50 * torch.eye(DIM, dtype=torch.float64) + 2)
    assert (fitted.compute(high) - get_score("energy").compute(high)).abs().min() > 1e-3


def test_the_percentile_of_more_values_than_torch_takes() -> None:
    many = torch.linspace(0, 1, 2**24 + 2**10, dtype=torch.float64).reshape(-1, 2**10).float()
    inputs = type(new_images())(torch.zeros(len(many), 1), image_embeds=many, label_embeds=many[:1])
    assert float(get_score("react").fit(inputs).state_dict()["limit"]) == pytest.approx(0.9, abs=1e-6)
    assert np.prod(many.shape) > 2**24


@pytest.mark.parametrize("bad", [0, -5.0, 100.5, math.nan])
def test_a_percentile_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ScoreInputError, match="percentile"):
        get_score("react", percentile=bad)
