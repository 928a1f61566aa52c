"""MSP: `-max_j softmax(100 s)_j`."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, random_cosines, softmax, value_of

from hf_oodclip.scores import ScoreInputs, get_score


def test_hand_values() -> None:
    # One hundredth of a cosine is one unit of a logit.
    assert value_of(get_score("msp"), [0.31, 0.30]) == pytest.approx(-1 / (1 + math.exp(-1)), abs=1e-12)
    assert value_of(get_score("msp"), [0.2, 0.2, 0.2, 0.2]) == pytest.approx(-0.25, abs=1e-15)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
def test_equals_the_slow_reference(num_labels: int) -> None:
    check_against(get_score("msp"), lambda cosines: -max(softmax([100 * c for c in cosines])), num_labels)


def test_is_mcm_at_one_hundredth() -> None:
    inputs = ScoreInputs(random_cosines(16, 7))
    assert torch.equal(get_score("msp")(inputs), get_score("mcm", temperature=0.01)(inputs))


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    cosines = random_cosines(16, 7).double()
    torch.testing.assert_close(fp64_scores(get_score("msp"), cosines), fp64_scores(get_score("msp"), cosines - 0.3))


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("msp", temperature=None), cosines, logit_scale=14.3)
    torch.testing.assert_close(own, fp64_scores(get_score("msp", temperature=1 / 14.3), cosines))
    assert (own - fp64_scores(get_score("msp"), cosines)).abs().max() > 0.01
