"""GL-MCM: maximum concept matching of the image plus that of its best patch."""

import math

import pytest
import torch
from slow_reference import random_cosines, softmax, value_of

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score


@pytest.mark.parametrize("num_labels", [2, 7])
@pytest.mark.parametrize(("temperature", "local_weight"), [(1.0, 1.0), (0.5, 0.5), (0.01, 2.0)])
def test_the_formula(num_labels: int, temperature: float, local_weight: float) -> None:
    images, patches = random_cosines(8, num_labels), random_cosines(8 * 9, num_labels, seed=1).reshape(8, 9, -1)
    expected = []
    for image, its_patches in zip(images.double().tolist(), patches.double().tolist(), strict=True):
        best = max(max(softmax([cosine / temperature for cosine in patch])) for patch in its_patches)
        expected.append(-max(softmax([cosine / temperature for cosine in image])) - local_weight * best)
    score = get_score("gl_mcm", temperature=temperature, local_weight=local_weight)
    computed = score.compute(ScoreInputs(images.double(), patch_similarity=patches.double()))
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hand_values() -> None:
    # Odds of 3 to 1 in the image, of 1 to 4 in the better of two patches.
    patches = torch.tensor([[[0.0, math.log(4)], [0.0, 0.0]]], dtype=torch.float64)
    score = get_score("gl_mcm", local_weight=0.5)
    assert value_of(score, [math.log(3), 0.0], patch_similarity=patches) == pytest.approx(-3 / 4 - 0.5 * 4 / 5)


def test_without_weight_it_is_mcm() -> None:
    inputs = ScoreInputs(random_cosines(8, 5), patch_similarity=random_cosines(8, 5, seed=1)[:, None])
    assert torch.equal(get_score("gl_mcm", local_weight=0.0)(inputs), get_score("mcm")(inputs))


def test_defaults_are_those_of_the_paper() -> None:
    assert get_score("gl_mcm").options == {"temperature": 1.0, "local_weight": 1.0}


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_a_negative_weight_is_refused(bad: float) -> None:
    with pytest.raises(ScoreInputError, match="local_weight must be at least 0"):
        get_score("gl_mcm", local_weight=bad)
