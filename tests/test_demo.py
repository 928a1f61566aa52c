"""The demo runs offline on real images, and its table says what it must."""

import json

import pytest
from hf_oodclip.evaluation.demo import METRICS, OOD_SETS, run_demo
from PIL import Image

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.scores import SCORES


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, num_bootstrap=50)


def test_the_table_has_every_score_on_every_set(demo):
    _, results = demo
    rows = results["detection"]
    assert len(rows) == len(OOD_SETS) * (len(SCORES) + 1)
    for row in rows:
        for metric in METRICS:
            low, high = row[f"{metric}_interval"]
            assert 0 <= low <= high <= 1
            assert 0 <= row[metric] <= 1


def test_the_pocket_clip_detects_far_images(demo):
    _, results = demo
    best = max(row["auroc"] for row in results["detection"] if row["ood_set"].startswith("far"))
    assert best >= 0.85
    # Bands around the measured 68.5 % and 94.8 %, wide enough for another build of the same arithmetic.
    assert 0.64 <= results["id_accuracy"] <= 0.73
    assert 0.92 <= results["calibration"]["realised_tpr"] <= 0.98


def test_results_name_what_they_depend_on(demo):
    folder, results = demo
    stored = json.loads((folder / "results.json").read_text())
    assert stored["detection"][0]["auroc"] == results["detection"][0]["auroc"]
    environment = stored["environment"]
    assert {"command", "seed", "versions", "image_backend"} <= set(environment)
    assert environment["image_backend"].startswith("CLIPImageProcessor")


def test_pictures_are_there_and_not_blank(demo):
    folder, _ = demo
    for name in ("histograms.png", "roc.png", "contact_sheet.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(maxcolors=10**7)) > 50


def test_the_saved_model_decides(demo):
    folder, results = demo
    model = OODCLIPForImageClassification.from_pretrained(folder / "model")
    assert model.calibration.threshold == results["calibration"]["threshold"]
    assert len(model.negatives) == results["num_negatives"]


def test_the_printed_lines_run(demo, capsys, tmp_path, monkeypatch):
    folder, _ = demo
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "your-photo.jpg")
    monkeypatch.chdir(tmp_path)
    run_demo(folder, num_bootstrap=0)
    printed = capsys.readouterr().out
    lines = printed[printed.index("import hf_oodclip, transformers") :].strip().splitlines()
    assert len(lines) == 3
    exec("\n".join(lines), {})
    assert "'is_ood': " in capsys.readouterr().out
