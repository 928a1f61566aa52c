import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from card_pattern import assert_whole_card
from hf_oodclip.evaluation.sample_table import read_run
from hf_oodclip.model_cards.card import write_card
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from hf_oodclip.cli import app
from hf_oodclip.errors import CardError, RunError

EVERYTHING = ("labels", "negatives", "training", "calibration", "evaluation", "commands", "versions")


def card_of(path):
    return ModelCard.load(path, ignore_metadata_errors=False)


def missing_of(text):
    return text.partition("What no run left evidence of:\n\n")[2].splitlines()


def assert_links_exist(path):
    text = path.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    local = [link for link in links if not link.startswith("https://")]
    assert all((path.parent / link).is_file() for link in local)
    for link in local:
        with Image.open(path.parent / link) as image:
            image.verify()
    return local


def test_an_adapter_with_all_evidence(whole_card):
    text = whole_card.read_text()
    assert_whole_card(text, *EVERYTHING)
    assert len(assert_links_exist(whole_card)) == 3
    assert [line.split(":")[0] for line in missing_of(text)] == [
        "- licence of this model",
        "- licence of the base tiny_clip0",
        "- energy and CO2",
    ]
    assert "radford2021" in text and "zhu2025" in text and "jiang2024" in text
    assert "Delta Energy" not in text


def test_a_card_holds_no_path_of_a_machine(whole_card, trained_once, evaluated, tiny_clip):
    text = whole_card.read_text()
    for path in (trained_once, evaluated, Path(tiny_clip)):
        assert str(path.parent) not in text
    assert "/home" not in text and "/tmp" not in text
    assert "python -m hf_oodclip.training.train --recipe krnft-pocket --output-dir tiny-adapter" in text
    assert "hf_oodclip.evaluation.evaluate --benchmark pocket --adapter tiny-adapter --output-dir=runs" in text


def test_the_same_evidence_gives_the_same_bytes(whole_card, trained, evaluated):
    def contents(path):
        return {each.name: each.read_bytes() for each in (path, *(path.parent / "card_pictures").iterdir())}

    first = contents(write_card(trained, evaluation=[evaluated], repo_id="someone/tiny-adapter"))
    # Over a card that is there, too.
    again = contents(write_card(trained, evaluation=[evaluated], repo_id="someone/tiny-adapter"))
    assert first == again == contents(whole_card) and len(first) == 4


def test_the_model_index_holds_the_figures_of_the_run(whole_card, evaluated):
    results, _ = read_run(evaluated)
    card = card_of(whole_card)
    assert card.data.model_name == "tiny-adapter"
    found = {(each.dataset_config, each.metric_type): each for each in card.data.eval_results}
    wanted = {(row["set"], "accuracy"): (row["value"], row["low"], row["high"]) for row in results["accuracy"]}
    for row in results["detection"]:
        if row["score"] == "neglabel" and "num_ood" in row:
            for metric in ("auroc", "fpr95_id_pos", "fpr95_ood_pos"):
                wanted[row["set"], metric] = (row[metric], row[f"{metric}_low"], row[f"{metric}_high"])
    assert found.keys() == wanted.keys() and len(wanted) == 13
    for key, (value, low, high) in wanted.items():
        assert found[key].metric_value == pytest.approx(value, abs=6e-5)
        assert found[key].metric_args["interval_95"] == pytest.approx([low, high], abs=6e-5)
        assert found[key].metric_args["unit"] == "fraction of 1"
    assert found["textures", "auroc"].metric_args["num_ood"] == 60
    # In the text they are percent.
    auroc = next(row for row in results["detection"] if (row["score"], row["set"]) == ("neglabel", "textures"))
    assert f"| textures | far | 60 | {100 * auroc['auroc']:.1f} [" in whole_card.read_text()


def test_acceptance_is_that_of_the_models_own_threshold(whole_card, trained_once, evaluated):
    threshold = json.loads((trained_once / "ood_head.json").read_text())["calibrations"][0]["threshold"]
    _, samples = read_run(evaluated)
    rows = [row for row in samples.to_pylist() if row["set"] == "clothing"]
    accepted = sum(row["score:neglabel"] <= threshold for row in rows) / len(rows)
    line = next(line for line in whole_card.read_text().splitlines() if line.startswith("| clothing |"))
    assert line.endswith(f"| {100 * accepted:.1f} |")


def run_code_of(path, folder):
    code = re.search(r"```python\n(.*?)\n```", path.read_text(), re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return code, eval(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_the_code_of_a_calibrated_model_runs(save_model, id_labels, real_images, tmp_path):
    (tmp_path / "me").mkdir()
    folder = save_model("me/detector", calibrated=True)
    code, result = run_code_of(write_card(folder, repo_id="me/detector"), place_photo(tmp_path, real_images))
    assert len([line for line in code.splitlines() if line]) == 4
    assert result["label"] in id_labels and result["is_ood"] in (True, False)


@pytest.mark.slow
def test_the_code_of_an_adapter_on_a_local_base_runs(trained, tiny_clip, id_labels, real_images, tmp_path):
    path = write_card(trained, repo_id="me/tiny")
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "tiny").symlink_to(trained)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / Path(tiny_clip).name).symlink_to(tiny_clip)
    _, result = run_code_of(path, place_photo(tmp_path, real_images))
    assert result["label"] in id_labels


def place_photo(folder, real_images):
    real_images["id"][0].convert("RGB").save(folder / "photo.jpg")
    return folder


def test_a_whole_model_with_calibration_only(save_model):
    path = write_card(save_model(calibrated=True))
    text = path.read_text()
    assert_whole_card(text, "labels", "negatives", "calibration")
    assert "the pocket CLIP that ships with `hf_oodclip` (for demonstrations and tests); its weights are unch" in text
    assert "| Licence of the base | apache-2.0, as its own card says |" in text
    assert card_of(path).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["hf_oodclip", "clip", "out-of-distribution-detection"],
    }
    assert [line.split(":")[0] for line in missing_of(text)] == [
        "- licence of this model",
        "- calibration images",
        "- accuracy and OOD detection",
        "- energy and CO2",
    ]
    assert "40 images set the threshold" in text
    assert not (path.parent / "card_pictures").exists()


def test_a_model_with_nothing_but_labels(save_model, tiny_clip):
    text = write_card(save_model(folder=tiny_clip, labels=["cat", "dog"], negatives=None)).read_text()
    assert_whole_card(text, "labels")
    assert "| Negatives | none |" in text and "| OOD score | mcm (" in text
    found = [line.split(":")[0] for line in missing_of(text)]
    assert found[1:4] == ["- base", "- training data and recipe", "- operating point"]


def test_an_adapter_without_labels_says_so(trained):
    for path in trained.glob("ood_head*"):
        path.unlink()
    (trained / "metrics.json").unlink()
    text = write_card(trained).read_text()
    assert_whole_card(text)
    assert 'labels=["first label", "second label"]' in text
    assert "- labels, negatives and score: they are not saved with it" in missing_of(text)


def test_a_base_that_is_named_is_compared(save_model, tiny_clip, pocket):
    folder = save_model(folder=tiny_clip)
    text = write_card(folder, base=tiny_clip).read_text()
    assert f"{Path(tiny_clip).name} (a local folder); its weights are unchanged" in text
    with pytest.raises(CardError, match="not those of"):
        write_card(folder, base=pocket)
    with pytest.raises(CardError, match="cannot be loaded"):
        write_card(folder, base="/no/such/clip")


def test_a_folder_without_a_model_is_refused(tmp_path, pocket):
    for folder in (tmp_path, tmp_path / "none", Path(pocket)):
        with pytest.raises(CardError, match="holds no model of this package"):
            write_card(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_another_adapter_is_refused(trained, trained_once, tmp_path):
    (trained / "metrics.json").unlink()
    (trained / "learning_curve.png").unlink()
    path = write_card(trained, run=trained_once)
    assert "## Training" in path.read_text() and len(assert_links_exist(path)) == 1
    weights = trained / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CardError, match="trained another adapter"):
        write_card(trained, run=trained_once)


def test_a_bad_repo_id_is_refused(trained):
    with pytest.raises(CardError, match="is no id of a repo"):
        write_card(trained, repo_id="a/b/c")


def test_the_command_writes_a_card_and_refuses_in_one_sentence(trained, tmp_path):
    done = CliRunner().invoke(app, ["card", str(trained), "--repo-id", "me/tiny"])
    assert done.exit_code == 0 and done.output == f"Wrote {trained / 'README.md'}.\n"
    assert 'from_pretrained("me/tiny", base="path/to/' in (trained / "README.md").read_text()
    refused = CliRunner().invoke(app, ["card", str(trained), "--evaluation", str(tmp_path)])
    assert isinstance(refused.exception, RunError)
