"""Fixtures of the cards' tests: a trained adapter and its evaluation, and saved models."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest
from hf_oodclip.evaluation.benchmark import load_benchmark
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from hf_oodclip.model_cards.card import write_card
from hf_oodclip.training.recipe import load_recipe
from hf_oodclip.training.run import run_recipe

from hf_oodclip import OODCLIPForImageClassification

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
WORDS = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")
SECRET = "/home/someone/secret"


@pytest.fixture(scope="session")
def trained_once(tiny_clip, tmp_path_factory):
    """The folder of a training run of seconds, started as if from a user's machine."""
    folder = tmp_path_factory.mktemp("runs") / "tiny-adapter"
    small = {"base": tiny_clip, "num_negatives": None, "shots": 1, "num_crops": 4}
    small |= {"selected_crops": 2, "epochs": 1, "eval_limit": 40, "tracker": None}
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(WORDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(sys, "argv", ["train.py", "--recipe", "krnft-pocket", "--output-dir", f"{SECRET}/tiny-adapter"])
        run_recipe(load_recipe("krnft-pocket", {**small, "negatives": str(words)}), folder)
    return folder


@pytest.fixture(scope="session")
def evaluated(trained_once, tmp_path_factory):
    """The folder of an evaluation of that adapter, on 60 images a set."""
    folder = tmp_path_factory.mktemp("evaluations") / "pocket"
    model = OODCLIPForImageClassification.from_pretrained(trained_once).eval()
    pocket = load_benchmark("pocket")
    small = dataclasses.replace(
        pocket, sets=tuple(dataclasses.replace(each, limit=60, count=None) for each in pocket.sets)
    )
    settings = Settings(chosen_scores("neglabel,mcm", model), num_bootstrap=20)
    command = ["evaluate.py", "--benchmark", "pocket", "--adapter", str(trained_once), f"--output-dir={SECRET}/runs"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(sys, "argv", command)
        results, samples, _ = evaluate_benchmark(model, small, settings, adapter=str(trained_once))
    write_run(folder, results, samples)
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of the training run that the test may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "tiny-adapter"))


@pytest.fixture(scope="session")
def whole_card(trained_once, evaluated, tmp_path_factory):
    """The card of that run with its evaluation; nobody changes it."""
    folder = shutil.copytree(trained_once, tmp_path_factory.mktemp("whole") / "tiny-adapter")
    return write_card(folder, evaluation=[evaluated], repo_id="someone/tiny-adapter")


@pytest.fixture
def change_json():
    """Changes fields of a JSON file."""

    def change(path, **fields):
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.fixture
def save_model(make_model, real_images, tmp_path):
    """Saves a whole model under `tmp_path` and returns its folder."""

    def save(name="detector", calibrated=False, **options):
        model = make_model(**options)
        if calibrated:
            model.calibrate(real_images["id"])
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save
