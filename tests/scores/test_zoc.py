"""ZOC: softmax mass of the labels against names proposed for each image."""

import math

import pytest
import torch
from slow_reference import LABEL_COUNTS, random_cosines, softmax, value_of

from hf_oodclip.errors import NonFiniteError
from hf_oodclip.scores import ScoreInputs, get_score


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
def test_the_formula_with_a_name_more_for_each_image(num_labels: int) -> None:
    labels, names = random_cosines(8, num_labels).double(), random_cosines(8, 7, seed=1).double()
    expected = []
    for row, (own, proposed) in enumerate(zip(labels.tolist(), names.tolist(), strict=True)):
        p = softmax([100 * cosine for cosine in [*own, *proposed[:row]]])
        expected.append(-math.fsum(p[:num_labels]))
        names[row, row:] = -math.inf
    computed = get_score("zoc").compute(ScoreInputs(labels, candidate_similarity=names))
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    called = get_score("zoc")(ScoreInputs(labels.float(), candidate_similarity=names.float()))
    torch.testing.assert_close(called.double(), computed, rtol=1e-5, atol=1e-6)


def test_hand_values() -> None:
    names = torch.tensor([[math.log(3), math.log(4), -math.inf]], dtype=torch.float64)
    score = get_score("zoc", temperature=1.0)
    assert value_of(score, [math.log(2), 0.0], candidate_similarity=names) == pytest.approx(-3 / 10)
    assert value_of(score, [0.1, 0.2], candidate_similarity=torch.full((1, 2), -math.inf)) == -1


def test_padding_changes_nothing() -> None:
    labels, names = random_cosines(8, 3), random_cosines(8, 4, seed=1)
    padded = torch.cat([names, torch.full((8, 5), -math.inf)], dim=1)
    assert torch.equal(
        get_score("zoc")(ScoreInputs(labels, candidate_similarity=padded)),
        get_score("zoc")(ScoreInputs(labels, candidate_similarity=names)),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_only_minus_infinity_is_padding(bad: float) -> None:
    names = torch.tensor([[0.1, -math.inf], [0.1, bad]])
    with pytest.raises(NonFiniteError, match=r"candidate_similarity has NaN or infinity in rows \[1\]"):
        get_score("zoc")(ScoreInputs(torch.zeros(2, 1), candidate_similarity=names))
