"""What cannot be used is reported and left out; only without ID images is there no run."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_oodclip.evaluation.benchmark import Published, SetSpec
from hf_oodclip.evaluation.report import write_report
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from PIL import Image
from small_benchmarks import (
    FAR,
    ID,
    NAMES,
    benchmark_of,
    reports_of,
    samples_of,
    settings_of,
    write_images,
)

from hf_oodclip import OODCLIPForImageClassification, Score, get_score
from hf_oodclip.errors import RunError, UnknownNameError


def test_too_few_images_to_calibrate_on_are_reported(model, root):
    lines = []
    few = SetSpec("held", "calibration", "few")
    found = evaluate_benchmark(model, benchmark_of(ID, few, FAR), settings_of(), root=root, say=lines.append)
    results, samples, _ = found
    assert results["calibration"] == [] and not any(name.startswith("p_value") for name in samples.column_names)
    held = reports_of(results)["held"]
    assert held["status"] == "ok" and held["count"] == 8 and "at least 20 ID images and was given 8" in held["reason"]
    assert any("not calibrated" in line for line in lines)
    assert len(results["detection"]) == 2


def test_nothing_classified_correctly_leaves_nothing_to_compare(model, root, tmp_path, jpegs):
    _, samples, _ = evaluate_benchmark(model, benchmark_of(ID, FAR), settings_of(), root=root)
    rows = samples.to_pylist()
    wrong = next(each for each in rows if each["set"] == "own" and each["label"] != each["prediction"])
    write_images(tmp_path / "id", [Path(wrong["file"]).read_bytes()])
    (tmp_path / "list.txt").write_text(f"00.jpg {wrong['label']}\n")
    one = SetSpec("own", "id", image_list="list.txt", image_root="id", classes=[NAMES[wrong["label"]]])
    write_images(tmp_path / "far", jpegs[:2])
    with pytest.raises(RunError, match=r"No ID image is classified correctly.*use 'all'"):
        evaluate_benchmark(model, benchmark_of(one, FAR), settings_of(id_filter="correct"), root=tmp_path)


def test_sets_that_cannot_be_used_are_reported_and_left_out(model, root, tmp_path):
    for folder in ("id", "far"):
        (tmp_path / folder).symlink_to(root / folder)
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    write_images(tmp_path / "unreadable", [b"no image", b"nor this"])
    sets = (
        replace(ID, count=50),
        replace(FAR, count=5),
        SetSpec("gone", "far", "nowhere", where="Fetch it from example.org."),
        SetSpec("broken", "near", "broken.parquet"),
        SetSpec("unreadable", "far", "unreadable"),
        SetSpec("split", "far", "far", split="nope"),
        SetSpec("lost", "calibration", "lost"),
    )
    published = [Published("mcm", name, "auroc", 50.0, "MCM", "B", "S") for name in ("gone", "far", "all", "away")]
    lines = []
    results, samples, _ = evaluate_benchmark(
        model, benchmark_of(*sets, published=published), settings_of(), root=tmp_path, say=lines.append
    )
    reports = reports_of(results)
    assert {name: report["status"] for name, report in reports.items()} == {
        "own": "ok", "away": "ok", "gone": "missing", "broken": "failed", "unreadable": "failed", "split": "failed",
        "lost": "missing",
    }  # fmt: skip
    assert str(tmp_path / "nowhere") in reports["gone"]["reason"] and "example.org" in reports["gone"]["reason"]
    assert "broken.parquet" in reports["broken"]["reason"] and "'nope'" in reports["split"]["reason"]
    assert "None of its 2 images can be read" in reports["unreadable"]["reason"]
    assert reports["own"]["reason"] == "48 images where the benchmark defines 50" and reports["own"]["count"] == 48
    assert reports["away"]["reason"] == "" and reports["own"]["expected"] == 50
    assert len(lines) == len(sets) and set(samples["set"].to_pylist()) == {"own", "away"}
    assert {row["set"] for row in results["detection"]} == {"away"}
    # A mean over the sets that happen to be there is not what was printed.
    ours = {row["set"]: row["ours"] for row in results["published"]}
    assert (ours["gone"], ours["far"], ours["all"]) == (None, None, None) and ours["away"] is not None
    write_run(tmp_path / "run", results, samples)
    write_report(tmp_path / "run", results, samples)


def test_without_id_images_there_is_no_run(model, root):
    with pytest.raises(RunError, match=r"'small' cannot run without its ID images: .*nowhere does not exist"):
        evaluate_benchmark(model, benchmark_of(SetSpec("own", "id", "nowhere"), FAR), settings_of(), root=root)


def test_damaged_images_are_skipped_and_listed(model, root, tmp_path, jpegs):
    write_images(tmp_path / "far", [*jpegs[:3], b"", jpegs[3][:200], jpegs[4]])
    (tmp_path / "id").symlink_to(root / "id")
    whole = replace(FAR, count=6)
    results, samples, read = evaluate_benchmark(model, benchmark_of(ID, whole), settings_of(), root=tmp_path)
    report = reports_of(results)["away"]
    assert report["status"] == "ok" and report["count"] == 4 and set(report["skipped"]) == {"3", "4"}
    assert report["reason"] == "4 images where the benchmark defines 6"
    away = samples_of(samples, "away")
    assert away["row"].tolist() == [0, 1, 2, 5]
    assert [Path(path).name for path in away["file"]] == ["00.jpg", "01.jpg", "02.jpg", "05.jpg"]
    expected = Image.open(io.BytesIO(jpegs[4])).convert("RGB")
    assert np.array_equal(read("away", 5), expected)
    assert away["score:mcm"][3] == pytest.approx(float(model.ood_scores([expected], ["mcm"])["mcm"]), abs=1e-6)


class Unfinished(Score):
    """NaN for some images."""

    name = "unfinished"

    def compute(self, inputs):
        return torch.where(inputs.similarity[:, 0] > inputs.similarity[:, 0].median(), torch.nan, 0.0)


def test_scores_that_cannot_be_had_are_reported(root, tiny_clip, tmp_path):
    bare = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES).eval()
    asked = ("mcm", "neglabel", "knn", "odin", "gl_mcm", "clipn", "ash", Unfinished())
    results, samples, read = evaluate_benchmark(bare, benchmark_of(ID, FAR), settings_of(*asked), root=root)
    reasons = results["skipped_scores"]
    assert set(reasons) == {"neglabel", "knn", "odin", "gl_mcm", "clipn", "unfinished"}
    for name, part in {
        "neglabel": "negatives=", "knn": "not fitted", "odin": "pixels", "gl_mcm": "pixels", "clipn": "no_similarity",
        "unfinished": "NaN",
    }.items():  # fmt: skip
        assert part in reasons[name], name
    # ASH looks at the labels' embeddings, which the model can give.
    assert [row["score"] for row in results["detection"]] == ["mcm", "ash"]
    assert [name for name in samples.column_names if name.startswith("score:")] == ["score:mcm", "score:ash"]
    assert results["num_negatives"] == 0 and set(samples["nearest_negative"].to_pylist()) == {None}
    results, samples, read = evaluate_benchmark(bare, benchmark_of(ID, FAR), settings_of("knn"), root=root)
    assert results["detection"] == [] and results["accuracy"][0]["count"] == 48
    write_run(tmp_path, results, samples)
    write_report(tmp_path, results, samples, read)


def test_the_scores_chosen_are_those_the_model_has(model, tiny_clip, real_images):
    every = {score.key for score in chosen_scores("all", model)}
    assert {"neglabel", "mcm", "energy", "eoe", "ash"} <= every
    assert not every & {"knn", "mahalanobis", "odin", "gl_mcm", "clipn", "zoc", "adaneg"}
    assert [score.key for score in chosen_scores(" mcm, adaneg,mcm ", model)] == ["mcm", "adaneg"]
    with pytest.raises(UnknownNameError, match="'mcm'"):
        chosen_scores("mcn", model)
    fitted = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES)
    fitted.fit_score(real_images["id"][:12], score=get_score("knn", k=3))
    for names in ("knn", "all"):
        chosen = {score.key: score for score in chosen_scores(names, fitted)}
        assert chosen["knn(k=3)"].state_dict() and "knn" not in chosen and "neglabel" not in chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_filter": "corect"}, "'correct'"),
        ({"target_tpr": 95.0}, "between 0 and 1, got 95"),
        ({"num_bootstrap": -1}, "num_bootstrap must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"scores": ()}, "at least one score"),
        ({"scores": (get_score("mcm"), get_score("mcm"))}, "got mcm, mcm"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises((RunError, UnknownNameError), match=message):
        Settings(**{"scores": (get_score("mcm"),), **options})
