"""ASH: energy of the labels for the largest activations, shaped in three ways."""

import math

import pytest
import torch
from post_hoc_inputs import DIM, inputs_of, label_embeds, new_images, waves
from slow_reference import log_sum_exp

from hf_oodclip.errors import ScoreInputError, UnknownNameError
from hf_oodclip.scores import ScoreInputs, get_score


def slow_ash(image: list[float], variant: str, percentile: float) -> float:
    """Return the score of one image with loops, its activations as given."""
    count = len(image) - round(len(image) * percentile / 100)
    kept = sorted(range(len(image)), key=lambda place: -image[place])[:count]
    before = math.fsum(max(value, 0) for value in image)
    after = math.fsum(max(image[place], 0) for place in kept)
    shaped = [0.0] * len(image)
    for place in kept:
        shaped[place] = {
            "p": lambda value: value,
            "b": lambda _: before / count,
            "s": lambda value: value * (math.exp(before / after) if after > 0 else 1),
        }[variant](image[place])
    products = [math.fsum(a * b for a, b in zip(shaped, label, strict=True)) for label in label_embeds().tolist()]
    return -log_sum_exp([100 * product for product in products]) / 100


@pytest.mark.parametrize("space", ["raw", "normalized"])
@pytest.mark.parametrize("percentile", [0.0, 34.0, 50.0, 83.0])
@pytest.mark.parametrize("variant", ["b", "p", "s"])
def test_the_formula(variant: str, percentile: float, space: str) -> None:
    embeds = waves(20, DIM, 0.53)
    shown = embeds / embeds.norm(dim=1, keepdim=True) if space == "normalized" else embeds
    expected = [slow_ash(image, variant, percentile) for image in shown.tolist()]
    score = get_score("ash", variant=variant, percentile=percentile, feature_space=space)
    computed = score.compute(inputs_of(embeds))
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hand_values() -> None:
    labels = torch.eye(4, dtype=torch.float64)[:1]
    image = torch.tensor([[3.0, 2.0, 1.0, -4.0]], dtype=torch.float64)
    inputs = ScoreInputs(torch.zeros(1, 1), image_embeds=image, label_embeds=labels)

    def first_activation(variant: str) -> float:
        score = get_score("ash", variant=variant, percentile=50.0, feature_space="raw")
        return -score.compute(inputs).item()

    assert first_activation("p") == pytest.approx(3)
    assert first_activation("b") == pytest.approx(6 / 2)
    assert first_activation("s") == pytest.approx(3 * math.exp(6 / 5))


def test_an_image_without_positive_activations_is_only_pruned() -> None:
    inputs = inputs_of(-waves(3, DIM, 0.53).abs() - 0.1)
    sharpened = get_score("ash", variant="s", percentile=50.0)
    assert torch.equal(sharpened.compute(inputs), get_score("ash", variant="p", percentile=50.0).compute(inputs))
    assert get_score("ash", variant="b", percentile=50.0).compute(inputs) == pytest.approx(-math.log(3) / 100)


def test_at_least_one_activation_is_kept() -> None:
    inputs = new_images()
    largest = inputs.image_embeds.argmax(1)
    unit = inputs.image_embeds / inputs.image_embeds.norm(dim=1, keepdim=True)
    alone = unit.gather(1, largest[:, None]) * label_embeds()[:, largest].T
    expected = -torch.logsumexp(100 * alone, 1) / 100
    torch.testing.assert_close(get_score("ash", variant="p", percentile=99.9).compute(inputs), expected)


@pytest.mark.parametrize("bad", [-1.0, 100.0, math.nan])
def test_a_percentile_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ScoreInputError, match="percentile"):
        get_score("ash", percentile=bad)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"variant of score 'ash' 'r'.*Allowed: b, p, s"):
        get_score("ash", variant="r")
