"""CLIPN: every label against its own "no" text."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, random_cosines, softmax, value_of

from hf_oodclip.errors import UnknownNameError
from hf_oodclip.scores import ScoreInputs, get_score


def slow_clipn(labels: list[float], denials: list[float], variant: str, temperature: float) -> float:
    """Return the score of one image with loops."""
    yes = [
        math.exp(s / temperature) / (math.exp(s / temperature) + math.exp(no / temperature))
        for s, no in zip(labels, denials, strict=True)
    ]
    if variant == "ctw":
        return -yes[labels.index(max(labels))]
    p = softmax([s / temperature for s in labels])
    return -math.fsum(a * b for a, b in zip(p, yes, strict=True))


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("variant", ["atd", "ctw"])
def test_the_formula(variant: str, temperature: float, num_labels: int) -> None:
    labels, denials = random_cosines(8, num_labels).double(), random_cosines(8, num_labels, seed=1).double()
    expected = [
        slow_clipn(own, no, variant, temperature) for own, no in zip(labels.tolist(), denials.tolist(), strict=True)
    ]
    score = get_score("clipn", variant=variant, temperature=temperature)
    computed = score.compute(ScoreInputs(labels, no_similarity=denials))
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hand_values() -> None:
    # The second label is likelier, 3 to 1, but its denial likelier still, 2 to 1.
    denials = torch.tensor([[0.0, math.log(6)]], dtype=torch.float64)
    labels = [0.0, math.log(3)]
    compete = get_score("clipn", temperature=1.0, variant="ctw")
    assert value_of(compete, labels, no_similarity=denials) == pytest.approx(-1 / 3)
    differ = get_score("clipn", temperature=1.0)
    assert value_of(differ, labels, no_similarity=denials) == pytest.approx(-(1 / 4 * 1 / 2 + 3 / 4 * 1 / 3))


def test_agreeing_to_differ_is_one_less_the_probability_of_one_class_more() -> None:
    labels, denials = random_cosines(8, 5).double(), random_cosines(8, 5, seed=1).double()
    p, no = torch.softmax(100 * labels, 1), torch.sigmoid(100 * (denials - labels))
    computed = get_score("clipn").compute(ScoreInputs(labels, no_similarity=denials))
    torch.testing.assert_close(computed, (p * no).sum(1) - 1)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Allowed: atd, ctw"):
        get_score("clipn", variant="both")
