"""The metrics against scikit-learn and scipy on inputs drawn to be difficult, and laws that hold for any scores.

Arithmetic by hand, slow references and errors are in `test_metrics.py`.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from hf_oodclip.metrics import accuracy, aupr_in, aupr_out, auroc, detection_metrics, fpr_at_tpr

RULES = ("first", "nearest", "interpolate")
# scikit-learn refuses infinities; few values force ties, the rest are any finite floats, subnormal ones too.
finite = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e300, 1e300))
sides = st.lists(finite, min_size=1, max_size=30)
LEVELS = (0.05, 0.3, 0.5, 0.8, 0.95, 1.0)
ties = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=20)

CASES = {
    "constant": (np.zeros(7), np.zeros(4)),
    "one image a side": (np.array([0.5]), np.array([0.25])),
    "one OOD image": (np.arange(400.0), np.array([379.5])),
    "one ID image": (np.array([20.5]), np.arange(400.0)),
    "separated": (np.arange(50.0), np.arange(60.0) + 100),
    "inverted": (np.arange(50.0) + 100, np.arange(60.0)),
    "two values": (np.repeat([0.0, 1.0], [95, 5]), np.repeat([0.0, 1.0], [5, 95])),
    "neighbours in floating point": (np.nextafter(1.0, [0.0, 1.0, 2.0]), np.nextafter(1.0, [1.0, 2.0])),
    "subnormal": (np.array([0.0, 5e-324, 1e-323]), np.array([5e-324, 1.5e-323])),
    "huge": (np.array([-1e308, 0.0, 1e308]), np.array([1e308, 1.7e308])),
    "single precision": (
        np.random.default_rng(0).normal(0, 1, 500).astype(np.float32),
        np.random.default_rng(1).normal(1, 1, 300).astype(np.float32),
    ),
    "ten thousand tied": (
        np.random.default_rng(2).integers(0, 9, 10_000),
        np.random.default_rng(3).integers(3, 12, 5_000),
    ),
}


def check_against_scikit_learn(id_scores, ood_scores):
    scores = np.concatenate([id_scores, ood_scores])
    is_ood = np.arange(len(scores)) >= len(id_scores)
    ranks = np.unique(scores, return_inverse=True)[1]
    # Ranks instead of scores: scikit-learn subtracts scores, which overflows, and drops what is too small.
    expected = {
        "auroc": sklearn.metrics.roc_auc_score(is_ood, ranks),
        "aupr_in": sklearn.metrics.average_precision_score(~is_ood, -ranks),
        "aupr_out": sklearn.metrics.average_precision_score(is_ood, ranks),
    }
    for name, truth, values in (("fpr95_id_pos", ~is_ood, -ranks), ("fpr95_ood_pos", is_ood, ranks)):
        fpr, tpr, _ = sklearn.metrics.roc_curve(truth, values, drop_intermediate=False)
        expected[name] = fpr[np.argmax(tpr >= 0.95)]
    found = detection_metrics(id_scores, ood_scores)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    statistic = mannwhitneyu(ood_scores, id_scores, method="asymptotic").statistic if len(set(ranks)) > 1 else None
    if statistic is not None:
        assert found["auroc"] == pytest.approx(statistic / (len(id_scores) * len(ood_scores)), abs=1e-12)


@pytest.mark.parametrize("case", sorted(CASES))
def test_difficult_cases_agree_with_scikit_learn(case):
    check_against_scikit_learn(*CASES[case])


@given(sides, sides)
@settings(deadline=None, max_examples=150)
def test_any_finite_scores_agree_with_scikit_learn(id_scores, ood_scores):
    check_against_scikit_learn(np.array(id_scores), np.array(ood_scores))


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_accuracy_agrees_with_scikit_learn(data):
    count = data.draw(st.integers(1, 30))
    classes = data.draw(st.sampled_from([st.integers(0, 3), st.sampled_from(["cat", "dog", "owl"])]))
    predictions, labels = (data.draw(st.lists(classes, min_size=count, max_size=count)) for _ in range(2))
    assert accuracy(predictions, labels) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))


# ---------------------------------------------------------------- laws


@given(ties, ties, st.data())
@settings(deadline=None, max_examples=150)
def test_a_better_score_of_one_image_never_makes_a_metric_worse(id_scores, ood_scores, data):
    place = data.draw(st.integers(0, len(ood_scores) - 1))
    better = list(ood_scores)
    better[place] += data.draw(st.integers(1, 3))
    assert auroc(id_scores, better) >= auroc(id_scores, ood_scores)
    for positive in ("id", "ood"):
        for level in (0.5, 0.95):
            before, after = (fpr_at_tpr(id_scores, each, level, positive) for each in (ood_scores, better))
            assert after <= before


@given(st.permutations(range(12)), st.integers(1, 11), st.data())
@settings(deadline=None, max_examples=100)
def test_without_ties_precision_follows_too(order, num_id, data):
    # With ties it need not: ID 1, OOD 0 0 has an AUPR-out of 2/3, ID 1, OOD 1 0 one of 7/12, here and in scikit-learn.
    id_scores, ood_scores = order[:num_id], order[num_id:]
    place = data.draw(st.integers(0, len(ood_scores) - 1))
    better = list(ood_scores)
    better[place] += data.draw(st.integers(0, 11)) + 0.5
    for metric in (aupr_in, aupr_out):
        assert metric(id_scores, better) >= metric(id_scores, ood_scores) - 1e-12


@given(ties, ties, st.integers(2, 5))
@settings(deadline=None, max_examples=100)
def test_showing_every_image_several_times_changes_nothing(id_scores, ood_scores, times):
    once = detection_metrics(id_scores, ood_scores, convention="openood")
    often = detection_metrics(id_scores * times, ood_scores * times, convention="openood")
    assert often.pop("num_id") == times * once.pop("num_id") and often.pop("num_ood") == times * once.pop("num_ood")
    assert often == pytest.approx(once, abs=1e-12)


@given(ties, ties, st.integers(2, 5))
@settings(deadline=None, max_examples=100)
def test_only_precision_depends_on_how_many_images_there_are_of_one_side(id_scores, ood_scores, times):
    once, often = detection_metrics(id_scores, ood_scores), detection_metrics(id_scores, ood_scores * times)
    for name in ("auroc", "fpr95_id_pos", "fpr95_ood_pos"):
        assert often[name] == pytest.approx(once[name], abs=1e-12)
    assert often["aupr_in"] <= once["aupr_in"] + 1e-12
    assert often["aupr_out"] >= once["aupr_out"] - 1e-12


@given(sides, sides, st.sampled_from(LEVELS))
@settings(deadline=None, max_examples=150)
def test_area_and_operating_points_bound_each_other(id_scores, ood_scores, level):
    for positive in ("id", "ood"):
        rate = fpr_at_tpr(id_scores, ood_scores, level, positive)
        # From this point on the curve is at least `level` high.
        assert auroc(id_scores, ood_scores) >= level * (1 - rate) - 1e-12


@given(sides, sides, st.sampled_from(["id", "ood"]))
@settings(deadline=None, max_examples=100)
def test_asking_for_more_true_positives_never_costs_fewer_false_ones(id_scores, ood_scores, positive):
    for rule in RULES:
        rates = [
            fpr_at_tpr(id_scores, ood_scores, level, positive, rule) for level in (0.05, 0.3, 0.5, 0.8, 0.95, 1.0)
        ]
        assert all(low <= high + 1e-12 for low, high in itertools.pairwise(rates)), (rule, rates)


@given(sides, sides)
@settings(deadline=None, max_examples=100)
def test_a_perfect_auroc_is_a_perfect_everything(id_scores, ood_scores):
    found = detection_metrics(id_scores, ood_scores)
    assert (found["auroc"] == 1) == (max(id_scores) < min(ood_scores))
    if found["auroc"] == 1:
        assert found["aupr_in"] == found["aupr_out"] == 1
        assert found["fpr95_id_pos"] == found["fpr95_ood_pos"] == 0


@given(ties, ties, st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_wider_confidence_is_a_wider_interval(id_scores, ood_scores, seed):
    narrow, wide = (
        detection_metrics(id_scores, ood_scores, num_bootstrap=30, confidence=share, seed=seed) for share in (0.5, 0.9)
    )
    for name in (name for name in wide if name.endswith("_interval")):
        assert 0 <= wide[name][0] <= narrow[name][0] <= narrow[name][1] <= wide[name][1] <= 1
