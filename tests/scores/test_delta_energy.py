"""Delta-energy: `-(E1 - E0)`, the energy lost when the largest cosines are cropped."""

import math

import mpmath
import pytest
import torch
from slow_reference import LABEL_COUNTS, check_against, fp64_scores, log_sum_exp, random_cosines, value_of

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score


def top_indices(cosines: list[float], count: int) -> list[int]:
    """Return the positions of the largest cosines; at least one label stays uncropped where there are two."""
    count = max(1, min(count, len(cosines) - 1))
    return sorted(range(len(cosines)), key=lambda index: -cosines[index])[:count]


def energy_gap(cosines: list[float], cropped: list[int], temperature: float, low: float) -> float:
    """Return `E1 - E0` of one image."""
    kept = [low if index in cropped else cosine for index, cosine in enumerate(cosines)]
    before = -log_sum_exp([cosine / temperature for cosine in cosines])
    return -log_sum_exp([cosine / temperature for cosine in kept]) - before


def slow_delta_energy(
    cosines: list[float], temperature: float, top_c: int = 1, low: float = 0.0, joint: bool = True
) -> float:
    """Return the score of one image from its two energies."""
    top = top_indices(cosines, top_c)
    crops = [top] if joint else [[index] for index in top]
    return -math.fsum(energy_gap(cosines, crop, temperature, low) for crop in crops) / len(crops)


def test_hand_values() -> None:
    assert value_of(get_score("delta_energy", temperature=1.0), [0.5]) == pytest.approx(-0.5, abs=1e-14)
    # Odds 3 and 1; the 3 becomes exp(0) = 1: log 4 - log 2.
    cosines = [math.log(3.0), 0.0]
    assert value_of(get_score("delta_energy", temperature=1.0), cosines) == pytest.approx(-math.log(2), abs=1e-14)
    # Odds 6, 3, 1 with the top two cropped to odds of 2: log 10 - log 5.
    cosines, low = [math.log(6.0), math.log(3.0), 0.0], math.log(2.0)
    both = get_score("delta_energy", temperature=1.0, top_c=2, low_similarity=low)
    assert value_of(both, cosines) == pytest.approx(-math.log(10 / 5), abs=1e-14)
    # One at a time: 10 -> 6 and 10 -> 9, averaged.
    each = get_score("delta_energy", temperature=1.0, top_c=2, low_similarity=low, joint=False)
    expected = -(math.log(10 / 6) + math.log(10 / 9)) / 2
    assert value_of(each, cosines) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("num_labels", LABEL_COUNTS)
@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
@pytest.mark.parametrize(
    ("top_c", "low", "joint"), [(1, 0.0, True), (3, 0.0, True), (3, 0.05, False), (2, -0.2, True)]
)
def test_equals_the_slow_reference(num_labels: int, temperature: float, top_c: int, low: float, joint: bool) -> None:
    def reference(cosines: list[float]) -> float:
        return slow_delta_energy(cosines, temperature, top_c, low, joint)

    score = get_score("delta_energy", temperature=temperature, top_c=top_c, low_similarity=low, joint=joint)
    # A difference of two energies near 40, each with a rounding step of 4e-6 in fp32.
    check_against(score, reference, num_labels, fp32_tolerance=5e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("num_labels", [2, 7, 400])
@pytest.mark.parametrize(("top_c", "low"), [(1, 0.0), (2, 0.0), (3, 0.05)])
def test_both_identities(temperature: float, num_labels: int, top_c: int, low: float) -> None:
    cosines = random_cosines(16, num_labels).double()
    score = get_score("delta_energy", temperature=temperature, top_c=top_c, low_similarity=low)
    computed = fp64_scores(score, cosines).tolist()
    for row, value in zip(cosines.tolist(), computed, strict=True):
        top = top_indices(row, top_c)
        with mpmath.workdps(50):
            beta = 1 / mpmath.mpf(temperature)
            odds = [mpmath.exp(beta * cosine) for cosine in row]
            total = mpmath.fsum(odds)
            probability = [value / total for value in odds]
            low_odds = mpmath.exp(beta * low)
            mass = mpmath.fsum(probability[index] for index in top)
            first = -mpmath.log(1 - mass + len(top) * low_odds / total)
            second = -mpmath.log1p(
                -mpmath.fsum(probability[index] * (1 - mpmath.exp(-beta * (row[index] - low))) for index in top)
            )
        assert -value == pytest.approx(float(first), rel=1e-12, abs=1e-12)
        assert -value == pytest.approx(float(second), rel=1e-12, abs=1e-12)


def test_energy_is_lost_exactly_when_the_cropped_cosines_lie_above_the_low_one() -> None:
    cosines = random_cosines(64, 5, high=0.3).double()
    for low in (0.0, 0.2, 0.25):
        lost = -fp64_scores(get_score("delta_energy", low_similarity=low), cosines)
        above = cosines.amax(1) > low
        assert torch.equal(lost > 0, above)
        assert torch.equal(lost < 0, ~above)
    # Half of the images fall on either side of the last threshold, or the test says nothing.
    assert 5 < above.sum() < 59


def test_ranks_as_msp_at_clips_own_temperature() -> None:
    cosines = random_cosines(200, 20).double()
    by_msp = fp64_scores(get_score("msp"), cosines).argsort()
    assert torch.equal(fp64_scores(get_score("delta_energy"), cosines).argsort(), by_msp)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.05, "top_c": 3}, {"top_c": 2}])
def test_ranks_otherwise_with_more_crops_or_a_larger_temperature(options: dict[str, float]) -> None:
    cosines = random_cosines(200, 20).double()
    by_msp = fp64_scores(get_score("msp"), cosines).argsort()
    assert not torch.equal(fp64_scores(get_score("delta_energy", **options), cosines).argsort(), by_msp)


@pytest.mark.parametrize("joint", [True, False])
def test_at_least_one_label_stays_uncropped(joint: bool) -> None:
    cosines = random_cosines(16, 5)
    all_but_one = fp64_scores(get_score("delta_energy", top_c=4, joint=joint), cosines)
    for top_c in (5, 6, 1000):
        assert torch.equal(fp64_scores(get_score("delta_energy", top_c=top_c, joint=joint), cosines), all_but_one)
    assert not torch.allclose(fp64_scores(get_score("delta_energy", top_c=3, joint=joint), cosines), all_but_one)


@pytest.mark.parametrize("top_c", [1, 4])
def test_one_label_gives_its_scaled_cosine(top_c: int) -> None:
    score = get_score("delta_energy", temperature=0.02, top_c=top_c, low_similarity=0.1)
    scores = score(ScoreInputs(torch.tensor([[0.3], [0.1], [-0.1]])))
    torch.testing.assert_close(scores, torch.tensor([-10.0, 0.0, 10.0]), rtol=0, atol=1e-5)


def test_not_joint_is_the_mean_of_single_crops() -> None:
    cosines = random_cosines(16, 7).double()
    score = get_score("delta_energy", temperature=0.5, top_c=3, joint=False)
    gaps = []
    for row in cosines.tolist():
        gaps.append(-sum(energy_gap(row, [index], 0.5, 0.0) for index in top_indices(row, 3)) / 3)
    torch.testing.assert_close(fp64_scores(score, cosines), torch.tensor(gaps, dtype=torch.float64))
    joint = fp64_scores(get_score("delta_energy", temperature=0.5, top_c=3), cosines)
    assert (joint - fp64_scores(score, cosines)).abs().min() > 1e-3


def test_a_constant_on_cosines_and_low_similarity_changes_nothing() -> None:
    cosines = random_cosines(16, 7).double()
    moved = fp64_scores(get_score("delta_energy", low_similarity=0.2), cosines + 0.2)
    torch.testing.assert_close(moved, fp64_scores(get_score("delta_energy"), cosines))


def test_ties_at_the_last_place_do_not_matter() -> None:
    score = get_score("delta_energy", temperature=0.1, top_c=2)
    values = [value_of(score, cosines) for cosines in ([0.3, 0.2, 0.2, 0.1], [0.2, 0.1, 0.3, 0.2])]
    assert values[0] == pytest.approx(values[1], abs=1e-13)


def test_temperature_none_is_the_models_own_scale() -> None:
    cosines = random_cosines(16, 7)
    own = fp64_scores(get_score("delta_energy", temperature=None), cosines, logit_scale=20.0)
    torch.testing.assert_close(own, fp64_scores(get_score("delta_energy", temperature=0.05), cosines))
    assert (own - fp64_scores(get_score("delta_energy"), cosines)).abs().max() > 0.01


def test_no_crops_are_refused() -> None:
    with pytest.raises(ScoreInputError, match="top_c must be at least 1"):
        get_score("delta_energy", top_c=0)
