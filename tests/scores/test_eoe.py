"""EOE: probability of the best outlier, weighted, less that of the best label."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, random_cosines, softmax, value_of

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize(("temperature", "beta"), [(1.0, 0.25), (0.01, 1.0)])
def test_the_formula(num_labels: int, temperature: float, beta: float) -> None:
    def reference(labels: list[float], outliers: list[float]) -> float:
        p = softmax([cosine / temperature for cosine in [*labels, *outliers]])
        return beta * max(p[len(labels) :]) - max(p[: len(labels)])

    check_against(get_score("eoe", temperature=temperature, beta=beta), reference, num_labels, num_negatives=11)


def test_hand_values() -> None:
    # Odds of 4 and 1 for the labels, of 3 and 2 for the outliers.
    odds = [math.log(4), 0.0], [math.log(3), math.log(2)]
    assert value_of(get_score("eoe"), *odds) == pytest.approx(0.25 * 3 / 10 - 4 / 10)
    assert value_of(get_score("eoe", beta=0.0), *odds) == pytest.approx(-4 / 10)


def test_defaults_are_those_of_the_paper() -> None:
    assert get_score("eoe").options == {"temperature": 1.0, "beta": 0.25}


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    labels, outliers = random_cosines(8, 3).double(), random_cosines(8, 5, seed=1).double()
    moved = get_score("eoe").compute(ScoreInputs(labels + 0.3, outliers + 0.3))
    torch.testing.assert_close(moved, get_score("eoe").compute(ScoreInputs(labels, outliers)))


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_a_negative_weight_is_refused(bad: float) -> None:
    with pytest.raises(ScoreInputError, match="beta must be at least 0"):
        get_score("eoe", beta=bad)
