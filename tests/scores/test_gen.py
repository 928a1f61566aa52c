"""GEN: `sum over the top M of p^gamma (1 - p)^gamma`, with `p = softmax(100 s)`."""

import math

import mpmath
import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, random_cosines, softmax, value_of

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score


def slow_gen(cosines: list[float], gamma: float = 0.1, top_m: int = 100) -> float:
    """Return the score of one image with `1 - p` taken from the other labels, as it must be near 1."""
    probabilities = sorted(softmax([100 * cosine for cosine in cosines]), reverse=True)
    total = 0.0
    for position, probability in enumerate(probabilities[:top_m]):
        rest = math.fsum(probabilities[:position] + probabilities[position + 1 :])
        total += (probability * rest) ** gamma
    return total


def exact_gen(cosines: list[float], gamma: float, top_m: int = 100) -> float:
    """Return the score of one image with 60 digits."""
    with mpmath.workdps(60):
        odds = [mpmath.exp(100 * mpmath.mpf(cosine)) for cosine in cosines]
        probabilities = sorted((value / mpmath.fsum(odds) for value in odds), reverse=True)[:top_m]
        return float(mpmath.fsum((p * (1 - p)) ** gamma for p in probabilities))


def test_hand_values() -> None:
    assert value_of(get_score("gen", gamma=1.0), [0.2, 0.2]) == pytest.approx(2 * 0.25, abs=1e-14)
    # Probabilities 1/2, 1/4, 1/4 at gamma 1/2, all of them and the top two.
    cosines = [math.log(2.0), 0.0, 0.0]
    half, quarter = math.sqrt(1 / 4), math.sqrt(3 / 16)
    whole = get_score("gen", temperature=1.0, gamma=0.5)
    assert value_of(whole, cosines) == pytest.approx(half + 2 * quarter, abs=1e-14)
    top_two = get_score("gen", temperature=1.0, gamma=0.5, top_m=2)
    assert value_of(top_two, cosines) == pytest.approx(half + quarter, abs=1e-14)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize(("gamma", "top_m"), [(0.1, 100), (0.5, 3), (1.0, 1)])
def test_equals_the_slow_reference(num_labels: int, gamma: float, top_m: int) -> None:
    def reference(cosines: list[float]) -> float:
        return slow_gen(cosines, gamma, top_m)

    # The exponent is taken of a rounded logit, so the error is relative.
    check_against(get_score("gen", gamma=gamma, top_m=top_m), reference, num_labels, fp32_tolerance=2e-6)


def test_defaults_are_those_of_the_paper() -> None:
    assert get_score("gen").options == {"temperature": 0.01, "gamma": 0.1, "top_m": 100}


@pytest.mark.parametrize("others", [[0.12], [0.12, 0.119, 0.05], [0.1] * 50])
@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_a_winner_within_rounding_of_one_keeps_its_share(others: list[float], gamma: float) -> None:
    # 1 - p of the winner is about 1e-12: lost in 1 - p, and to the power of 0.1 still worth 0.06.
    cosines = torch.tensor([[0.4, *others]])
    exact = exact_gen(cosines.double()[0].tolist(), gamma)
    assert 1 - max(softmax([100 * cosine for cosine in cosines.double()[0].tolist()])) < 1e-10
    assert fp64_scores(get_score("gen", gamma=gamma), cosines).item() == pytest.approx(exact, rel=1e-10)
    assert get_score("gen", gamma=gamma)(ScoreInputs(cosines)).item() == pytest.approx(exact, rel=1e-5)


def test_the_surest_possible_image_is_the_least_ood() -> None:
    sure = torch.tensor([[1.0, -1.0, -1.0], [0.3, 0.2, 0.1], [0.2, 0.2, 0.2]])
    scores = get_score("gen")(ScoreInputs(sure))
    assert scores.tolist() == sorted(scores.tolist())
    assert 0 <= scores[0] < 1e-7


def test_more_places_than_labels_count_every_label_once() -> None:
    inputs = ScoreInputs(random_cosines(16, 7))
    assert torch.equal(get_score("gen", top_m=1000)(inputs), get_score("gen", top_m=7)(inputs))
    assert not torch.allclose(get_score("gen", top_m=6)(inputs), get_score("gen", top_m=7)(inputs))


def test_range_is_zero_to_m_over_four_to_the_gamma() -> None:
    scores = fp64_scores(get_score("gen", top_m=5), random_cosines(500, 7))
    assert scores.min() >= 0
    assert scores.max() <= 5 / 4**0.1


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    cosines = random_cosines(16, 7).double()
    torch.testing.assert_close(fp64_scores(get_score("gen"), cosines), fp64_scores(get_score("gen"), cosines + 0.4))


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("gen", temperature=None), cosines, logit_scale=20.0)
    torch.testing.assert_close(own, fp64_scores(get_score("gen", temperature=0.05), cosines))
    assert (own - fp64_scores(get_score("gen"), cosines)).abs().max() > 0.01


def test_gradient_is_finite_for_a_sure_image() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.05]], requires_grad=True)
    get_score("gen")(ScoreInputs(cosines)).sum().backward()
    assert cosines.grad is not None
    assert torch.isfinite(cosines.grad).all()


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 1.5}, {"gamma": math.nan}, {"top_m": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ScoreInputError, match=r"gamma must be in \(0, 1\] and top_m at least 1"):
        get_score("gen", **options)
