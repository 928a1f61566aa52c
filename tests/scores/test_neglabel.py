"""NegLabel: `-mean_g sigmoid(P - Q_g)`, the softmax mass of the labels against groups of negatives."""

import math

import pytest
import torch
from slow_reference import (
    LABEL_COUNTS,
    check_against,
    fp64_scores,
    log_sum_exp,
    random_cosines,
    softmax,
    value_of,
)

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score


def groups_of(num_negatives: int, num_groups: int, seed: int = 0) -> list[list[int]]:
    """Return the grouping of methods.md 0.4: drop the last, permute once privately, cut evenly."""
    num_groups = min(num_groups, num_negatives)
    kept = num_negatives - num_negatives % num_groups
    order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed)).tolist()
    size = kept // num_groups
    return [order[start : start + size] for start in range(0, kept, size)]


def slow_neglabel(labels: list[float], negatives: list[float], num_groups: int, temperature: float = 0.01) -> float:
    """Return the score of one image by concatenating labels and group, and taking a softmax."""
    masses = []
    for group in groups_of(len(negatives), num_groups):
        together = [*labels, *(negatives[index] for index in group)]
        masses.append(math.fsum(softmax([cosine / temperature for cosine in together])[: len(labels)]))
    return -math.fsum(masses) / len(masses)


def test_hand_values() -> None:
    one_group, two_groups = get_score("neglabel", num_groups=1), get_score("neglabel", num_groups=2)
    assert value_of(two_groups, [0.30], [0.29, 0.29]) == pytest.approx(-1 / (1 + math.exp(-1)), abs=1e-12)
    # All three alike: a third of the mass, and half against each negative alone.
    assert value_of(one_group, [0.3], [0.3, 0.3]) == pytest.approx(-1 / 3, abs=1e-12)
    assert value_of(two_groups, [0.3], [0.3, 0.3]) == pytest.approx(-1 / 2, abs=1e-12)
    # Odds of 2 for the label, of 1 and 3 for the negatives.
    odds = [math.log(2.0)], [math.log(1.0), math.log(3.0)]
    grouped = get_score("neglabel", temperature=1.0, num_groups=2)
    assert value_of(grouped, *odds) == pytest.approx(-(2 / 3 + 2 / 5) / 2, abs=1e-12)
    plain = get_score("neglabel", temperature=1.0, num_groups=1)
    assert value_of(plain, *odds) == pytest.approx(-2 / 6, abs=1e-12)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize(("num_negatives", "num_groups"), [(1, 100), (7, 3), (100, 100), (205, 10), (40, 1)])
def test_closed_form_equals_the_concatenated_softmax(num_labels: int, num_negatives: int, num_groups: int) -> None:
    def reference(labels: list[float], negatives: list[float]) -> float:
        return slow_neglabel(labels, negatives, num_groups)

    check_against(get_score("neglabel", num_groups=num_groups), reference, num_labels, num_negatives)


def test_one_group_is_the_sigmoid_of_the_log_odds() -> None:
    labels, negatives = random_cosines(16, 5).double(), random_cosines(16, 33, seed=1).double()
    expected = []
    for own, other in zip(labels.tolist(), negatives.tolist(), strict=True):
        log_odds = log_sum_exp([100 * c for c in own]) - log_sum_exp([100 * c for c in other])
        expected.append(-1 / (1 + math.exp(-log_odds)))
    computed = fp64_scores(get_score("neglabel", num_groups=1), labels, negatives)
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_defaults_are_those_of_the_paper() -> None:
    assert get_score("neglabel").options == {"temperature": 0.01, "num_groups": 100, "seed": 0}


def test_more_groups_than_negatives_is_one_group_a_negative() -> None:
    labels, negatives = random_cosines(16, 3), random_cosines(16, 6, seed=1)
    many = fp64_scores(get_score("neglabel", num_groups=100), labels, negatives)
    assert torch.equal(many, fp64_scores(get_score("neglabel", num_groups=6), labels, negatives))
    mass = torch.logsumexp(100 * labels.double(), 1, keepdim=True) - 100 * negatives.double()
    torch.testing.assert_close(many, -torch.sigmoid(mass).mean(1))


@pytest.mark.parametrize(("num_negatives", "num_groups"), [(10, 4), (23, 5), (12, 3), (7, 1)])
def test_only_the_last_remainder_of_negatives_is_dropped(num_negatives: int, num_groups: int) -> None:
    score = get_score("neglabel", num_groups=num_groups)
    kept = num_negatives - num_negatives % num_groups
    base = value_of(score, [0.3], [0.3] * num_negatives)
    for position in range(num_negatives):
        negatives = [0.3] * num_negatives
        negatives[position] = 0.9
        change = value_of(score, [0.3], negatives) - base
        if position >= kept:
            assert change == 0
        else:
            # One group loses its whole mass: each group weighs the same and holds each kept negative once.
            expected = 1 / (1 + kept / num_groups) / num_groups
            assert change == pytest.approx(expected, rel=1e-9)


def test_negatives_are_permuted_before_they_are_cut_into_groups() -> None:
    labels, negatives = random_cosines(16, 3).double(), random_cosines(16, 100, seed=1).double()
    unpermuted = -torch.sigmoid(
        torch.logsumexp(100 * labels, 1, keepdim=True) - torch.logsumexp(100 * negatives.reshape(16, 10, 10), 2)
    ).mean(1)
    computed = fp64_scores(get_score("neglabel", num_groups=10), labels, negatives)
    assert (computed - unpermuted).abs().max() > 1e-3
    other_seed = fp64_scores(get_score("neglabel", num_groups=10, seed=1), labels, negatives)
    assert (computed - other_seed).abs().max() > 1e-3


def test_every_call_permutes_alike_and_leaves_the_global_generator_alone() -> None:
    from hf_oodclip.scores.grouping import group_order

    inputs = ScoreInputs(random_cosines(16, 3), random_cosines(16, 50, seed=1))
    results = []
    for seed in (1, 2):
        group_order.cache_clear()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results += [get_score("neglabel", num_groups=5)(inputs), get_score("neglabel", num_groups=5)(inputs)]
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_first_call_under_inference_mode_leaves_training_possible() -> None:
    from hf_oodclip.scores.grouping import group_order

    group_order.cache_clear()
    labels, negatives = random_cosines(4, 3), random_cosines(4, 50, seed=1)
    score = get_score("neglabel", num_groups=5)
    with torch.inference_mode():
        score(ScoreInputs(labels, negatives))
    negatives.requires_grad_()
    score(ScoreInputs(labels, negatives)).sum().backward()
    assert negatives.grad is not None
    assert (negatives.grad > 0).all()


def test_another_default_device_does_not_spoil_the_grouping() -> None:
    from hf_oodclip.scores.grouping import group_order

    group_order.cache_clear()
    try:
        with torch.device("meta"):
            assert group_order(50, 5, 0).device.type == "cpu"
    finally:
        group_order.cache_clear()


def test_a_constant_on_all_cosines_changes_nothing() -> None:
    labels, negatives = random_cosines(16, 3).double(), random_cosines(16, 50, seed=1).double()
    score = get_score("neglabel", num_groups=5)
    torch.testing.assert_close(
        fp64_scores(score, labels, negatives), fp64_scores(score, labels + 0.2, negatives + 0.2)
    )


def test_temperature_none_is_the_models_own_scale() -> None:
    labels, negatives = random_cosines(16, 3), random_cosines(16, 50, seed=1)
    own = fp64_scores(get_score("neglabel", temperature=None), labels, negatives, logit_scale=20.0)
    torch.testing.assert_close(own, fp64_scores(get_score("neglabel", temperature=0.05), labels, negatives))
    assert (own - fp64_scores(get_score("neglabel"), labels, negatives)).abs().max() > 0.01


def test_one_label_is_enough() -> None:
    scores = get_score("neglabel")(ScoreInputs(torch.tensor([[0.3], [0.1]]), torch.full((2, 5), 0.2)))
    torch.testing.assert_close(scores, -torch.sigmoid(torch.tensor([10.0, -10.0])))


@pytest.mark.parametrize("num_groups", [0, -3])
def test_no_groups_are_refused(num_groups: int) -> None:
    with pytest.raises(ScoreInputError, match="num_groups must be at least 1"):
        get_score("neglabel", num_groups=num_groups)
