"""MCM: `-max_j softmax(s / t)_j` at temperature 1."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, random_cosines, softmax, value_of

from hf_oodclip.scores import get_score


def test_hand_values() -> None:
    # Two labels: the larger probability is sigmoid of the difference.
    assert value_of(get_score("mcm"), [0.3, 0.1]) == pytest.approx(-1 / (1 + math.exp(-0.2)), abs=1e-12)
    # Odds 1 : 2 : 3.
    odds = [math.log(1.0), math.log(2.0), math.log(3.0)]
    assert value_of(get_score("mcm"), odds) == pytest.approx(-3 / 6, abs=1e-12)
    assert value_of(get_score("mcm", temperature=0.5), odds) == pytest.approx(-9 / 14, abs=1e-12)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.01])
def test_equals_the_slow_reference(num_labels: int, temperature: float) -> None:
    def reference(cosines: list[float]) -> float:
        return -max(softmax([cosine / temperature for cosine in cosines]))

    check_against(get_score("mcm", temperature=temperature), reference, num_labels)


def test_default_temperature_is_that_of_the_paper() -> None:
    assert get_score("mcm").options == {"temperature": 1.0}


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    cosines = random_cosines(16, 7)
    torch.testing.assert_close(
        fp64_scores(get_score("mcm"), cosines), fp64_scores(get_score("mcm"), cosines.double() + 0.17)
    )


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("mcm", temperature=None), cosines, logit_scale=40.0)
    torch.testing.assert_close(own, fp64_scores(get_score("mcm", temperature=1 / 40), cosines))
    at_100 = fp64_scores(get_score("mcm", temperature=None), cosines)
    torch.testing.assert_close(at_100, fp64_scores(get_score("msp"), cosines))
    assert (own - at_100).abs().max() > 0.01


def test_range_is_minus_one_to_minus_one_over_n() -> None:
    scores = fp64_scores(get_score("mcm", temperature=0.01), random_cosines(500, 7))
    assert scores.min() >= -1
    assert scores.max() <= -1 / 7
    assert value_of(get_score("mcm"), [0.2] * 7) == pytest.approx(-1 / 7, abs=1e-15)
