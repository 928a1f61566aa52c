"""Entropy: `-sum_j p_j log p_j` in nats, with `p = softmax(s / t)`."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, random_cosines, softmax, value_of

from hf_oodclip.scores import ScoreInputs, get_score


def test_hand_values() -> None:
    # Probabilities 1/2, 1/4, 1/4: 1.5 bits.
    cosines = [math.log(2.0), 0.0, 0.0]
    assert value_of(get_score("entropy", temperature=1.0), cosines) == pytest.approx(1.5 * math.log(2), abs=1e-14)
    assert value_of(get_score("entropy"), [0.3] * 5) == pytest.approx(math.log(5), abs=1e-14)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_equals_the_slow_reference(num_labels: int, temperature: float) -> None:
    def reference(cosines: list[float]) -> float:
        probabilities = softmax([cosine / temperature for cosine in cosines])
        return -math.fsum(p * math.log(p) for p in probabilities if p > 0)

    check_against(get_score("entropy", temperature=temperature), reference, num_labels)


def test_probabilities_of_zero_count_nothing() -> None:
    # exp(-200) is no fp32 number; 0 log 0 must not become NaN.
    scores = get_score("entropy")(ScoreInputs(torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])))
    torch.testing.assert_close(scores, torch.tensor([0.0, math.log(2)]))


def test_range_is_zero_to_log_n() -> None:
    scores = fp64_scores(get_score("entropy"), random_cosines(500, 7))
    assert scores.min() >= 0
    assert scores.max() <= math.log(7)


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    cosines = random_cosines(16, 7).double()
    torch.testing.assert_close(
        fp64_scores(get_score("entropy"), cosines), fp64_scores(get_score("entropy"), cosines + 0.4)
    )


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("entropy", temperature=None), cosines, logit_scale=20.0)
    torch.testing.assert_close(own, fp64_scores(get_score("entropy", temperature=0.05), cosines))
    assert (own - fp64_scores(get_score("entropy"), cosines)).abs().max() > 0.01
