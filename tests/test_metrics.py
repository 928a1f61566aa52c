"""The metrics against arithmetic by hand, slow pure-Python references, scikit-learn and properties."""

from __future__ import annotations

import doctest
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d

from hf_oodclip import metrics
from hf_oodclip.errors import MetricError, UnknownNameError
from hf_oodclip.metrics import (
    CONVENTIONS,
    accuracy,
    aupr_in,
    aupr_out,
    auroc,
    detection_metrics,
    fpr95_id_pos,
    fpr95_ood_pos,
    fpr_at_tpr,
)

RULES = ("first", "nearest", "interpolate")
METHODS = ("average_precision", "trapezoid")
SCORE_METRICS = (auroc, aupr_in, aupr_out, fpr_at_tpr, fpr95_id_pos, fpr95_ood_pos, detection_metrics)
POINT_METRICS = {
    "auroc": auroc,
    "aupr_in": aupr_in,
    "aupr_out": aupr_out,
    "aupr_in_trapezoid": lambda id_scores, ood_scores: aupr_in(id_scores, ood_scores, "trapezoid"),
    "aupr_out_trapezoid": lambda id_scores, ood_scores: aupr_out(id_scores, ood_scores, "trapezoid"),
    "fpr95_id_pos": fpr95_id_pos,
    "fpr95_ood_pos": fpr95_ood_pos,
    "fpr95_nearest": lambda id_scores, ood_scores: fpr_at_tpr(id_scores, ood_scores, 0.95, "id", "nearest"),
    "fpr95_line": lambda id_scores, ood_scores: fpr_at_tpr(id_scores, ood_scores, 0.95, "id", "interpolate"),
}

# Few distinct values force ties; the floats include infinities, subnormals and -0.0.
score_lists = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False)), min_size=1, max_size=25)
targets = st.sampled_from(["0.95", "0.5", "0.9", "0.05", "1.0", "0.333"])


def slow_auroc(id_scores, ood_scores):
    wins = sum(Fraction(2 * (b > a) + (b == a), 2) for a in id_scores for b in ood_scores)
    return wins / (len(id_scores) * len(ood_scores))


def operating_points(id_scores, ood_scores, positive):
    """All (TPR, FPR) from the strictest threshold on, counted anew at every distinct score."""
    points = []
    for threshold in sorted(set(id_scores) | set(ood_scores), reverse=positive == "ood"):
        taken = [
            Fraction(sum(v <= threshold if positive == "id" else v >= threshold for v in side), len(side))
            for side in (id_scores, ood_scores)
        ]
        points.append(tuple(taken) if positive == "id" else tuple(reversed(taken)))
    return points


def slow_fpr(id_scores, ood_scores, target, positive, rule):
    """Sweep every threshold in exact fractions; `target` is a decimal string."""
    points, wanted = operating_points(id_scores, ood_scores, positive), Fraction(target)
    first = next(rate for recall, rate in points if recall >= wanted)
    if rule == "first":
        return first
    if rule == "interpolate":
        below = [point for point in points if point[0] <= wanted]
        above = [point for point in points if point[0] > wanted]
        if not (below and above):
            return first
        (low_recall, low), (high_recall, high) = below[-1], above[0]
        return low + (high - low) * (wanted - low_recall) / (high_recall - low_recall)
    full = next(place for place, (recall, _) in enumerate(points) if recall == 1)
    return min(
        (abs(float(recall) - float(target)), -place, rate) for place, (recall, rate) in enumerate(points[: full + 1])
    )[2]


def random_case(kind, seed=0):
    generator = np.random.default_rng(seed)
    if kind == "tiny":
        return generator.integers(0, 3, size=2).astype(float), generator.integers(0, 3, size=3).astype(float)
    id_scores, ood_scores = generator.normal(0, 1, size=237), generator.normal(1, 1.5, size=160)
    return (id_scores.round(1), ood_scores.round(1)) if kind == "tied" else (id_scores, ood_scores)


# ---------------------------------------------------------------- by hand


def test_auroc_by_hand():
    # OOD 2 beats ID 1, ties 2, loses to 3: 1.5; OOD 4 beats all: 3; together 4.5 of 6 pairs.
    assert auroc([1, 2, 3], [2, 4]) == 4.5 / 6


def test_aupr_in_by_hand():
    # From the lowest score: 1 is ID (P 1/1), {2, 2} is one ID and one OOD (P 2/3), 3 is ID (P 3/4), 4 is OOD.
    # Average precision: (1 + 2/3 + 3/4) / 3. Trapezoid: means (1+1)/2, (1+2/3)/2, (2/3+3/4)/2, over 3.
    assert aupr_in([1, 2, 3], [2, 4]) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-15)
    assert aupr_in([1, 2, 3], [2, 4], method="trapezoid") == pytest.approx((1 + 5 / 6 + 17 / 24) / 3, abs=1e-15)


def test_aupr_out_by_hand():
    # From the highest score: 4 is OOD (P 1), 3 is ID (P 1/2, no recall), {2, 2} is one of each (P 2/4).
    # Average precision: (1 + 1/2) / 2. Trapezoid: the second step goes from P 1/2 to P 1/2: (1 + 1/2) / 2.
    assert aupr_out([1, 2, 3], [2, 4]) == 0.75
    assert aupr_out([1, 2, 3], [2, 4], method="trapezoid") == 0.75
    # One tied group: P = 1/3; the trapezoid starts at P = 1: (1 + 1/3) / 2.
    assert aupr_out([1, 1], [1]) == pytest.approx(1 / 3)
    assert aupr_out([1, 1], [1], "trapezoid") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("tpr", "rule", "expected"),
    [
        # ID 1 2 3 4, OOD 4 4 5 6: the points are (1/4, 0), (1/2, 0), (3/4, 0), (1, 2/4), (1, 3/4), (1, 1).
        (0.95, "first", 0.5),
        (0.95, "nearest", 0.5),  # |1 - .95| < |.75 - .95|
        (0.95, "interpolate", 0.4),  # (.95 - .75) / .25 = .8 of the way from 0 to .5
        (0.8, "first", 0.5),
        (0.8, "nearest", 0.0),  # .75 is nearer, though below the target
        (0.8, "interpolate", 0.1),  # .05 / .25 = .2 of the way
        (0.75, "first", 0.0),
        (0.75, "interpolate", 0.0),
        (0.875, "nearest", 0.5),  # .75 and 1 are equally near (exact in binary): the higher
        (1.0, "first", 0.5),
        (1.0, "nearest", 0.5),  # the first point with TPR 1, not the last
    ],
)
def test_fpr_rules_by_hand(tpr, rule, expected):
    assert fpr_at_tpr([1, 2, 3, 4], [4, 4, 5, 6], tpr, "id", rule) == pytest.approx(expected, abs=1e-15)


def test_all_rules_but_first_take_the_largest_fpr_of_one_tpr():
    # Recall 19/20 holds at thresholds 19, 19.5 and 19.7, where 0, 1 and 2 of 3 OOD images are accepted.
    id_scores, ood_scores = range(1, 21), [19.5, 19.7, 30]
    assert fpr_at_tpr(id_scores, ood_scores, threshold_rule="first") == 0.0
    assert fpr_at_tpr(id_scores, ood_scores, threshold_rule="nearest") == 2 / 3
    assert fpr_at_tpr(id_scores, ood_scores, threshold_rule="interpolate") == 2 / 3


def test_nearest_resolves_nine_tenths_against_one_in_floating_point():
    # 1 - .95 = .05000000000000004 in floating point, .95 - .9 = .04999999999999993: recall .9, two of four.
    id_scores, ood_scores = range(1, 11), [9.5, 9.7, 10, 11]
    assert fpr_at_tpr(id_scores, ood_scores, threshold_rule="nearest") == 0.5
    assert fpr_at_tpr(id_scores, ood_scores, threshold_rule="first") == 0.75


def test_the_two_positive_sides_differ():
    # Accepting 95 % of ID means accepting 9 too, hence all OOD; catching all OOD (>= 4) rejects only the 9.
    id_scores, ood_scores = [1, 2, 3, 9], [4, 5, 6, 7]
    assert fpr95_id_pos(id_scores, ood_scores) == 1.0
    assert fpr95_ood_pos(id_scores, ood_scores) == 0.25
    # The mirror image: one OOD image hides below all ID images.
    assert fpr95_id_pos([4, 5, 6, 7], [1, 8, 9, 10]) == 0.25
    assert fpr95_ood_pos([4, 5, 6, 7], [1, 8, 9, 10]) == 1.0


@pytest.mark.parametrize("positive", ["id", "ood"])
def test_exactly_the_target_share_is_enough(positive):
    # Positives and negatives alternate, a positive first: the k-th positive comes after k - 1 negatives.
    # The line starts at the largest FPR of an exactly met TPR: k negatives (for TPR 1 it equals "first").
    # Products would be rounded: 0.07 * 100 = 7.000000000000001, 0.29 * 100 = 28.999999999999996.
    cases = [(19 * count // 20, count, 0.95) for count in range(20, 3001, 20)]
    cases += [(percent, 100, percent / 100) for percent in range(1, 101)]
    for taken, count, tpr in cases:
        id_scores, ood_scores = np.arange(count), np.arange(count) + 0.5
        if positive == "ood":
            id_scores, ood_scores = -ood_scores, -id_scores
        assert fpr_at_tpr(id_scores, ood_scores, tpr, positive) == (taken - 1) / count
        line = fpr_at_tpr(id_scores, ood_scores, tpr, positive, "interpolate")
        assert line == min(taken, count - 1) / count


@pytest.mark.parametrize("value", [0.0, 0.3, -1e300, math.inf, -math.inf])
def test_constant_scores(value):
    id_scores, ood_scores = [value] * 3, [value] * 5
    assert auroc(id_scores, ood_scores) == 0.5
    assert aupr_in(id_scores, ood_scores) == 3 / 8
    assert aupr_out(id_scores, ood_scores) == 5 / 8
    for positive in ("id", "ood"):
        for rule in RULES:
            assert fpr_at_tpr(id_scores, ood_scores, 0.95, positive, rule) == 1.0


def test_one_image_per_side():
    right, wrong = ([0], [1]), ([1], [0])
    assert [auroc(*right), aupr_in(*right), aupr_out(*right)] == [1, 1, 1]
    # Wrong way round: the first image taken is the negative one, then P = 1/2 (trapezoid: from 0 to 1/2).
    assert [auroc(*wrong), aupr_in(*wrong), aupr_out(*wrong)] == [0, 0.5, 0.5]
    assert aupr_in(*wrong, "trapezoid") == aupr_out(*wrong, "trapezoid") == 0.25
    for positive in ("id", "ood"):
        for rule in RULES:
            assert fpr_at_tpr(*right, 0.95, positive, rule) == 0.0
            assert fpr_at_tpr(*wrong, 0.95, positive, rule) == 1.0


def test_infinities_are_ordinary_largest_and_smallest_scores():
    # Pairs (-inf, 0) 1, (-inf, inf) 1, (0, 0) 1/2, (0, inf) 1: 3.5 of 4.
    id_scores, ood_scores = [-math.inf, 0], [0, math.inf]
    assert auroc(id_scores, ood_scores) == 3.5 / 4
    assert fpr95_id_pos(id_scores, ood_scores) == fpr95_ood_pos(id_scores, ood_scores) == 0.5
    # Two infinities of one sign are tied, so the threshold at inf takes both.
    assert auroc([1, math.inf], [math.inf, math.inf]) == 0.75
    assert fpr95_id_pos([1, math.inf], [math.inf, math.inf]) == 1.0


def test_accuracy_by_hand():
    assert accuracy([1, 2, 3, 3], [1, 2, 3, 4]) == 0.75
    assert accuracy(np.array([0.0]), [1]) == 0.0
    assert accuracy([True, False], [1, 0]) == 1.0
    assert accuracy(["tench", "owl"], ["tench", "owls"]) == 0.5
    assert type(accuracy([1], [1])) is float


# ---------------------------------------------------------------- slow references


@given(score_lists, score_lists)
@settings(deadline=None, max_examples=150)
def test_auroc_equals_the_count_over_all_pairs(id_scores, ood_scores):
    assert auroc(id_scores, ood_scores) == float(slow_auroc(id_scores, ood_scores))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("positive", ["id", "ood"])
@given(id_scores=score_lists, ood_scores=score_lists, target=targets)
@settings(deadline=None, max_examples=100)
def test_fpr_equals_the_sweep_over_all_thresholds(positive, rule, id_scores, ood_scores, target):
    expected = float(slow_fpr(id_scores, ood_scores, target, positive, rule))
    assert fpr_at_tpr(id_scores, ood_scores, float(target), positive, rule) == pytest.approx(expected, abs=1e-12)


# ---------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["random", "tied", "tiny"])
def test_agreement_with_scikit_learn(kind, seed):
    id_scores, ood_scores = random_case(kind, seed)
    scores = np.concatenate([id_scores, ood_scores])
    is_ood = np.arange(scores.size) >= id_scores.size
    near = {"abs": 1e-12}
    assert auroc(id_scores, ood_scores) == pytest.approx(sklearn.metrics.roc_auc_score(is_ood, scores), **near)
    for ours, truth, values, positive in (
        (aupr_in, ~is_ood, -scores, "id"),
        (aupr_out, is_ood, scores, "ood"),
    ):
        average = sklearn.metrics.average_precision_score(truth, values)
        precision, recall, _ = sklearn.metrics.precision_recall_curve(truth, values)
        area = sklearn.metrics.auc(recall, precision)
        assert ours(id_scores, ood_scores) == pytest.approx(average, **near)
        assert ours(id_scores, ood_scores, "trapezoid") == pytest.approx(area, **near)

        fpr, tpr, _ = sklearn.metrics.roc_curve(truth, values, drop_intermediate=False)
        first = np.argmax(tpr >= 0.95)
        assert fpr_at_tpr(id_scores, ood_scores, 0.95, positive) == pytest.approx(fpr[first], **near)
        # As CLIPN, except where scikit-learn's curve starts at the origin, at no score.
        line = float(interp1d(tpr, fpr)(0.95)) if first > 1 else fpr[first]
        ours_line = fpr_at_tpr(id_scores, ood_scores, 0.95, positive, "interpolate")
        assert ours_line == pytest.approx(line, **near)


# ---------------------------------------------------------------- properties


@given(score_lists, score_lists, st.sampled_from(sorted(POINT_METRICS)))
@settings(deadline=None, max_examples=200)
def test_range_and_type(id_scores, ood_scores, name):
    value = POINT_METRICS[name](id_scores, ood_scores)
    assert type(value) is float
    assert 0 <= value <= 1


@given(score_lists, score_lists, st.sampled_from(sorted(POINT_METRICS)))
@settings(deadline=None, max_examples=200)
def test_only_the_order_counts(id_scores, ood_scores, name):
    places = {value: place for place, value in enumerate(sorted(set(id_scores) | set(ood_scores)))}
    moved = [[math.exp(places[value] / 4) - 5 for value in side] for side in (id_scores, ood_scores)]
    assert POINT_METRICS[name](*moved) == POINT_METRICS[name](id_scores, ood_scores)


@given(score_lists, score_lists)
@settings(deadline=None, max_examples=100)
def test_swapping_the_sides(id_scores, ood_scores):
    assert auroc(ood_scores, id_scores) == pytest.approx(1 - auroc(id_scores, ood_scores), abs=1e-15)
    negated = [-value for value in ood_scores], [-value for value in id_scores]
    assert auroc(*negated) == auroc(id_scores, ood_scores)
    assert fpr95_ood_pos(*negated) == fpr95_id_pos(id_scores, ood_scores)
    for method in METHODS:
        assert aupr_out(*negated, method) == aupr_in(id_scores, ood_scores, method)


def test_order_of_images_and_container_do_not_matter():
    id_scores, ood_scores = random_case("tied")
    expected = detection_metrics(id_scores, ood_scores)
    assert detection_metrics(id_scores[::-1].tolist(), tuple(ood_scores[::-1])) == expected
    assert detection_metrics(id_scores[::-1].astype(np.longdouble), ood_scores) == expected


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    id_scores, ood_scores = [0.5, 0.25, 2.0], [0.5, 4.0]
    expected = auroc(id_scores, ood_scores)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = torch.tensor(id_scores, dtype=dtype, requires_grad=True)
        assert auroc(tensor, torch.tensor(ood_scores, dtype=dtype)) == expected
    assert accuracy(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5


# ---------------------------------------------------------------- all metrics at once


def test_detection_metrics_keys_and_values():
    id_scores, ood_scores = random_case("tied")
    result = detection_metrics(id_scores, ood_scores)
    assert list(result) == [
        "auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos", "num_id", "num_ood",
    ]  # fmt: skip
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos"):
        assert result[name] == POINT_METRICS[name](id_scores, ood_scores)
        assert type(result[name]) is float
    assert (result["num_id"], result["num_ood"]) == (237, 160)


def test_the_conventions_differ_as_their_papers_do():
    # ID 1..21 and 30, OOD 21, 21.5, 21.7, 40; the points around .95 are (20/22, 0) at 20, (21/22, 1/4) at 21,
    # (21/22, 2/4) at 21.5 and (21/22, 3/4) at 21.7. The line is (.95 * 22 - 20) = .9 of the way to 1/4.
    # OOD positive: all OOD are caught at >= 21, which rejects the ID images at 21 and 30.
    id_scores, ood_scores = [*range(1, 22), 30], [21, 21.5, 21.7, 40]
    found = {name: detection_metrics(id_scores, ood_scores, convention=name) for name in CONVENTIONS}
    assert found["mcm"]["fpr95_mcm"] == 0.75
    assert found["clipn"]["fpr95_clipn"] == pytest.approx(0.225, abs=1e-12)
    assert found["openood"]["fpr95_openood"] == 2 / 22
    assert found["mcm"]["fpr95_id_pos"] == 0.25
    assert found["openood"]["aupr_in_openood"] == aupr_in(id_scores, ood_scores, "trapezoid")
    assert found["openood"]["aupr_out_openood"] == aupr_out(id_scores, ood_scores, "trapezoid")
    assert found["openood"]["aupr_in_openood"] != found["openood"]["aupr_in"]
    assert found["mcm"]["aupr_in_mcm"] == aupr_in(id_scores, ood_scores)
    plain = detection_metrics(id_scores, ood_scores)
    for name, result in found.items():
        assert {key: result[key] for key in plain} == plain
        added = set(result) - set(plain)
        assert added and all(key.endswith(f"_{name}") for key in added)
    assert set(found["clipn"]) - set(plain) == {"fpr95_clipn"}


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
@pytest.mark.parametrize("case", ["tiny", "tied", "random", "missing"])
def test_bootstrap_equals_the_metrics_of_each_resample(convention, case):
    # In "missing" a resample may lack the score 0, the only operating point without false positives.
    id_scores, ood_scores = ([0, 1], [1]) if case == "missing" else random_case(case, seed=2)
    id_scores, ood_scores = np.asarray(id_scores), np.asarray(ood_scores)
    num_id, num_ood = id_scores.size, ood_scores.size
    result = detection_metrics(id_scores, ood_scores, convention=convention, num_bootstrap=300, confidence=0.9, seed=7)
    # The same draws in one go: chunks of the implementation must not show.
    generators = np.random.default_rng(7).spawn(2)
    resamples = list(
        zip(
            id_scores[generators[0].integers(num_id, size=(300, num_id))],
            ood_scores[generators[1].integers(num_ood, size=(300, num_ood))],
            strict=True,
        )
    )
    side, rule, method = CONVENTIONS[convention]
    expected = {
        "auroc": [auroc(*pair) for pair in resamples],
        "aupr_in": [aupr_in(*pair) for pair in resamples],
        "aupr_out": [aupr_out(*pair) for pair in resamples],
        "fpr95_id_pos": [fpr95_id_pos(*pair) for pair in resamples],
        "fpr95_ood_pos": [fpr95_ood_pos(*pair) for pair in resamples],
        f"fpr95_{convention}": [fpr_at_tpr(*pair, 0.95, side, rule) for pair in resamples],
    }
    if method is not None:
        expected[f"aupr_in_{convention}"] = [aupr_in(*pair, method) for pair in resamples]
        expected[f"aupr_out_{convention}"] = [aupr_out(*pair, method) for pair in resamples]
    assert {key.removesuffix("_interval") for key in result if key.endswith("_interval")} == set(expected)
    for name, values in expected.items():
        assert result[f"{name}_interval"] == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])), abs=1e-12)


def test_bootstrap_is_a_function_of_the_seed():
    id_scores, ood_scores = random_case("random")
    one, again, other = (detection_metrics(id_scores, ood_scores, num_bootstrap=50, seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one["auroc_interval"] != other["auroc_interval"]
    assert one["auroc"] == other["auroc"]


def test_bootstrap_leaves_the_global_generator_alone():
    id_scores, ood_scores = random_case("random")
    np.random.seed(0)
    before = np.random.get_state(legacy=False)["state"]
    key, position = before["key"].copy(), before["pos"]
    detection_metrics(id_scores, ood_scores, num_bootstrap=20)
    after = np.random.get_state(legacy=False)["state"]
    assert np.array_equal(after["key"], key) and after["pos"] == position
    first = detection_metrics(id_scores, ood_scores, num_bootstrap=20)
    np.random.seed(1)
    assert detection_metrics(id_scores, ood_scores, num_bootstrap=20) == first


def test_bootstrap_interval_has_the_width_of_theory():
    # Squared standard error of the AUROC (DeLong): var(share of OOD above each ID) / n + var(share of ID
    # below each OOD) / m; 95 % of a normal variable is within 1.96 of it.
    id_scores, ood_scores = random_case("random")
    beaten = (ood_scores[None] > id_scores[:, None]).astype(float)
    error = math.sqrt(beaten.mean(1).var(ddof=1) / id_scores.size + beaten.mean(0).var(ddof=1) / ood_scores.size)
    result = detection_metrics(id_scores, ood_scores, num_bootstrap=2000)
    low, high = result["auroc_interval"]
    assert low == pytest.approx(result["auroc"] - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(result["auroc"] + 1.96 * error, abs=0.15 * error)
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos"):
        low, high = result[f"{name}_interval"]
        assert 0 <= low < result[name] < high <= 1
    narrow = detection_metrics(id_scores, ood_scores, num_bootstrap=2000, confidence=0.5)["auroc_interval"]
    assert result["auroc_interval"][0] < narrow[0] < narrow[1] < result["auroc_interval"][1]


def test_bootstrap_of_separated_sides_is_certain():
    result = detection_metrics([1, 2, 3], [4, 5], num_bootstrap=30)
    assert result["auroc_interval"] == (1.0, 1.0)
    assert result["fpr95_id_pos_interval"] == (0.0, 0.0)


def test_bootstrap_memory_is_bounded():
    # All 1000 resamples at once would be 2,000,000 counts of 8 bytes, 16 MB, for each of many arrays.
    id_scores, ood_scores = np.random.default_rng(0).normal(size=(2, 1000))
    tracemalloc.start()
    try:
        detection_metrics(id_scores, ood_scores, num_bootstrap=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6


def test_a_million_scores_per_side():
    # Normal scores one standard deviation apart: AUROC = Phi(1 / sqrt 2) = 0.76025, and 95 % of ID lie below
    # 1.64485, where OOD has Phi(0.64485) = 0.74050.
    generator = np.random.default_rng(0)
    id_scores, ood_scores = generator.normal(0, 1, 1_000_000), generator.normal(1, 1, 1_000_000)
    result = detection_metrics(id_scores, ood_scores)
    assert result["auroc"] == pytest.approx(0.76025, abs=0.002)
    assert result["fpr95_id_pos"] == pytest.approx(0.74050, abs=0.004)
    assert result["fpr95_ood_pos"] == pytest.approx(0.74050, abs=0.004)


# ---------------------------------------------------------------- errors


BAD_SCORES = {
    "empty": ([], r"shape \(0,\).*at least one"),
    "NaN": ([0.5, math.nan], r"\[1\] is NaN.*allowed.*inf"),
    "two dimensions": ([[0.1, 0.2]], r"shape \(1, 2\).*1-D"),
    "a number": (0.5, r"shape \(\).*1-D"),
    "ragged": ([[0.1], [0.2, 0.3]], "no array.*1-D"),
    "words": (["high", "low"], "<U4.*numbers"),
    "None": ([0.1, None], "object.*numbers"),
    "complex": ([1j], "complex128.*numbers"),
}


@pytest.mark.parametrize("function", SCORE_METRICS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("bad", sorted(BAD_SCORES))
def test_bad_scores(function, bad):
    scores, message = BAD_SCORES[bad]
    with pytest.raises(MetricError, match=f"id_scores.*{message}"):
        function(scores, [0.5])
    with pytest.raises(MetricError, match=f"ood_scores.*{message}"):
        function([0.5], scores)


def test_metric_error_is_a_value_error():
    with pytest.raises(ValueError, match="id_scores"):
        auroc([], [1])


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([1, 2], [1, 2, 3], "2 int64 predictions, 3 int64 labels.*equal lengths"),
        ([1], [1, 1], "1 int64 predictions, 2 int64 labels"),
        (["cat"], [0], "<U3 predictions.*both numbers or both names"),
        ([], [], r"predictions is.*shape \(0,\).*numbers or names"),
        ([1], [[1]], r"labels is.*shape \(1, 1\)"),
        ([math.nan], [1], r"predictions\[0\] is NaN"),
    ],
)
def test_bad_accuracy_inputs(predictions, labels, message):
    with pytest.raises(MetricError, match=message):
        accuracy(predictions, labels)


@pytest.mark.parametrize("tpr", [0, -0.1, 1.01, 95, math.nan])
def test_bad_tpr(tpr):
    with pytest.raises(MetricError, match=r"tpr is .*at most 1.*0\.95"):
        fpr_at_tpr([1], [2], tpr)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_bootstrap", -1), ("num_bootstrap", 2.5), *(("confidence", v) for v in (0, 1.0, 95, math.nan))],
)
def test_bad_bootstrap_settings(name, value):
    with pytest.raises(MetricError, match=f"{name}.*{value!r}.*whole number >= 0.*share"):
        detection_metrics([1], [2], **{name: value})


@pytest.mark.parametrize(
    ("call", "suggestion"),
    [
        (lambda: aupr_in([1], [2], "trapezium"), "trapezoid"),
        (lambda: aupr_out([1], [2], "average-precision"), "average_precision"),
        (lambda: fpr_at_tpr([1], [2], positive="oods"), "ood"),
        (lambda: fpr_at_tpr([1], [2], threshold_rule="near"), "nearest"),
        (lambda: detection_metrics([1], [2], convention="OpenOOD-"), "openood"),
    ],
)
def test_misspelt_names(call, suggestion):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{suggestion}'"):
        call()


def test_docstring_examples_are_true():
    results = doctest.testmod(metrics)
    assert results.failed == 0
    assert results.attempted >= 8
