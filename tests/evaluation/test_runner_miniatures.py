"""Every shipped benchmark runs from end to end on a miniature of its data."""

import pytest
from hf_oodclip.evaluation.benchmark import list_benchmarks, load_benchmark
from hf_oodclip.evaluation.runner import evaluate_benchmark
from small_benchmarks import SCORES, WORDS, settings_of
from test_benchmark_files import build

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.feature_store import FeatureStore


def run_miniature(name, tiny_clip, root, jpegs):
    benchmark = load_benchmark(name, root)
    for spec in benchmark.sets:
        build(root, spec, jpegs[:7], 6 if name.startswith("setup1") else 1 if len(benchmark.labels) > 10 else 2)
    model = OODCLIPForImageClassification.from_pretrained(
        tiny_clip, labels=benchmark.labels, templates=benchmark.templates, negatives=WORDS
    ).eval()
    results, _, _ = evaluate_benchmark(model, benchmark, settings_of(), root=root, store=FeatureStore(root / "store"))
    assert {report["status"] for report in results["sets"]} == {"ok"} and results["skipped_scores"] == {}
    for report in results["sets"]:
        as_defined = report["expected"] in (None, report["count"])
        assert as_defined or report["reason"].startswith(f"{report['count']} images where the")
    scored = {row["set"] for row in results["detection"]}
    assert scored >= {spec.name for spec in benchmark.ood_sets}
    assert {row["set"] for row in results["accuracy"]} == {
        spec.name for spec in (benchmark.id_set, *benchmark.shifted_sets)
    }
    held = [report["count"] for report in results["sets"] if report["role"] == "calibration"]
    assert len(results["calibration"]) == (2 if held and held[0] >= 20 else 0)
    ours = [row["ours"] for row, each in zip(results["published"], benchmark.published, strict=True)
            if not each.adapter and (each.metric == "id_accuracy" or each.score in SCORES)]  # fmt: skip
    assert None not in ours


HEAVY = [name for name in list_benchmarks() if name.startswith(("hard-pairs", "setup1", "imagenet"))]


@pytest.mark.parametrize("name", sorted({*list_benchmarks()} - {*HEAVY, "pocket"}))
def test_miniature_runs(name, tiny_clip, tmp_path, jpegs):
    run_miniature(name, tiny_clip, tmp_path, jpegs)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_miniature_of_many_files_runs(name, tiny_clip, tmp_path, jpegs):
    run_miniature(name, tiny_clip, tmp_path, jpegs)
