"""The evaluation's benchmark runs, and its figures belong together; how fast it is says the machine it runs on."""

import math
import sys

import datasets
import pytest
from hf_oodclip.evaluation import bench_eval
from hf_oodclip.evaluation.sample_table import read_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return bench_eval.make_checkpoint(tmp_path_factory.mktemp("checkpoint"), 20, 40)


def test_a_synthetic_run_is_a_run_like_any(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    bench_eval.make_data(checkpoint, tmp_path / "data", 200)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("store/*/shard-*.safetensors")}
    found = bench_eval.measure(checkpoint, tmp_path / "data", bench_eval.SCORES, 20)
    # The features were found under the key of these data, none computed.
    assert len(shards) == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("store/*/*.safetensors")} == shards
    results, samples = read_run(tmp_path / "data" / "run")
    assert samples.num_rows == found["rows"] == 200 and results["skipped_scores"] == {}
    counts = {report["name"]: (report["status"], report["count"]) for report in results["sets"]}
    assert counts == {"id": ("ok", 100), "calibration": ("ok", 20), "near": ("ok", 40), "far": ("ok", 40)}
    assert samples["file"][0].as_py() == "id/0000000.png"
    assert len(results["calibration"]) == 10 and results["labels"][7] == bench_eval.words(20, "adjective")[7]
    # Most images are near their own label, not one in twenty.
    assert found["id_accuracy"] == results["accuracy"][0]["value"] > 0.5
    assert set(found["far_auroc"]) == set(bench_eval.SCORES.split(","))
    assert all(0 <= low <= value <= high <= 1 for low, value, high in found["far_auroc"].values())
    assert found["seconds"] > 0 and found["processor_seconds"] > 0
    assert found["peak_resident_mib"] >= found["resident_mib_before"] > 0


@pytest.mark.slow
def test_growth_is_measured_in_processes_of_their_own(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = bench_eval.bench_growth(checkpoint, tmp_path, [200, 300], "neglabel", 20)
    assert [row["rows"] for row in found] == [200, 300]
    assert all(row["peak_resident_mib"] > 0 and set(row["far_auroc"]) == {"neglabel"} for row in found)


def test_a_second_run_is_timed_against_the_first(tiny_clip, tmp_path):
    found = bench_eval.bench_reuse(tiny_clip, tmp_path, ["gravel", "fog"], 3, 3)
    assert found["images"] == 3 * 6 and len(found["scores"]) == 10 and found["negatives"] == 2
    for name in ("without_bootstrap", "with_1000_resamples"):
        row = found[name]
        assert row["second_seconds"] == sorted(row["all_second_seconds"])[1]
        assert row["times_faster"] == row["first_seconds"] / row["second_seconds"] > 0
        # The features of its first run are those of six sets, a shard each.
        assert len(list((tmp_path / name).glob("*/shard-*.safetensors"))) == 6


def test_scoring_alone_is_counted_in_rows(checkpoint):
    rate = bench_eval.bench_scoring(checkpoint, "neglabel", 4, 3)
    assert math.isfinite(rate) and rate > 0


def test_projection_is_the_arithmetic_it_shows():
    # 2 * 1e6 * 11,000 * 512 FLOP at 33.5e12 a second, and 14 * 4 * 1e6 * 11,000 bytes at 2.4e12 a second.
    found = bench_eval.project(1_000_000, 11_000)
    assert found["seconds_on_one_gpu"] == pytest.approx(0.33624 + 0.25667, abs=1e-4)
    assert found["seconds_on_eight_gpus"] == pytest.approx(0.59291 / 8, abs=1e-4)
    assert found["rows_per_second_on_eight_gpus"] == pytest.approx(1e6 / (0.59291 / 8), rel=1e-3)
    assert "not measured" in found["status"] and "1.126e+13 FLOP" in found["arithmetic"][0]
