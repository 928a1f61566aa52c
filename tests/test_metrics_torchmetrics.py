"""The metrics against torchmetrics, a third implementation besides ours and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_oodclip.errors import MetricError
from hf_oodclip.metrics import detection_metrics, fpr_at_tpr

pytest.importorskip("torchmetrics")
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

INF = float("inf")
RANDOM = np.random.default_rng(0)
CASES = {
    "random": (RANDOM.normal(0, 1, 900), RANDOM.normal(1, 1, 400)),
    "random, worse than chance": (RANDOM.normal(1, 1, 300), RANDOM.normal(0, 2, 700)),
    "single precision": (RANDOM.normal(0, 1, 200).astype(np.float32), RANDOM.normal(1, 1, 90).astype(np.float32)),
    "tied": (RANDOM.integers(0, 5, 500), RANDOM.integers(2, 7, 300)),
    "two values": (np.repeat([0.0, 1.0], [95, 5]), np.repeat([0.0, 1.0], [5, 95])),
    "1 and 1, right": ([0.0], [1.0]),
    "1 and 1, wrong": ([1.0], [0.0]),
    "1 and 1, tied": ([1.0], [1.0]),
    "1 and many": ([3.5], list(range(9))),
    "many and 1": (list(range(40)), [37.5]),
    "constant": ([2.0] * 6, [2.0] * 4),
    "constant but for one": ([2.0] * 30, [*[2.0] * 4, 3.0]),
    "zeros of both signs": ([0.0, -0.0, 1.0], [-0.0, 2.0]),
    "infinite": ([-INF, 0.0, 1.0, INF], [-INF, 0.5, INF, INF]),
    "all infinite": ([-INF, -INF], [INF]),
    "all the same infinity": ([INF, INF], [INF]),
    "neighbours in floating point": (np.nextafter(1.0, [0.0, 1.0, 2.0]), np.nextafter(1.0, [1.0, 2.0])),
    "separated": (np.arange(20.0), np.arange(20.0) + 50),
    "exactly 95 %": (np.arange(20.0), np.arange(20.0) + 0.5),
    "just short of 95 %": (np.arange(19.0), np.arange(19.0) + 0.5),
}


def places(*sides):
    """Both sides as places in [0, 1], which keep order and ties: torchmetrics squashes whatever lies outside of it."""
    ranks = np.unique(np.concatenate([np.asarray(side, dtype=np.float64) for side in sides]), return_inverse=True)[1]
    return torch.from_numpy(ranks / max(ranks.max(), 1))


def false_positives_at_95(positive, negative):
    """The fewest false positives at thresholds that find 95 % of the positives."""
    scores = places(positive, negative)
    truth = torch.arange(len(scores)) < len(positive)
    rates, hits, _ = binary_roc(scores, truth.int())
    # torchmetrics counts in fp32.
    return float(rates[hits >= 0.95 - 1e-6].min())


def by_torchmetrics(id_scores, ood_scores):
    scores = places(id_scores, ood_scores)
    is_ood = (torch.arange(len(scores)) >= len(id_scores)).int()
    turned = [-np.asarray(side, dtype=np.float64) for side in (id_scores, ood_scores)]
    return {
        "auroc": float(binary_auroc(scores, is_ood)),
        "aupr_out": float(binary_average_precision(scores, is_ood)),
        "aupr_in": float(binary_average_precision(places(*turned), 1 - is_ood)),
        "fpr95_ood_pos": false_positives_at_95(ood_scores, id_scores),
        "fpr95_id_pos": false_positives_at_95(*turned),
    }


@pytest.mark.parametrize("case", CASES)
def test_agreement(case):
    expected = by_torchmetrics(*CASES[case])
    found = detection_metrics(*CASES[case])
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-6)


def test_what_is_degenerate_has_its_value():
    constant = detection_metrics([2.0] * 6, [2.0] * 4)
    values = {name: constant[name] for name in ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos")}
    assert values == {"auroc": 0.5, "aupr_in": 0.6, "aupr_out": 0.4, "fpr95_id_pos": 1.0, "fpr95_ood_pos": 1.0}
    # torchmetrics says 0 where there is nothing of one side, and NaN goes through it.
    for sides in (([], [1.0]), ([1.0], []), ([1.0], [float("nan")])):
        with pytest.raises(MetricError):
            detection_metrics(*sides)


@pytest.mark.parametrize("seed", range(20))
def test_agreement_on_random_sizes_and_ties(seed):
    drawn = np.random.default_rng(seed)
    values = int(drawn.integers(1, 40))
    sides = [drawn.integers(0, values, int(drawn.integers(1, 60))) for _ in range(2)]
    expected = by_torchmetrics(*sides)
    found = detection_metrics(*sides)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.8, 0.99, 1.0])
def test_every_operating_point_is_on_the_curve(level):
    for id_scores, ood_scores in CASES.values():
        scores = places(id_scores, ood_scores)
        rates, hits, _ = binary_roc(scores, (torch.arange(len(scores)) >= len(id_scores)).int())
        expected = float(rates[hits >= level - 1e-6].min())
        assert fpr_at_tpr(id_scores, ood_scores, level, "ood") == pytest.approx(expected, abs=2e-6)


def test_metrics_that_see_one_batch_at_a_time():
    id_scores, ood_scores = (torch.from_numpy(side) for side in CASES["random"])
    scores = torch.sigmoid(torch.cat([id_scores, ood_scores]))
    is_ood = (torch.arange(len(scores)) >= len(id_scores)).int()
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    area, precision = BinaryAUROC(), BinaryAveragePrecision()
    for rows in order.split(64):
        area.update(scores[rows], is_ood[rows])
        precision.update(scores[rows], is_ood[rows])
    found = detection_metrics(id_scores, ood_scores)
    assert (found["auroc"], found["aupr_out"]) == pytest.approx(
        (float(area.compute()), float(precision.compute())), abs=2e-6
    )
