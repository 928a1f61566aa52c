"""A whole run: the folder it leaves restores everything, can be made again from its recipe, and is never overrun."""

import json

import datasets
import pytest
import torch
from hf_oodclip.training.inputs import HeldOut, choose_shots
from hf_oodclip.training.recipe import load_recipe
from hf_oodclip.training.run import run_recipe
from PIL import Image
from small_runs import CLASSES, WORDS, small_recipe, words_file
from transformers import pipeline

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.errors import CheckpointError, OODCLIPError, RecipeError
from hf_oodclip.feature_store import FeatureStore

OOD = ["embedded:far_digits", "embedded:near_heldout"]


@pytest.fixture(scope="module")
def finished(tiny_clip, tmp_path_factory):
    """A finished run of KR-NFT with everything on: folder, recipe, result."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = small_recipe(
        "krnft",
        tiny_clip,
        folder,
        learning_rate=0.01,
        epochs=2,
        ood_datasets=OOD,
        eval_scores=["neglabel", "mcm"],
        eval_every=1,
        calibration_dataset="rest",
        target_tpr=0.9,
    )
    return folder / "out", recipe, run_recipe(recipe, folder / "out")


def without_times(metrics):
    content = {name: value for name, value in metrics.items() if name not in ("seconds", "training_seconds")}
    return {**content, "environment": {**content["environment"], "command": None}}


def test_the_folder_restores_everything(finished, real_images):
    folder, recipe, result = finished
    loaded = OODCLIPForImageClassification.from_pretrained(folder)
    assert loaded.labels == CLASSES
    assert loaded.negatives.texts == list(WORDS)
    assert loaded.config.label_templates == result.model.config.label_templates
    assert loaded.score.key == result.model.score.key
    pixels = loaded.image_processor(images=real_images["id"][:4] + real_images["far"], return_tensors="pt")
    with torch.no_grad():
        one, other = loaded(**pixels), result.model(**pixels)
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.ood_score, other.ood_score, rtol=0, atol=1e-6)

    classifier = pipeline("ood-image-classification", model=str(folder))
    answers = classifier(real_images["far"])
    for answer, score in zip(answers, one.ood_score[4:], strict=True):
        assert answer["ood_score"] == pytest.approx(float(score), abs=1e-6)
        assert 0 < answer["p_value"] <= 1
        assert answer["is_ood"] == (answer["p_value"] <= 1 - recipe.target_tpr + 1e-9)
        assert answer["nearest_negative"] in WORDS


def test_metrics_say_all_about_the_run(finished, tiny_clip):
    folder, recipe, result = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.metrics))
    assert (metrics["recipe"], metrics["num_images"], metrics["num_labels"]) == ("krnft", 4, 4)
    assert (metrics["num_negatives"], metrics["num_steps"], metrics["num_processes"]) == (8, 4, 1)
    # Two groups of scale and shift vectors, each with its small network of D -> 8 -> D.
    assert metrics["num_parameters"] == 4 * (24 + 24 * 8 + 8 + 8 * 24 + 24)
    assert metrics["skipped_images"] == {}
    assert metrics["environment"]["seed"] == recipe.seed
    assert metrics["environment"]["versions"]["torch"] == torch.__version__
    assert metrics["environment"]["command"]
    assert [record["step"] for record in metrics["history"]] == [1, 2, 3, 4]
    first = metrics["history"][0]
    weighted = sum(options["weight"] * first[name] for name, options in recipe.losses.items())
    assert first["loss"] == pytest.approx(weighted, rel=1e-5)
    assert [each["epoch"] for each in metrics["evaluations"]] == [1, 2]
    assert metrics["trained"] == {k: v for k, v in metrics["evaluations"][1].items() if k not in ("step", "epoch")}
    assert metrics["zero_shot"] != metrics["trained"]
    assert metrics["calibration"]["target_tpr"] == 0.9


def test_measured_figures_are_right(finished):
    _, recipe, result = finished
    # The ID images: those not trained on, every so many of them.
    held_out = HeldOut.of(recipe, choose_shots(recipe))
    scores, right = {}, []
    for name, images in held_out.sets.items():
        assert len(images) == 8
        decoded = images.images.cast_column("image", datasets.Image())["image"][:]
        scores[name] = result.model.ood_scores(decoded, ["neglabel", "mcm"])
        if name == "id":
            pixels = result.model.image_processor(images=decoded, return_tensors="pt")
            with torch.no_grad():
                right = result.model(**pixels).logits.argmax(-1).eq(torch.tensor(images.labels))
    trained = result.metrics["trained"]
    assert trained["id_accuracy"] == pytest.approx(float(right.float().mean()))
    found = {}
    for key in ("neglabel", "mcm"):
        for name in OOD:
            ids, oods = scores["id"][key], scores[name][key]
            pairs = (oods[:, None] > ids).float() + 0.5 * (oods[:, None] == ids).float()
            # All 8 ID images must be accepted to accept 95 % of them.
            accepted = (oods <= ids.max()).float().mean()
            detection = trained["detection"][key][name]
            assert detection["auroc"] == pytest.approx(float(pairs.mean()), abs=1e-6)
            assert detection["fpr95_id_pos"] == pytest.approx(float(accepted), abs=1e-6)
            found[key, name] = detection
    assert trained["auroc"] == pytest.approx(sum(found["neglabel", name]["auroc"] for name in OOD) / 2)
    assert trained["fpr95"] == pytest.approx(sum(found["neglabel", name]["fpr95_id_pos"] for name in OOD) / 2)


def test_the_learning_curve_is_a_picture(finished):
    with Image.open(finished[0] / "learning_curve.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_no_file_is_a_pickle(finished):
    files = [path for path in finished[0].rglob("*") if path.is_file()]
    assert len(files) >= 7
    for path in files:
        assert path.suffix in (".json", ".safetensors", ".yaml", ".png", ".md"), path
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


def test_the_saved_recipe_makes_the_same_run_again(finished, tmp_path):
    folder, recipe, result = finished
    saved = load_recipe(folder / "recipe.yaml")
    assert saved == recipe
    again = run_recipe(saved, tmp_path / "again", store=FeatureStore(tmp_path / "store"))
    for name in ("adapter_model.safetensors", "ood_head.safetensors", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert without_times(again.metrics) == without_times(result.metrics)


def test_a_used_folder_is_refused(finished, tiny_clip, tmp_path):
    recipe = small_recipe("ssf", tiny_clip, tmp_path)
    before = {path: path.read_bytes() for path in finished[0].rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"earlier run \(metrics.json, .*--resume.*--overwrite"):
        run_recipe(recipe, finished[0])
    with pytest.raises(CheckpointError, match="another recipe"):
        run_recipe(recipe, finished[0], resume=True)
    with pytest.raises(RecipeError, match="give one of them"):
        run_recipe(recipe, finished[0], resume=True, overwrite=True)
    assert {path: path.read_bytes() for path in finished[0].rglob("*") if path.is_file()} == before


def test_overwrite_throws_the_earlier_run_away(tiny_clip, tmp_path):
    run_recipe(small_recipe("krnft", tiny_clip, tmp_path), tmp_path / "out")
    recipe = small_recipe("ssf", tiny_clip, tmp_path)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    result = run_recipe(recipe, tmp_path / "out", overwrite=True)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path / "out")
    assert loaded.negatives is None
    assert loaded.peft_config["default"].peft_type == "OODCLIP_SSF"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["recipe"] == "ssf"
    assert len(list((tmp_path / "out" / "checkpoints").iterdir())) == 1
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    # An overwritten run that dies leaves nothing that looks finished.
    broken = small_recipe("ssf", str(tmp_path / "no_base"), tmp_path)
    with pytest.raises((OODCLIPError, OSError)):
        run_recipe(broken, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert result.metrics["num_steps"] == 2


def test_lora_through_the_towers_comes_back(tiny_clip, real_images, tmp_path):
    recipe = small_recipe("clip-lora", tiny_clip, tmp_path, learning_rate=0.05, epochs=3, calibration_dataset="rest")
    result = run_recipe(recipe, tmp_path / "out")
    tuned = [name for name, each in result.model.named_parameters() if each.requires_grad]
    assert {name.split("clip.")[1].split(".")[0] for name in tuned} == {"text_model", "vision_model"}
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path / "out")
    bare = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=CLASSES)
    pixels = loaded.image_processor(images=real_images["id"][:4], return_tensors="pt")
    with torch.no_grad():
        outputs = [each(**pixels) for each in (loaded, result.model, bare)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].ood_score, outputs[1].ood_score, rtol=0, atol=1e-5)
    assert (outputs[0].logits - outputs[2].logits).abs().max() > 0.1
    classifier = pipeline("ood-image-classification", model=str(tmp_path / "out"))
    assert classifier(real_images["id"][0])["p_value"] > 0


def test_best_epoch_is_what_is_saved(tmp_path):
    changes = {"best_metric": "id_accuracy", "eval_every": 1, "epochs": 4, "learning_rate": 0.15, "eval_limit": 40}
    recipe = small_recipe("ssf", "pocket", tmp_path, **changes)
    result = run_recipe(recipe, tmp_path / "out")
    accuracies = [each["id_accuracy"] for each in result.metrics["evaluations"]]
    assert len(set(accuracies)) > 1
    assert result.metrics["trained"]["id_accuracy"] == max(accuracies) > accuracies[-1]


def test_no_output_and_no_folder_by_default(tiny_clip, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = small_recipe("krnft", tiny_clip, tmp_path, negatives=words_file(tmp_path))
    run_recipe(recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.txt"]
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
