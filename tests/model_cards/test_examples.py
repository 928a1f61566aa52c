"""The cards under `model_cards/examples/`: what is there, and that the documented command makes them."""

import subprocess
import sys
from pathlib import Path

import pytest
from card_pattern import assert_whole_card
from hf_oodclip.model_cards.make_examples import COMMANDS, NAMES, write_photos
from huggingface_hub import ModelCard
from PIL import Image
from test_card import assert_links_exist

EXAMPLES = Path(__file__).parents[2] / "model_cards" / "examples"
ALWAYS = ("calibration", "evaluation", "commands", "versions")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_whole_card_of_a_run_by_the_documented_commands(name):
    path = EXAMPLES / name / "README.md"
    text = path.read_text()
    trained = ("training",) if name == "krnft-pocket" else ()
    assert_whole_card(text, "labels", "negatives", *trained, *ALWAYS)
    links = assert_links_exist(path)
    assert sorted(path.parent / link for link in links) == sorted((path.parent / "card_pictures").iterdir())
    assert all((path.parent / link).stat().st_size < 150_000 for link in links)
    commands = [line.partition("python -m ")[2] for line in text.splitlines() if line.startswith("python -m ")]
    assert len(commands) == len(trained) + 1 and set(commands) <= set(COMMANDS)
    for path in ("/home", "/tmp", "/work", "/root"):
        assert path not in text
    assert len(ModelCard.load(EXAMPLES / name / "README.md").data.eval_results) == 13


def test_the_readme_shows_the_commands():
    lines = (EXAMPLES / "README.md").read_text().splitlines()
    assert [line.partition("python -m ")[2] for line in lines if line.startswith("python -m ")][1:5] == list(COMMANDS)
    for name in NAMES:
        assert f"python -m hf_oodclip card {name} --evaluation runs/{name}" in lines
        assert f"[{name}]({name}/README.md)" in "\n".join(lines)


def test_the_photos_are_the_embedded_calibration_images(tmp_path, id_dataset, id_labels):
    assert write_photos(tmp_path / "photos") == id_labels
    wanted = [row["image"].convert("RGB").tobytes() for row in id_dataset if row["split"] == "calibration"]
    paths = sorted((tmp_path / "photos").iterdir())
    found = [Image.open(path).convert("RGB").tobytes() for path in paths]
    assert len(found) == 320 and sorted(found) == sorted(wanted)


@pytest.mark.slow
def test_the_documented_command_gives_the_figures_that_are_shown(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hf_oodclip.model_cards.make_examples",
        tmp_path / "w",
        "--copy-to",
        tmp_path / "c",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        shown, found = (
            {(each.dataset_config, each.metric_type): each.metric_value for each in card.data.eval_results}
            for card in (ModelCard.load(root / name / "README.md") for root in (EXAMPLES, tmp_path / "c"))
        )
        # Other processors round otherwise.
        assert found == pytest.approx(shown, abs=0.03)
