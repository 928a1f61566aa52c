"""Calibration: thresholds by hand, p-values by counting, promises by simulation; and where a model keeps it."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hf_oodclip import Calibration, OODCLIPConfig
from hf_oodclip import scores as scores_module
from hf_oodclip.calibration import THRESHOLD_RULES
from hf_oodclip.errors import CalibrationError, UnknownNameError
from hf_oodclip.ood_head import OODHead
from hf_oodclip.scores import Score, ScoreInfo, ScoreInputs, get_score, register_score

RULES = sorted(THRESHOLD_RULES)


def shuffled(values: Any, seed: int = 0) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return tensor[torch.randperm(len(tensor), generator=torch.Generator().manual_seed(seed))]


def ranks(count: int) -> Tensor:
    """Return the scores 1, 2, ..., n in no order: the k-th smallest is k."""
    return shuffled(torch.arange(1, count + 1))


# ---- thresholds by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "target", "conformal", "empirical", "linear"),
    [
        # ceil(21 * .95 = 19.95), ceil(20 * .95 = 19), 1 + 19 * .95
        (20, 0.95, 20, 19, 19.05),
        # ceil(21 * .8 = 16.8), ceil(20 * .8 = 16), 1 + 19 * .8
        (20, 0.8, 17, 16, 16.2),
        # 100 * .95 exactly, ceil(99 * .95 = 94.05), 1 + 98 * .95
        (99, 0.95, 95, 95, 94.1),
        (99, 0.9, 90, 90, 89.2),
        (99, 0.5, 50, 50, 50.0),
        # ceil(1.05), ceil(.99), 1.98
        (99, 0.01, 1, 1, 1.98),
        (20, 0.01, 1, 1, 1.19),
    ],
)
def test_thresholds_by_hand(count: int, target: float, conformal: float, empirical: float, linear: float) -> None:
    expected = {"conformal": conformal, "empirical": empirical, "linear": linear}
    for rule, threshold in expected.items():
        calibration = Calibration.fit(ranks(count), "mcm", target, rule)
        assert calibration.threshold == pytest.approx(threshold, abs=1e-5)
        assert calibration.rule == rule
        assert calibration.num_images == count


def test_rounding_moves_no_rank() -> None:
    # (n + 1) * t and n * t that are whole numbers must not be rounded up by a last bit.
    for count in range(20, 500):
        for hundredths in range(1, 100):
            rank = -(-(count + 1) * hundredths // 100)
            assert THRESHOLD_RULES["conformal"](count, hundredths / 100) == rank
            assert THRESHOLD_RULES["empirical"](count, hundredths / 100) == -(-count * hundredths // 100)


def test_linear_is_numpys_quantile() -> None:
    scores = torch.randn(137, generator=torch.Generator().manual_seed(0))
    for target in (0.5, 0.9, 0.95, 0.99):
        expected = np.quantile(scores.double().numpy(), target, method="linear")
        assert Calibration.fit(scores, "mcm", target, "linear").threshold == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [20, 37, 99, 100, 320])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.95])
def test_empirical_accepts_the_target_share_of_its_own_images_and_no_more_than_needed(
    count: int, target: float
) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    calibration = Calibration.fit(scores, "mcm", target, "empirical")
    accepted = int((~calibration.is_ood(scores)).sum())
    share = Fraction(str(target))
    assert Fraction(accepted, count) >= share
    assert Fraction(accepted - 1, count) < share


def test_defaults_are_conformal_at_95_percent() -> None:
    calibration = Calibration.fit(ranks(199), "mcm")
    assert (calibration.rule, calibration.target_tpr, calibration.confidence) == ("conformal", 0.95, 0.95)
    assert calibration.threshold == 190


def test_the_threshold_itself_is_accepted() -> None:
    calibration = Calibration.fit(ranks(99), "mcm")
    flags = calibration.is_ood(torch.tensor([[94.0, 95.0], [95.001, -1e9]]))
    assert flags.tolist() == [[False, False], [True, False]]
    assert flags.dtype == torch.bool


def test_scores_of_any_shape_dtype_and_graph_are_taken() -> None:
    expected = Calibration.fit(ranks(100), "mcm")
    for scores in (
        ranks(100).reshape(10, 10),
        ranks(100).double(),
        ranks(100).half(),
        ranks(100).requires_grad_(),
    ):
        calibration = Calibration.fit(scores, "mcm")
        assert calibration.threshold == expected.threshold
        assert torch.equal(calibration.ood_scores, torch.arange(1.0, 101.0))
        assert calibration.ood_scores.dtype == torch.float32
        assert not calibration.ood_scores.requires_grad


# ---- p-values ------------------------------------------------------------------------------------------


def test_p_values_by_hand() -> None:
    calibration = Calibration.fit(shuffled([1.0] * 10 + [2.0] * 5 + [3.0] * 4 + [4.0]), "mcm", 0.8)
    scores = torch.tensor([[0.5, 1.0, 1.5, 2.0], [3.0, 3.5, 4.0, 9.0]])
    counts = [[20, 20, 10, 10], [5, 1, 1, 0]]
    p_values = calibration.p_values(scores)
    torch.testing.assert_close(p_values, (1 + torch.tensor(counts, dtype=torch.float64)) / 21)
    assert calibration.p_values(torch.tensor(3.0)).shape == ()
    assert calibration.p_values(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("count", [20, 99, 137])
@pytest.mark.parametrize("levels", [5, 40, 10**6])
def test_p_values_equal_counting(count: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(count)
    reference = torch.randint(levels, (count,), generator=generator).float()
    scores = torch.randint(-1, levels + 1, (200,), generator=generator).float()
    computed = Calibration.fit(reference, "mcm", 0.8).p_values(scores)
    for score, p_value in zip(scores.tolist(), computed.tolist(), strict=True):
        expected = Fraction(1 + sum(value >= score for value in reference.tolist()), count + 1)
        assert p_value == pytest.approx(float(expected), abs=1e-15)


def decisions(calibration: Calibration, scores: Tensor, target: float) -> tuple[list[bool], list[bool]]:
    """Return `is_ood`, and whether the p-value is at most one minus the target, in exact arithmetic."""
    numerators = torch.round(calibration.p_values(scores) * (calibration.num_images + 1)).to(torch.int64).tolist()
    level = 1 - Fraction(str(target))
    small = [Fraction(numerator, calibration.num_images + 1) <= level for numerator in numerators]
    return calibration.is_ood(scores).tolist(), small


@pytest.mark.parametrize("count", [20, 39, 99, 100, 137])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("levels", [4, 30, 10**6])
def test_conformal_decisions_are_small_p_values(count: int, target: float, levels: int) -> None:
    generator = torch.Generator().manual_seed(count)
    reference = torch.randint(levels, (count,), generator=generator) / levels
    fresh = torch.randint(-1, levels + 2, (500,), generator=generator) / levels
    calibration = Calibration.fit(reference, "mcm", target)
    flags, small = decisions(calibration, torch.cat([fresh, reference, torch.tensor([-9.0, 9.0])]), target)
    assert flags == small
    assert True in flags
    assert False in flags


def test_decisions_and_p_values_agree_for_fp64_scores() -> None:
    # The calibration is kept in fp32: what differs from the threshold in fp64 only is equal to it.
    calibration = Calibration.fit(torch.full((99,), 0.1), "mcm")
    scores = torch.tensor([0.0, -1e-10, 1e-10, 0.1], dtype=torch.float64) + torch.tensor(0.1).double()
    flags, small = decisions(calibration, scores, 0.95)
    assert flags == small == [False, False, False, True]


@pytest.mark.parametrize("levels", [3, 20, None])
def test_p_values_are_super_uniform_over_every_choice_of_the_new_image(levels: int | None) -> None:
    # Among n + 1 images each is as likely to be the new one: the chance of p <= a is a count.
    generator = torch.Generator().manual_seed(7)
    images = (
        torch.rand(41, generator=generator) if levels is None else torch.randint(levels, (41,), generator=generator)
    )
    images = images.float()
    p_values = []
    for new in range(41):
        others = torch.cat([images[:new], images[new + 1 :]])
        p_values.append(round(41 * Calibration.fit(others, "mcm", 0.8).p_values(images[new]).item()))
    for numerator in range(1, 42):
        assert sum(value <= numerator for value in p_values) <= numerator
    if levels is None:
        assert sorted(p_values) == list(range(1, 42))


# ---- promises by simulation --------------------------------------------------------------------------------


DISTRIBUTIONS = {"normal": stats.norm(), "heavy-tailed": stats.t(2), "beta": stats.beta(0.5, 4)}
RESAMPLES = 200


def realised_tprs(distribution: Any, count: int, rule: str, target: float) -> tuple[np.ndarray, list[bool]]:
    """Return the true positive rate each of many calibrations really has, and whether its interval holds it."""
    draws = distribution.rvs((RESAMPLES, count), random_state=np.random.default_rng(count))
    tprs, held = [], []
    for scores in draws:
        calibration = Calibration.fit(torch.from_numpy(scores), "mcm", target, rule)
        tprs.append(float(distribution.cdf(calibration.threshold)))
        low, high = calibration.tpr_interval
        held.append(low <= tprs[-1] <= high)
    return np.array(tprs), held


@pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=list(DISTRIBUTIONS))
@pytest.mark.parametrize("count", [100, 320])
@pytest.mark.parametrize("rule", RULES)
def test_the_interval_holds_the_true_positive_rate(distribution: Any, count: int, rule: str) -> None:
    tprs, held = realised_tprs(distribution, count, rule, 0.95)
    # 95 % are promised; 200 draws put the share within 0.90 and 0.99 but for one case in a thousand.
    assert 0.90 <= np.mean(held) <= 0.99
    if rule == "conformal":
        # On average at least the target, and no more than 1 / (n + 1) above it.
        noise = 3 * tprs.std() / math.sqrt(RESAMPLES)
        assert 0.95 - noise <= tprs.mean() <= 0.95 + 1 / (count + 1) + noise


def test_a_higher_confidence_widens_the_interval() -> None:
    intervals = [Calibration.fit(ranks(200), "mcm", confidence=level).tpr_interval for level in (0.5, 0.95, 0.999)]
    for (narrow_low, narrow_high), (wide_low, wide_high) in itertools.pairwise(intervals):
        assert 0 < wide_low < narrow_low < narrow_high < wide_high < 1


def test_the_interval_by_hand() -> None:
    # The rate of the largest of n scores is at least x with probability 1 - x^n.
    low, high = Calibration.fit(ranks(20), "mcm", 0.95, confidence=0.9).tpr_interval
    assert low == pytest.approx(0.05 ** (1 / 20), abs=1e-9)
    assert high == pytest.approx(0.95 ** (1 / 20), abs=1e-9)


def test_ties_only_make_the_rate_higher() -> None:
    # Five levels, equally likely: accepting up to level k has the rate (k + 1) / 5.
    generator = torch.Generator().manual_seed(0)
    fits = [Calibration.fit(torch.randint(5, (100,), generator=generator), "mcm", 0.7) for _ in range(RESAMPLES)]
    tprs = [(calibration.threshold + 1) / 5 for calibration in fits]
    assert np.mean(tprs) >= 0.7
    # Each side of the interval is meant to fail in 5 of 200.
    assert sum(tpr < calibration.tpr_interval[0] for tpr, calibration in zip(tprs, fits, strict=True)) <= 12


# ---- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 19])
def test_fewer_than_20_images_are_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match=f"at least 20 ID images and was given {count}"):
        Calibration.fit(ranks(count), "mcm", 0.5)


@pytest.mark.parametrize(("count", "told"), [(20, True), (99, True), (100, False), (320, False)])
def test_fewer_than_100_images_warn(count: int, told: bool, warned: list[str]) -> None:
    Calibration.fit(ranks(count), "mcm")
    assert len(warned) == told
    assert all(f"Only {count} ID images" in message and "100" in message for message in warned)
    Calibration.fit(ranks(count), "msp", warn_if_few=False)
    assert len(warned) == told


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    scores = ranks(100)
    scores[17] = bad
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        Calibration.fit(scores, "mcm")


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 95, math.nan])
@pytest.mark.parametrize("name", ["target_tpr", "confidence"])
def test_targets_outside_0_and_1_are_refused(name: str, bad: float) -> None:
    with pytest.raises(CalibrationError, match=f"between 0 and 1.*{bad}"):
        Calibration.fit(ranks(100), "mcm", **{name: bad})


@pytest.mark.parametrize(
    ("count", "target", "needed"), [(98, 0.99, 99), (20, 0.96, 24), (900, 0.999, 999), (20, 0.97, 33)]
)
def test_a_target_too_high_for_so_few_images_names_how_many_it_needs(count: int, target: float, needed: int) -> None:
    with pytest.raises(CalibrationError, match=rf"at least {needed} ID images and {count} were given"):
        Calibration.fit(ranks(count), "mcm", target)
    with pytest.raises(CalibrationError, match=f"at least {needed} ID images"):
        Calibration.fit(ranks(needed - 1), "mcm", target)
    assert Calibration.fit(ranks(needed), "mcm", target).threshold == needed
    # The other rules promise less and take it.
    assert Calibration.fit(ranks(count), "mcm", target, "empirical").threshold <= count


def test_an_unknown_rule_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'conformel'.*Did you mean 'conformal'"):
        Calibration.fit(ranks(100), "mcm", rule="conformel")


def test_a_calibration_decides_for_its_own_score_only() -> None:
    calibration = Calibration.fit(ranks(100), "mcm(temperature=0.5)")
    calibration.check_score("mcm(temperature=0.5)")
    for other in ("mcm", "msp", "mcm(temperature=0.25)"):
        with pytest.raises(CalibrationError) as caught:
            calibration.check_score(other)
        assert repr(other) in str(caught.value)
        assert "'mcm(temperature=0.5)'" in str(caught.value)


# ---- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_calibration_survives_json(rule: str) -> None:
    calibration = Calibration.fit(torch.rand(137, generator=torch.Generator().manual_seed(0)), "msp", 0.9, rule, 0.8)
    record = calibration.to_dict()
    assert record["num_images"] == 137
    restored = Calibration.from_dict(json.loads(json.dumps(record)), calibration.ood_scores)
    assert restored.to_dict() == record
    for name in ("score", "threshold", "target_tpr", "rule", "tpr_interval", "confidence", "num_images"):
        assert getattr(restored, name) == getattr(calibration, name)
    fresh = torch.rand(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(restored.p_values(fresh), calibration.p_values(fresh))
    assert torch.equal(restored.is_ood(fresh), calibration.is_ood(fresh))
    # The threshold is one of the fp32 scores, and stays it.
    if rule != "linear":
        assert restored.threshold in calibration.ood_scores.tolist()


# ---- OODHead --------------------------------------------------------------------------------------------------


@dataclass
class ToyState(Score):
    """Distance to a fitted mean image."""

    power: float = 2.0
    mean_embeds: Tensor | None = field(default=None, init=False, compare=False)

    name: ClassVar[str] = "toy_state"
    needs: ClassVar[tuple[str, ...]] = ("image_embeds",)
    requires_fit: ClassVar[bool] = True
    info: ClassVar[ScoreInfo] = ScoreInfo("Toy", "Toy paper", "Nowhere", 2025, "https://example.org")

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.image_embeds is not None
        assert self.mean_embeds is not None
        return (inputs.image_embeds - self.mean_embeds).abs().pow(self.power).sum(dim=-1)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.mean_embeds is None else {"mean_embeds": self.mean_embeds}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean_embeds = state.get("mean_embeds")


@pytest.fixture
def fitted() -> Iterator[Score]:
    """A score with a state, registered for this test."""
    before = dict(scores_module._registered)
    register_score(ToyState)
    score = get_score("toy_state", power=1.0)
    score.load_state_dict({"mean_embeds": torch.tensor([1.0, 2.0, 1 / 3])})
    yield score
    scores_module._registered.clear()
    scores_module._registered.update(before)


def make_head(**fields: Any) -> OODHead:
    return OODHead(OODCLIPConfig(id2label={0: "cat", 1: "dog"}, **fields))


def restored(head: OODHead) -> OODHead:
    """Return what a checkpoint gives back: the config through JSON, then the tensors."""
    config = OODCLIPConfig.from_dict(json.loads(head.config.to_json_string(use_diff=False)))
    fresh = OODHead(config)
    fresh.load_state_dict(head.state_dict())
    return fresh


def test_the_default_score_follows_labels_and_negatives() -> None:
    assert make_head().score.key == "mcm"
    assert make_head(num_negatives=3).score.key == "neglabel"
    assert OODHead(OODCLIPConfig(id2label={0: "cat"})).score.key == "max_logit"
    assert OODHead(OODCLIPConfig(id2label={0: "cat"}, num_negatives=3)).score.key == "neglabel"


def test_a_chosen_score_is_kept_with_its_options() -> None:
    head = make_head(num_negatives=3)
    head.set_score("msp")
    assert head.score == get_score("msp")
    head.set_score("gen", gamma=0.5, top_m=7)
    assert head.score == get_score("gen", gamma=0.5, top_m=7)
    assert restored(head).score == head.score
    assert list(head.state_dict()) == []
    head.set_score(get_score("mcm", temperature=0.5))
    assert head.score.key == "mcm(temperature=0.5)"
    head.set_score(None)
    assert head.score.key == "neglabel"
    assert head.config.score_record is None


def test_a_fitted_score_keeps_its_state_as_fp32_buffers(fitted: Score) -> None:
    head = make_head()
    head.set_score(fitted)
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "score_state_mean_embeds": (3,)
    }
    assert head.config.score_record["state"] == {"mean_embeds": [3]}
    for other in (head, restored(head), restored(head).half(), restored(head).to(torch.bfloat16)):
        assert other.score.key == "toy_state(power=1.0)"
        assert torch.equal(other.score.state_dict()["mean_embeds"], torch.tensor([1.0, 2.0, 1 / 3]))
    inputs = ScoreInputs(torch.zeros(2, 1), image_embeds=torch.eye(3)[:2])
    assert torch.equal(restored(head).score(inputs), fitted(inputs))


def test_the_kept_state_is_a_copy(fitted: Score) -> None:
    head = make_head()
    head.set_score(fitted)
    fitted.state_dict()["mean_embeds"].zero_()
    assert torch.equal(head.score.state_dict()["mean_embeds"], torch.tensor([1.0, 2.0, 1 / 3]))


def test_another_score_drops_the_state_of_the_former(fitted: Score) -> None:
    head = make_head()
    head.set_score(fitted)
    head.set_score("msp")
    assert list(head.state_dict()) == []
    assert head.score.key == "msp"
    larger = get_score("toy_state")
    larger.load_state_dict({"mean_embeds": torch.ones(5)})
    head.set_score(fitted)
    head.set_score(larger)
    assert head.config.score_record["state"] == {"mean_embeds": [5]}
    assert torch.equal(restored(head).score.state_dict()["mean_embeds"], torch.ones(5))
    head.set_score(None)
    assert list(head.state_dict()) == []


@pytest.mark.parametrize(("name", "options"), [("no such score", {}), ("mcm", {"gamma": 1.0})])
def test_a_refused_score_leaves_the_former_one(name: str, options: dict[str, float], fitted: Score) -> None:
    head = make_head()
    head.set_score(fitted)
    with pytest.raises(UnknownNameError):
        head.set_score(name, **options)
    assert head.score.key == "toy_state(power=1.0)"
    assert torch.equal(head.score.state_dict()["mean_embeds"], torch.tensor([1.0, 2.0, 1 / 3]))


def fit(score: str, count: int, seed: int = 0) -> Calibration:
    return Calibration.fit(torch.rand(count, generator=torch.Generator().manual_seed(seed)), score)


def assert_same(found: Calibration | None, expected: Calibration) -> None:
    assert found is not None
    assert found.to_dict() == expected.to_dict()
    assert torch.equal(found.ood_scores, expected.ood_scores)


def test_calibrations_are_kept_one_a_score() -> None:
    head = make_head()
    assert head.calibrations == []
    first, second = fit("mcm", 120), fit("neglabel", 200)
    head.add_calibration(first)
    head.add_calibration(second)
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "calibration_scores_0": (120,),
        "calibration_scores_1": (200,),
    }
    for other in (head, restored(head), restored(head).half(), restored(head).to(torch.bfloat16)):
        assert len(other.calibrations) == 2
        assert_same(other.calibration_for(get_score("mcm")), first)
        assert_same(other.calibration_for(get_score("neglabel")), second)
        assert other.calibration_for(get_score("msp")) is None


def test_a_new_calibration_replaces_that_of_its_score_only() -> None:
    head = make_head()
    first, second, third = fit("mcm", 120), fit("neglabel", 200), fit("mcm", 150, seed=1)
    for calibration in (first, second, third):
        head.add_calibration(calibration)
    assert len(head.calibrations) == 2
    assert sorted(len(tensor) for tensor in head.state_dict().values()) == [150, 200]
    assert_same(restored(head).calibration_for(get_score("mcm")), third)
    assert_same(restored(head).calibration_for(get_score("neglabel")), second)


def test_calibrations_can_be_dropped() -> None:
    head = make_head()
    head.add_calibration(fit("mcm", 120))
    head.add_calibration(fit("msp", 130))
    head.set_calibrations([])
    assert head.calibrations == []
    assert head.config.calibrations == []
    assert list(head.state_dict()) == []
    assert head.calibration_for(get_score("mcm")) is None
    replacement = fit("msp", 140)
    head.set_calibrations([replacement])
    assert list(head.state_dict()) == ["calibration_scores_0"]
    assert_same(head.calibration_for(get_score("msp")), replacement)


def test_calibration_for_tells_options_apart() -> None:
    head = make_head()
    warm, cold = fit("mcm(temperature=0.5)", 120), fit("mcm", 130)
    head.add_calibration(warm)
    assert head.calibration_for(get_score("mcm")) is None
    head.add_calibration(cold)
    assert_same(head.calibration_for(get_score("mcm", temperature=0.5)), warm)
    assert_same(head.calibration_for(get_score("mcm", temperature=1.0)), cold)
    assert head.calibration_for(get_score("mcm", temperature=0.25)) is None


def test_calibration_scores_are_copies() -> None:
    head, calibration = make_head(), fit("mcm", 120)
    before = calibration.ood_scores.clone()
    head.add_calibration(calibration)
    calibration.ood_scores.zero_()
    assert torch.equal(head.calibrations[0].ood_scores, before)


def test_calibrations_decide_alike_in_an_fp64_model() -> None:
    head, calibration = make_head(), fit("mcm", 120)
    head.add_calibration(calibration)
    fresh = torch.cat([torch.rand(50), calibration.ood_scores])
    expected = calibration.p_values(fresh), calibration.is_ood(fresh)
    (wide,) = head.double().calibrations
    assert torch.equal(wide.p_values(fresh), expected[0])
    assert torch.equal(wide.is_ood(fresh), expected[1])


def test_two_heads_of_one_config_class_share_nothing() -> None:
    first, second = make_head(), make_head()
    first.add_calibration(fit("mcm", 120))
    first.set_score("msp")
    assert second.calibrations == []
    assert second.score.key == "mcm"
