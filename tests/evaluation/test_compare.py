"""Two runs on the same images: differences, intervals and p-values against slow resampling and theory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_runs import fake_run, write_run
from hf_oodclip.evaluation.compare import compare_runs

import hf_oodclip
from hf_oodclip.errors import RunError, UnknownNameError
from hf_oodclip.metrics import auroc, detection_metrics

PROGRAM = Path(hf_oodclip.__file__).parents[1] / "evaluation" / "compare.py"


def changed(table: pa.Table, name: str, values: object) -> pa.Table:
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.array(values, table[name].type))


def shifted(table: pa.Table, score: str, role: str, by: float) -> pa.Table:
    values = table[f"score:{score}"].to_numpy() + by * (np.array(table["role"].to_pylist()) == role)
    return changed(table, f"score:{score}", values.astype(np.float32))


def by_name(found):
    return {(each.set, each.metric, each.score): each for each in found}


@pytest.fixture
def runs(tmp_path):
    results, table = fake_run()
    return (
        write_run(tmp_path / "a", results, table),
        write_run(tmp_path / "b", results, shifted(table, "mcm", "near", 0.4)),
    )


def test_figures_are_those_of_the_metrics(runs):
    found = by_name(compare_runs(*runs, num_resamples=20))
    results, table = fake_run()
    frame = [table.to_pandas(), shifted(table, "mcm", "near", 0.4).to_pandas()]
    for score in ("neglabel", "mcm", "energy"):
        for name in ("flowers", "textures"):
            for place, figure in enumerate(("first", "second")):
                values = {each: frame[place][frame[place]["set"] == each][f"score:{score}"] for each in ("id", name)}
                expected = detection_metrics(values["id"].to_numpy(), values[name].to_numpy())
                for metric in ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos"):
                    assert getattr(found[name, metric, score], figure) == expected[metric]
        mean, parts = found["mean of all", "auroc", score], [found[n, "auroc", score] for n in ("flowers", "textures")]
        assert mean.first == pytest.approx(np.mean([each.first for each in parts]))
        assert mean.difference == pytest.approx(np.mean([each.difference for each in parts]))
    for name in ("id", "sketches"):
        expected = next(each["value"] for each in results["accuracy"] if each["set"] == name)
        assert found[name, "accuracy", None].first == found[name, "accuracy", None].second == expected
    assert not any(name == "calibration" for name, _, _ in found)
    assert all(each.difference == each.second - each.first for each in found.values())


def test_interval_is_that_of_the_same_resamples_drawn_one_by_one(runs):
    found = by_name(compare_runs(*runs, "mcm", num_resamples=200, confidence=0.9, seed=5))["flowers", "auroc", "mcm"]
    _, table = fake_run()
    frame, other = table.to_pandas(), shifted(table, "mcm", "near", 0.4).to_pandas()
    names = "id", "flowers"
    sides = [[each[each["set"] == name]["score:mcm"].to_numpy() for name in names] for each in (frame, other)]
    generators = [np.random.default_rng([5, *name.encode()]) for name in names]
    differences = []
    for _ in range(200):
        known, unknown = (g.integers(n, size=n) for g, n in zip(generators, (240, 90), strict=True))
        one, two = (auroc(side[0][known], side[1][unknown]) for side in sides)
        differences.append(two - one)
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.05, 0.95]), abs=1e-12)
    turned = min(sum(d <= 0 for d in differences), sum(d >= 0 for d in differences))
    assert found.p_value == pytest.approx(2 * (turned + 1) / 201)


def test_a_run_and_itself_do_not_differ(runs):
    for each in compare_runs(runs[0], runs[0], num_resamples=50):
        assert (each.difference, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_a_clear_difference_is_significant_and_pairing_makes_it_so(runs):
    found = by_name(compare_runs(*runs, "mcm", num_resamples=1000))["flowers", "auroc", "mcm"]
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 1001)
    # The same two figures from unpaired images have intervals that overlap.
    single = [next(e for e in fake_run()[0]["detection"] if (e["score"], e["set"]) == ("mcm", "flowers"))]
    assert single[0]["auroc_high"] - single[0]["auroc_low"] > 2 * (found.high - found.low)


def test_p_values_of_runs_that_differ_by_chance_alone_are_spread_evenly(tmp_path):
    p_values = []
    for seed in range(120):
        results, table = fake_run(
            scores=["mcm"], sets={"id": ("id", 150), "a": ("near", 150)}, calibrated=False, seed=seed
        )
        noise = np.random.default_rng(10_000 + seed).normal(0, 0.5, (2, table.num_rows))
        folders = [
            write_run(
                tmp_path / f"{seed} {place}",
                results,
                changed(table, "score:mcm", (table["score:mcm"].to_numpy() + each).astype(np.float32)),
            )
            for place, each in enumerate(noise)
        ]
        p_values.append(by_name(compare_runs(*folders, num_resamples=200))["a", "auroc", "mcm"].p_value)
    # Of 120 p-values 12 should be below 0.1 and 60 below 0.5; four standard deviations around that.
    for level in (0.1, 0.5):
        spread = 4 * math.sqrt(120 * level * (1 - level))
        assert abs(sum(p <= level for p in p_values) - 120 * level) < spread


def test_seed_fixes_the_resamples_whatever_other_sets_and_scores_there_are(runs, tmp_path):
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    one, again, other = (by_name(compare_runs(*runs, num_resamples=60, seed=seed)) for seed in (3, 3, 4))
    assert one == again
    assert one["flowers", "auroc", "mcm"].low != other["flowers", "auroc", "mcm"].low
    assert (np.random.get_state()[1] == state).all()
    results, table = fake_run()
    few = [
        write_run(tmp_path / f"few {place}", results, part.filter([n != "textures" for n in part["set"].to_pylist()]))
        for place, part in enumerate((table, shifted(table, "mcm", "near", 0.4)))
    ]
    alone = by_name(compare_runs(*few, "mcm", num_resamples=60, seed=3))
    assert alone["flowers", "auroc", "mcm"] == one["flowers", "auroc", "mcm"]


def test_two_scores_of_one_run(runs):
    found = by_name(compare_runs(runs[0], runs[0], "mcm", "energy", num_resamples=20))
    own = by_name(compare_runs(runs[0], runs[0], num_resamples=20))
    each = found["flowers", "auroc", "mcm"]
    assert (each.score, each.other_score) == ("mcm", "energy")
    assert each.first == own["flowers", "auroc", "mcm"].first
    assert each.second == own["flowers", "auroc", "energy"].first


DAMAGE = {
    "fewer images": "differ in the number of images of set 'id'",
    "other rows": "differ in the row of image 0 of set 'id': 0 and 1000",
    "other files": "differ in the file of image 0 of set 'id': 'id/0.png' and 'elsewhere/0.png'",
    "other labels": "differ in the label of image 0",
    "other source": "differ in the source of set 'id': 'folder:id' and 'another'",
}


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_runs_on_different_images_are_refused(tmp_path, damage):
    results, table = fake_run()
    other_results, other = fake_run()
    if damage == "fewer images":
        other = other.slice(1)
    elif damage == "other rows":
        other = changed(other, "row", other["row"].to_numpy() + 1000)
    elif damage == "other files":
        other = changed(other, "file", [f"elsewhere/{row}.png" for row in other["row"].to_pylist()])
    elif damage == "other labels":
        other = changed(other, "label", 3 - other["label"].to_numpy())
    else:
        table, other = (changed(each, "file", [None] * each.num_rows) for each in (table, other))
        other_results["sets"][0]["source"] = "another"
    folders = write_run(tmp_path / "a", results, table), write_run(tmp_path / "b", other_results, other)
    with pytest.raises(RunError, match=DAMAGE[damage] + ".*Only runs on the same images"):
        compare_runs(*folders, num_resamples=5)


def test_sets_that_only_one_run_has_are_left_out_with_a_word(tmp_path, warned):
    results, table = fake_run()
    part = table.filter([name != "textures" for name in table["set"].to_pylist()])
    folders = write_run(tmp_path / "a", results, table), write_run(tmp_path / "b", results, part)
    found = compare_runs(*folders, num_resamples=5)
    assert {each.set for each in found} == {"id", "sketches", "flowers"}
    assert any("Only one of the runs has textures" in message for message in warned)


def test_other_id_images_than_the_runs_counted_are_told(tmp_path, warned):
    results, table = fake_run()
    filtered = {**results, "id_filter": "correct"}
    folders = write_run(tmp_path / "a", results, table), write_run(tmp_path / "b", filtered, table)
    assert all(each.difference == 0 for each in compare_runs(*folders, num_resamples=5))
    assert any("compared are all images of the ID set" in message for message in warned)


def test_bad_requests(runs, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'energy'"):
        compare_runs(*runs, "enrgy")
    with pytest.raises(RunError, match="Only the second run's score 'mcm' is given"):
        compare_runs(*runs, other_score="mcm")
    for options in ({"num_resamples": 0}, {"confidence": 1.0}, {"confidence": math.nan}, {"seed": -1}):
        with pytest.raises(RunError, match=r"Try 2000, 0\.95 and 0"):
            compare_runs(*runs, **options)
    results, table = fake_run()
    kept = table.drop_columns(["score:neglabel", "score:energy"]).rename_columns({"score:mcm": "score:gen"})
    renamed = write_run(tmp_path / "c", results, kept)
    with pytest.raises(RunError, match="no score in common: neglabel, mcm, energy and gen"):
        compare_runs(runs[0], renamed)
    others = changed(table, "set", [f"other {name}" for name in table["set"].to_pylist()])
    alone = write_run(tmp_path / "d", results, others)
    with pytest.raises(RunError, match="no labelled ID set and no pair"):
        compare_runs(runs[0], alone)


def test_program(runs, tmp_path):
    command = [sys.executable, str(PROGRAM), *map(str, runs), "--resamples", "50", "--score", "mcm"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "c.json")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = compare_runs(*runs, "mcm", num_resamples=50)
    assert json.loads((tmp_path / "c.json").read_text()) == [vars(each) for each in found]
    each = by_name(found)["flowers", "auroc", "mcm"]
    (line,) = [line for line in done.stdout.splitlines() if "flowers" in line and "AUROC" in line]
    for figure in (f"{100 * each.first:.1f}", f"{100 * each.second:.1f}", f"[{100 * each.low:+.1f}", "0.0392"):
        assert figure in line
    failed = subprocess.run([*command[:3], str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: ") and "Traceback" not in failed.stderr
