"""Hundreds of datasets, each wrong in one way: a clear message or a reported skip, and the other sets as ever."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hf_oodclip.evaluation.benchmark import SetSpec, benchmark_from_sources
from hf_oodclip.evaluation.runner import evaluate_benchmark
from malformed_files import parquet_cases, saved_cases
from malformed_folders import folder_cases, list_cases
from malformed_tables import Case, Used, table_cases
from small_benchmarks import NAMES, detection_of, reports_of, samples_of, settings_of, write_images

from hf_oodclip.errors import OODCLIPError, RunError
from hf_oodclip.feature_store import FeatureStore

CASES = [case for group in (table_cases, parquet_cases, saved_cases, folder_cases, list_cases) for case in group()]
# All of them take a minute; these few of every kind, some seconds.
QUICK = {case.name for case in CASES[::9]}


def test_there_are_hundreds_and_no_two_are_called_alike():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) > 300
    assert sum(not isinstance(outcome, Used) for case in CASES for outcome in (case.as_id, case.as_far)) > 300


@pytest.fixture(scope="module")
def good(tmp_path_factory, jpegs):
    """A good ID and a good OOD set with the file of labels, and a store that has their features after one run."""
    root = tmp_path_factory.mktemp("good")
    for row, name in enumerate(NAMES):
        write_images(root / "own" / name, jpegs[3 * row : 3 * row + 3])
    write_images(root / "away", jpegs[20:25])
    (root / "labels.txt").write_text("\n".join(NAMES))
    return root, FeatureStore(root / "store")


@pytest.fixture(scope="module")
def expected(model, good):
    root, store = good
    benchmark = benchmark_from_sources(str(root / "own"), [str(root / "away")], root / "labels.txt")
    results, _, _ = evaluate_benchmark(model, benchmark, settings_of(), store=store)
    return {score: detection_of(results)[score, str(root / "away")] for score in ("neglabel", "mcm")}


def specs_of(case: Case, folder) -> tuple[SetSpec, SetSpec]:
    """The data of a case as a set of the ID classes and as an OOD set."""
    places = {} if "image_list" in case.options else {"source": str(folder / case.source)}
    labelled = SetSpec("labelled", "shifted", label_ids=list(NAMES), **places, **case.options)
    return labelled, replace(labelled, name="unlabelled", role="far")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow) for case in CASES],
)
def test_case(case, model, good, expected, tmp_path, jpegs, warned):
    root, store = good
    case.make(tmp_path, jpegs[30:])
    benchmark = benchmark_from_sources(str(root / "own"), [str(root / "away")], root / "labels.txt")
    benchmark = replace(benchmark, sets=(*benchmark.sets, *specs_of(case, tmp_path)))
    results, samples, read = evaluate_benchmark(model, benchmark, settings_of(), store=store, root=tmp_path)
    for name, outcome in (("labelled", case.as_id), ("unlabelled", case.as_far)):
        report = reports_of(results)[name]
        if not isinstance(outcome, Used):
            assert report["status"] in ("failed", "missing"), report
            assert re.search(outcome, report["reason"]), report["reason"]
            assert len(report["reason"]) < 1500 and report["count"] == 0
            assert name not in samples["set"].to_pylist()
            continue
        assert report["status"] == "ok" and report["count"] == outcome.count, report
        assert tuple(map(int, report["skipped"])) == outcome.skipped and all(report["skipped"].values())
        assert any(outcome.warning in text for text in warned) or not outcome.warning
        rows = samples_of(samples, name)
        assert len(rows["row"]) == outcome.count and not set(rows["row"]) & set(outcome.skipped)
        assert [read(name, int(row)).mode for row in rows["row"]] == ["RGB"] * outcome.count
        if name == "labelled":
            shown = [shown_label(case, row, file) for row, file in zip(rows["row"], rows["file"], strict=True)]
            assert all(label == right for label, right in zip(rows["label"], shown, strict=True) if right is not None)
    detection = detection_of(results)
    assert {score: detection[score, str(root / "away")] for score in expected} == expected


def shown_label(case: Case, row: int, file: str | None) -> int | None:
    """The label that the case means, where its images tell."""
    if case.name.startswith("folder"):
        return next((number for number, name in enumerate(NAMES) if f"/{name}/" in str(file)), None)
    return int(row) if row < 4 else None


@pytest.mark.parametrize("case", [case for case in CASES if case.name in QUICK], ids=lambda case: case.name)
def test_id_images_are_used_as_others_are_or_the_run_ends_with_the_reason(case, model, good, tmp_path, jpegs):
    root, store = good
    case.make(tmp_path, jpegs[30:])
    labelled, _ = specs_of(case, tmp_path)
    benchmark = benchmark_from_sources(str(root / "own"), [str(root / "away")], root / "labels.txt")
    benchmark = replace(benchmark, sets=(replace(labelled, role="id"), benchmark.sets[1]))
    if isinstance(case.as_id, Used):
        results, _, _ = evaluate_benchmark(model, benchmark, settings_of(), store=store, root=tmp_path)
        assert results["accuracy"][0]["count"] == case.as_id.count
        assert {row["num_id"] for row in results["detection"] if "num_id" in row} == {case.as_id.count}
        return
    with pytest.raises(RunError, match="cannot run without its ID images") as caught:
        evaluate_benchmark(model, benchmark, settings_of(), store=store, root=tmp_path)
    assert re.search(case.as_id, str(caught.value)) and isinstance(caught.value, OODCLIPError)
