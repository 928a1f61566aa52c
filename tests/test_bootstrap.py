"""Resampling by groups of scores against drawing image by image, arithmetic by hand, and theory.

That drawing image by image is what the metrics of each resample are is in `test_metrics.py`.
"""

import math

import numpy as np
import pytest
from scipy.stats import norm

from hf_oodclip import bootstrap
from hf_oodclip.detection_curves import evaluate_curves, score_curves
from hf_oodclip.metrics import detection_metrics

GROUPED = {
    "as many": (3000, 3000, 1.0, None, "clipn"),
    "few OOD": (6000, 20, 1.5, None, "mcm"),
    "few ID": (20, 6000, 1.5, None, "openood"),
    "nearly separated": (4000, 3000, 4.0, None, "openood"),
    "tied": (3000, 2000, 1.0, 1, "mcm"),
}


@pytest.mark.parametrize("case", sorted(GROUPED))
def test_groups_give_the_intervals_of_drawing_image_by_image(case, monkeypatch):
    num_id, num_ood, distance, digits, convention = GROUPED[case]
    generator = np.random.default_rng(5)
    id_scores, ood_scores = generator.normal(0, 1, num_id), generator.normal(distance, 1.3, num_ood)
    if digits is not None:
        id_scores, ood_scores = id_scores.round(digits), ood_scores.round(digits)

    def interval(most, seed):
        monkeypatch.setattr(bootstrap, "MAX_DRAWN", most)
        return detection_metrics(id_scores, ood_scores, convention=convention, num_bootstrap=1500, seed=seed)

    plain, grouped = interval(10**9, 0), interval(0, 0)
    for name in (name for name in plain if name.endswith("_interval")):
        # An end of the 95 % interval of 1500 resamples has a standard error of some 2 % of the width, up to 4 % in a
        # heavy tail. Rates are multiples of one image.
        one = 1.5 / (num_id if name.startswith("fpr95_o") else num_ood)
        near = 0.12 * (plain[name][1] - plain[name][0]) + (one if name.startswith("fpr95") else 1e-9)
        assert grouped[name] == pytest.approx(plain[name], abs=near), name
    assert {name: value for name, value in grouped.items() if not name.endswith("_interval")} == {
        name: value for name, value in plain.items() if not name.endswith("_interval")
    }


def test_groups_of_one_score_each_are_exact(monkeypatch):
    # Each of three scores is a group, so nothing is lost: ID 0 0 1 1, OOD 1 2 has a resampled AUROC of
    # 1 - share of OOD at 1 * share of ID at 1 / 2, with binomial shares: 1/2 * 1/2 on average.
    monkeypatch.setattr(bootstrap, "MAX_DRAWN", 0)
    sides = [np.array([[0, 0, 1, 1]]), np.array([[1, 2]])]
    points = evaluate_curves(score_curves(sides, 3), None)
    found = bootstrap.resample_metrics(sides, 3, points, None, 4000, 0)["auroc"]
    possible = {1 - known / 4 * unknown / 2 / 2 for known in range(5) for unknown in range(3)}
    assert set(found.tolist()) <= possible
    # P(1) = P(no OOD at 1) + P(some) P(no ID at 1) = 1/4 + 3/4 * 1/16; four standard errors.
    assert np.mean(found == 1) == pytest.approx(19 / 64, abs=4 * math.sqrt(19 / 64 * 45 / 64 / 4000))
    assert found.mean() == pytest.approx(1 - 1 / 8, abs=4 * found.std() / math.sqrt(4000))


def test_a_million_images_have_the_intervals_of_theory():
    # Standard errors: of the AUROC by DeLong, with normal scores by numerical integration of both sides' shares; of
    # FPR95 by that of the threshold, sqrt(.95 * .05 / n) / density, and of the rate at it.
    num_id, num_ood = 600_000, 400_000
    generator = np.random.default_rng(1)
    id_scores, ood_scores = generator.normal(0, 1, num_id), generator.normal(1, 1, num_ood)
    result = detection_metrics(id_scores, ood_scores, num_bootstrap=1000)
    beaten = norm.cdf(1 - np.sort(id_scores)[:: num_id // 1000]).var(), norm.cdf(np.sort(ood_scores)[::400]).var()
    threshold = norm.ppf(0.95)
    rate, slope = norm.cdf(threshold - 1), norm.pdf(threshold - 1) / norm.pdf(threshold)
    errors = {
        "auroc": math.sqrt(beaten[0] / num_id + beaten[1] / num_ood),
        "fpr95_id_pos": math.sqrt(slope**2 * 0.95 * 0.05 / num_id + rate * (1 - rate) / num_ood),
        # The same with the sides exchanged, by symmetry.
        "fpr95_ood_pos": math.sqrt(slope**2 * 0.95 * 0.05 / num_ood + rate * (1 - rate) / num_id),
    }
    for name, error in errors.items():
        low, high = result[f"{name}_interval"]
        assert low == pytest.approx(result[name] - 1.96 * error, abs=0.25 * error), name
        assert high == pytest.approx(result[name] + 1.96 * error, abs=0.25 * error), name
