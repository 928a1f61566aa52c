"""Energy: `-t log sum_j exp(s_j / t)`, in units of a cosine."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, log_sum_exp, random_cosines, value_of

from hf_oodclip.scores import ScoreInputs, get_score


def test_hand_values() -> None:
    assert value_of(get_score("energy", temperature=1.0), [0.0, 0.0]) == pytest.approx(-math.log(2), abs=1e-15)
    assert value_of(get_score("energy"), [0.25] * 4) == pytest.approx(-0.25 - 0.01 * math.log(4), abs=1e-14)
    # A sum of exponentials of 1 + 2 + 3.
    odds = [math.log(1.0), math.log(2.0), math.log(3.0)]
    assert value_of(get_score("energy", temperature=1.0), odds) == pytest.approx(-math.log(6), abs=1e-14)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_equals_the_slow_reference(num_labels: int, temperature: float) -> None:
    def reference(cosines: list[float]) -> float:
        return -temperature * log_sum_exp([cosine / temperature for cosine in cosines])

    check_against(get_score("energy", temperature=temperature), reference, num_labels)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_a_constant_on_all_cosines_shifts_it_by_that_constant(temperature: float) -> None:
    score, cosines = get_score("energy", temperature=temperature), random_cosines(16, 7).double()
    torch.testing.assert_close(fp64_scores(score, cosines + 0.25), fp64_scores(score, cosines) - 0.25)


def test_lies_above_max_logit_by_at_most_t_log_n() -> None:
    cosines = random_cosines(200, 7)
    gap = fp64_scores(get_score("max_logit"), cosines) - fp64_scores(get_score("energy", temperature=0.05), cosines)
    assert gap.min() > 0
    assert gap.max() <= 0.05 * math.log(7)


def test_becomes_max_logit_when_cold() -> None:
    inputs = ScoreInputs(random_cosines(16, 7))
    cold = get_score("energy", temperature=1e-6)(inputs)
    torch.testing.assert_close(cold, get_score("max_logit")(inputs), rtol=0, atol=1e-6)


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("energy", temperature=None), cosines, logit_scale=4.0)
    torch.testing.assert_close(own, fp64_scores(get_score("energy", temperature=0.25), cosines))
    assert (own - fp64_scores(get_score("energy"), cosines)).abs().min() > 0.01
