"""Samples by set and score, and run folders that can or cannot be read."""

from __future__ import annotations

import doctest
import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pytest
from fake_runs import fake_run, write_run
from hf_oodclip.evaluation import sample_table
from hf_oodclip.evaluation.sample_table import SampleTable, check_numbers, detection_columns, read_run

from hf_oodclip.errors import RunError, UnknownNameError


def replaced(table: pa.Table, name: str, place: int, value: object) -> pa.Table:
    column = table[name].to_pylist()
    column[place] = value
    return table.set_column(table.column_names.index(name), name, pa.array(column, table[name].type))


def test_rows_come_by_set_in_the_order_of_the_images_wherever_they_are_in_the_table():
    _, table = fake_run()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(table.num_rows)))
    # As several files come together: more than one chunk.
    shuffled = pa.concat_tables([shuffled.slice(0, 100), shuffled.slice(100)])
    samples = SampleTable(shuffled)
    frame = table.to_pandas()
    for name in ("id", "flowers", "textures", "sketches", "calibration"):
        expected = frame[frame["set"] == name].sort_values("row")
        assert samples.count(name) == len(expected)
        assert samples.of(name, "score:mcm").tolist() == expected["score:mcm"].tolist()
        assert samples.texts(name, "file") == expected["file"].tolist()
        assert samples.texts(name, "file", [3, 0]) == [f"{name}/3.png", f"{name}/0.png"]
    assert samples.roles["sketches"] == "shifted"
    assert samples.id_set == "id"
    assert sorted(samples.ood_sets) == ["flowers", "textures"]
    assert samples.scores == samples.calibrated == ["neglabel", "mcm", "energy"]


@pytest.mark.parametrize(
    ("scores", "main"), [(["energy", "neglabel"], "neglabel"), (["energy", "mcm"], "mcm"), (["gen", "knn"], "gen")]
)
def test_main_score_is_the_one_a_model_decides_with(scores, main):
    assert SampleTable(fake_run(scores=scores)[1]).main_score == main


@pytest.mark.parametrize("full_spectrum", [False, True])
@pytest.mark.parametrize("id_filter", ["all", "correct"])
def test_id_scores_are_those_of_the_images_that_count_as_id(id_filter, full_spectrum):
    _, table = fake_run()
    expected = [
        row["score:mcm"]
        for row in table.to_pylist()
        if row["role"] in (("id", "shifted") if full_spectrum else ("id",))
        and (id_filter == "all" or row["label"] == row["prediction"])
    ]
    assert sorted(SampleTable(table, id_filter, full_spectrum).id_scores("mcm").tolist()) == sorted(expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
@pytest.mark.parametrize("column", ["score:mcm", "p_value:mcm"])
def test_a_score_that_is_no_number_is_named_with_its_image(column, value):
    table = replaced(fake_run()[1], column, 250, value)
    with pytest.raises(RunError, match=rf"{column} is (nan|inf|None) for set 'flowers', row 10, and for 1 images"):
        SampleTable(table)


def test_an_image_that_is_there_twice():
    with pytest.raises(RunError, match="Set 'flowers' has row 3 twice"):
        SampleTable(replaced(fake_run()[1], "row", 250, 3))


def test_a_missing_column_and_unknown_names():
    table = fake_run()[1]
    with pytest.raises(RunError, match="no column 'prediction', only set, role"):
        SampleTable(table.drop_columns(["prediction"]))
    samples = SampleTable(table)
    with pytest.raises(UnknownNameError, match="Did you mean 'flowers'"):
        samples.of("flower", "row")
    with pytest.raises(UnknownNameError, match="Did you mean 'score:mcm'"):
        samples.of("id", "score:mc")


def test_numbers_that_are_none_are_found_wherever_they_are():
    check_numbers({"a": [1, 2.5, None, "nan", {"b": True}]})
    with pytest.raises(RunError, match=r"results\['a'\]\[1\]\['b'\] is nan"):
        check_numbers({"a": [0, {"b": math.nan}]})


def test_means_say_how_many_sets_they_are_of():
    sets = {"id": ("id", 60), "a": ("near", 30), "b": ("far", 30), "c": ("far", 30)}
    results, _ = fake_run(sets=sets, missing=["c"])
    assert detection_columns(results) == [
        ("a", "a"),
        ("b", "b"),
        ("c", "c"),
        ("mean of near", "mean of near"),
        ("mean of far", "mean of far (1 of 2 sets)"),
        ("mean of all", "mean of all (2 of 3 sets)"),
    ]


def test_run_folder_comes_back(tmp_path):
    results, table = fake_run()
    read_results, read_table = read_run(write_run(tmp_path / "run", results, table))
    assert read_results == results
    assert read_table.equals(table)


@pytest.mark.parametrize("damage", ["no folder", "no samples", "half a file", "no parquet", "other", "list", "NaN"])
def test_damaged_run_folders(tmp_path, damage):
    results, table = fake_run()
    folder = write_run(tmp_path / "run", results, table)
    if damage == "no folder":
        shutil.rmtree(folder)
    elif damage == "no samples":
        (folder / "samples.parquet").unlink()
    elif damage == "half a file":
        text = (folder / "results.json").read_text()
        (folder / "results.json").write_text(text[: len(text) // 2])
    elif damage == "no parquet":
        (folder / "samples.parquet").write_bytes(b"PAR1 no more")
    elif damage == "NaN":
        results["accuracy"][0]["value"] = math.nan
        (folder / "results.json").write_text(json.dumps(results))
    else:
        (folder / "results.json").write_text(json.dumps([] if damage == "list" else {"format": "another"}))
    allowed = {"other": "has format 'another'; this version reads", "list": "has format None", "NaN": "is nan"}
    with pytest.raises(RunError, match=allowed.get(damage, "holds no finished run .*Give the output folder of a run")):
        read_run(folder)


def test_docstring_examples_are_true():
    results = doctest.testmod(sample_table)
    assert results.failed == 0 and results.attempted
