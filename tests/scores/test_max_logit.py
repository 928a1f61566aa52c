"""MaxLogit: `-max_j s_j`."""

import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, random_cosines, value_of

from hf_oodclip.scores import ScoreInputs, get_score


def test_hand_values() -> None:
    assert value_of(get_score("max_logit"), [0.3, 0.1, -0.9]) == -0.3
    assert value_of(get_score("max_logit"), [-0.2, -0.1]) == 0.1
    assert value_of(get_score("max_logit"), [1.0]) == -1.0


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
def test_equals_the_slow_reference(num_labels: int) -> None:
    check_against(get_score("max_logit"), lambda cosines: -max(cosines), num_labels, fp32_tolerance=0)


def test_a_constant_on_all_cosines_shifts_it_by_that_constant() -> None:
    cosines = random_cosines(16, 7).double()
    shifted = fp64_scores(get_score("max_logit"), cosines + 0.25)
    torch.testing.assert_close(shifted, fp64_scores(get_score("max_logit"), cosines) - 0.25)


def test_the_logit_scale_is_left_out() -> None:
    cosines = random_cosines(16, 7)
    own_scale = get_score("max_logit")(ScoreInputs(cosines, logit_scale=3.0))
    assert torch.equal(own_scale, get_score("max_logit")(ScoreInputs(cosines)))
