"""Run folders of which one value is wrong: refused with its place, before a report or a comparison is made of them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_runs import fake_run, write_run
from hf_oodclip.evaluation.compare import compare_runs
from hf_oodclip.evaluation.report import write_report
from hf_oodclip.evaluation.run_checks import check_results, check_samples, check_together
from hf_oodclip.evaluation.sample_table import SampleTable, read_run

from hf_oodclip.errors import RunError

NAN, INFINITY = math.nan, math.inf
GONE = object()
FLOWERS = 240  # the first row of the second set
# Where in the results, what stands there instead, what of it is said.
RESULTS: list[tuple[tuple[Any, ...], Any, str]] = [
    *[((key,), GONE, rf"results has no '{key}'") for key in ("benchmark", "title", "model", "labels", "sets")],
    *[((key,), GONE, rf"results has no '{key}'") for key in ("accuracy", "detection", "calibration", "published")],
    *[((key,), 3, rf"results\['{key}'\] must be a text, got 3") for key in ("benchmark", "title", "model")],
    *[((key,), None, rf"'{key}'\] must be a list, got None") for key in ("labels", "sets", "accuracy", "detection")],
    *[((key,), {}, rf"'{key}'\] must be a list") for key in ("calibration", "published")],
    (("labels", 1), 7, r"results\['labels'\]\[1\] must be a text, got 7"),
    (("labels",), "cat", "must be a list"),
    (("labels",), ["cat"], "holds 3, but there are 1 labels"),
    (("labels",), [], "holds 3, but there are 0 labels"),
    (("sets", 0), "id", r"results\['sets'\]\[0\] must be a mapping"),
    (("sets", 0, "name"), GONE, r"results\['sets'\]\[0\] has no 'name'"),
    (("sets", 0, "name"), None, "must be a text"),
    (("sets", 1, "name"), "id", "hold the set 'id' twice"),
    (("sets", 1, "name"), "fruit", "'fruit' is ok in the results but has no samples"),
    (("sets", 1, "role"), "ood", "must be one of id, near, far, shifted, calibration, got 'ood'"),
    (("sets", 1, "role"), ["near"], "must be one of id"),
    (("sets", 1, "status"), "fine", "must be one of ok, missing, failed"),
    (("sets", 1, "status"), "missing", "'flowers' is missing in the results, with 90 samples"),
    (("sets", 1, "count"), 91, "'flowers' has 91 images, but 90 samples"),
    (("sets",), [], "the samples have the set 'id', which the results do not name"),
    (("accuracy", 0, "value"), 1.5, r"\['accuracy'\]\[0\]\['value'\] must be a share from 0 to 1, got 1.5"),
    (("accuracy", 0, "value"), -0.1, "must be a share"),
    (("accuracy", 0, "value"), "0.9", "must be a share"),
    (("accuracy", 0, "value"), True, "must be a share"),
    (("accuracy", 0, "value"), None, "must be a share"),
    (("accuracy", 0, "value"), NAN, "is nan"),
    (("accuracy", 0, "count"), -1, "must be a count"),
    (("accuracy", 0, "count"), 2.5, "must be a count"),
    (("accuracy", 0, "set"), GONE, "has no 'set'"),
    *[
        (("detection", 2, metric), value, rf"\['detection'\]\[2\]\['{metric}'\] ")
        for metric in ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos")
        for value in (98.5, INFINITY, "high")
    ],
    (("detection", 2, "auroc_low"), NAN, r"\['auroc_low'\] is nan"),
    (("detection", 2, "score"), 3, "must be a text"),
    (("detection", 2, "role"), "odd", "must be one of"),
    (("detection", 2), None, "must be a mapping"),
    (("calibration", 0, "threshold"), "low", "must be a number"),
    (("calibration", 0, "threshold"), -INFINITY, "is -inf"),
    (("calibration", 0, "target_tpr"), 95, "must be a share"),
    (("calibration", 0, "tpr_interval"), 0.9, "must be a list"),
    (("calibration", 0, "tpr_interval", 0), 2, "must be a share"),
    (("calibration", 0, "accepted"), [], "must be a mapping"),
    (("published", 0, "published"), None, "must be a number"),
    (("published", 0, "ours"), "-", "must be a number or null"),
    (("published", 0, "metric"), "f1", "must be one of auroc"),
    (("published", 0, "source"), GONE, "has no 'source'"),
]


@pytest.fixture(scope="module")
def whole():
    return fake_run()


@pytest.fixture
def run(whole):
    """Results to change, and the samples that belong to them."""
    return copy.deepcopy(whole[0]), whole[1]


def with_value(content: Any, place: tuple[Any, ...], value: Any) -> None:
    *path, last = place
    for key in path:
        content = content[key]
    if value is GONE:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"), RESULTS, ids=[f"{place}={value!r:.9}" for place, value, _ in RESULTS]
)
def test_results(place, value, message, run, tmp_path):
    results, table = run
    with_value(results, place, value)
    with pytest.raises(RunError, match=f"(?i){message}") as caught:
        write_report(tmp_path / "report", results, table)
    assert not (tmp_path / "report").exists() and len(str(caught.value)) < 400
    if "samples" in message or "holds" in message:
        return
    write_run(tmp_path / "run", results, table)
    with pytest.raises(RunError, match=f"(?i){message}"):
        read_run(tmp_path / "run")


def cell(name: str, value: Any, row: int = FLOWERS + 10) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        content = table[name].to_pylist()
        content[row] = value
        return table.set_column(table.column_names.index(name), name, pa.array(content, table[name].type))

    return change


def column(name: str, make: Callable[[list[Any]], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.column_names.index(name), name, pa.array(make(table[name].to_pylist()))
    )


COLUMNS = ("set", "role", "row", "file", "label", "prediction", "confidence", "nearest_negative")
SAMPLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    **{f"no {name}": (lambda table, name=name: table.drop_columns([name]), f"no column '{name}'") for name in COLUMNS},
    **{
        f"{name} of mappings": (column(name, lambda values: [{"a": 1}] * len(values)), f"'{name}' .* must hold")
        for name in (*COLUMNS, "score:mcm", "p_value:mcm")
    },
    **{
        f"{name} as texts": (
            column(name, lambda values: [str(value) for value in values]),
            f"'{name}' .* numbers, got",
        )
        for name in ("row", "label", "prediction", "confidence", "score:mcm", "p_value:mcm")
    },
    **{
        f"{name} null": (cell(name, None), rf"'{name}' of the samples is null in row 250")
        for name in ("set", "role", "row", "label", "prediction")
    },
    **{
        f"{name} {value}": (cell(name, value), rf"{name} is {value} for set 'flowers', row 10, and for 1 images")
        for name in ("score:mcm", "p_value:mcm", "score:energy")
        for value in (NAN, INFINITY, -INFINITY, None)
    },
    "all scores NaN": (column("score:mcm", lambda values: [NAN] * len(values)), "for 660 images in all"),
    "all scores null": (column("score:mcm", lambda values: [None] * len(values)), "must hold numbers, got null"),
    "a row twice": (cell("row", 3), "'flowers' has row 3 twice"),
    "an image twice": (lambda table: pa.concat_tables([table, table.slice(5, 1)]), "'id' has row 5 twice"),
    "every image twice": (lambda table: pa.concat_tables([table, table]), "row 0 twice"),
    "a row below 0": (cell("row", -1), "'row' .* 0 or more, got -1"),
    "a label below -1": (cell("label", -2), "'label' .* -1 or more, got -2"),
    "a prediction below 0": (cell("prediction", -1), "'prediction' .* 0 or more, got -1"),
    "a confidence above 1": (cell("confidence", 1.5), "'confidence' .* 0 to 1, got 1.5"),
    "a confidence in percent": (column("confidence", lambda values: [97.0] * len(values)), "0 to 1, got 97.0"),
    "a confidence that is none": (cell("confidence", NAN), "0 to 1, got nan"),
    "a confidence missing": (cell("confidence", None), "0 to 1, got nan"),
    "a p-value above 1": (cell("p_value:mcm", 2.0), "'p_value:mcm' .* 0 to 1, got 2.0"),
    "a p-value below 0": (cell("p_value:mcm", -0.5), "0 to 1, got -0.5"),
    "an unknown role": (cell("role", "ood"), "the role 'ood'; there are id, near"),
    "a set of two roles": (cell("role", "far"), "'flowers' of the samples has several roles"),
    "a column twice": (lambda table: table.append_column("row", table["row"]), "two columns 'row'"),
}
# Each by itself is sound, but not with the results.
TOGETHER: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a label too large": (cell("label", 4, 0), "'label' of the samples holds 4, but there are 4 labels"),
    "a prediction too large": (cell("prediction", 9), "'prediction' of the samples holds 9"),
    "an image less": (lambda table: table.slice(1), "'id' has 240 images, but 239 samples"),
    "a set less": (lambda table: table.slice(240), "'id' is ok in the results but has no samples"),
    "no images": (lambda table: table.slice(0, 0), "has no samples; the samples have none"),
    "another set": (
        lambda table: pa.concat_tables(
            [table, column("set", lambda values: ["new"] * len(values))(table.slice(0, 5))]
        ),
        "set 'new', which the results do not name",
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, run, tmp_path):
    results, table = run
    change, message = SAMPLES[name]
    for each in results["sets"]:
        each["count"] = None  # so that nothing else is wrong
    changed = change(table)
    with pytest.raises(RunError, match=message):
        SampleTable(changed)
    with pytest.raises(RunError, match=message):
        write_report(
            tmp_path / "report", {**results, "sets": [{**each, "count": None} for each in results["sets"]]}, changed
        )
    assert not (tmp_path / "report").exists()
    try:
        write_run(tmp_path / "run", results, changed)
    except (pa.ArrowException, ValueError):  # not even parquet can hold it
        return
    with pytest.raises(RunError, match=f"{message}|holds no finished run"):
        compare_runs(tmp_path / "run", tmp_path / "run")


@pytest.mark.parametrize("name", TOGETHER)
def test_results_and_samples_that_do_not_belong_together(name, run, tmp_path):
    results, table = run
    change, message = TOGETHER[name]
    with pytest.raises(RunError, match=message):
        write_report(tmp_path / "report", results, change(table))
    assert not (tmp_path / "report").exists()


def test_samples_that_are_not_the_runs_are_told_by_their_checksum(run, tmp_path):
    results, table = run
    folder = write_run(tmp_path / "run", results, table)
    read_run(folder)
    other = write_run(tmp_path / "other", *fake_run(seed=1))
    (folder / "samples.parquet").write_bytes((other / "samples.parquet").read_bytes())
    with pytest.raises(RunError, match=r"run/samples.parquet is not the file these results were made with"):
        read_run(folder)
    # Of an earlier version, without: they are taken as they are.
    for checksums in (GONE, None, [], {}):
        content = json.loads((folder / "results.json").read_text())
        with_value(content, ("checksums",), checksums) if checksums is not GONE else content.pop("checksums")
        (folder / "results.json").write_text(json.dumps(content))
        assert read_run(folder)[1].num_rows == table.num_rows


@pytest.mark.parametrize("text", ["", "null", "3", '"a"', "[]", "{}", "{", "[" * 100_000, "\ufeff{}", "NaN"])
def test_files_of_results_that_are_none(text, run, tmp_path):
    folder = write_run(tmp_path / "run", *run)
    (folder / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"holds no finished run|has format None"):
        read_run(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 1000, b'{"a": 1}', None])
def test_files_of_samples_that_are_none(content, run, tmp_path):
    folder = write_run(tmp_path / "run", *run)
    path: Path = folder / "samples.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match="holds no finished run"):
        read_run(folder)


@pytest.mark.parametrize("negatives", [None, ("gravel", "fog")])
@pytest.mark.parametrize("calibrated", [True, False])
def test_what_is_right_passes(negatives, calibrated):
    results, table = fake_run(negatives=negatives, calibrated=calibrated, missing=["textures"])
    check_results(results)
    check_samples(table)
    check_together(results, table)
    # As a writer of many rows may keep texts.
    coded = table.set_column(0, "set", table["set"].dictionary_encode())
    check_samples(coded)
    check_together(results, coded)
    nulls = table.set_column(table.column_names.index("file"), "file", pa.nulls(table.num_rows))
    check_samples(nulls)
