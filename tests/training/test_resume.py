"""A run that was stopped goes on to the same bits, and from no other run's checkpoints."""

import copy

import pytest
from small_runs import CLASSES, DIM, WORDS, evaluations, make_trainer, random_inputs, same, small_recipe, trained

from hf_oodclip.errors import CheckpointError

LABELS = [0, 1, 2, 3] * 3


@pytest.fixture
def model(tiny_clip, make_model):
    return make_model(tiny_clip, labels=CLASSES, negatives=WORDS)


class StopError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("stop", [1, 7, 10])
def test_a_resumed_run_ends_with_the_same_bits(optimizer, stop, model, tmp_path):
    changes = {"optimizer": optimizer, "learning_rate": 0.01, "epochs": 4, "best_metric": "auroc", "eval_every": 1}
    found = [{"auroc": value} for value in (0.3, 0.8, 0.6, 0.7)]
    recipe = small_recipe("krnft", "pocket", tmp_path, checkpoint_every=2, batch_size=4, **changes)

    def make(folder, values):
        inputs = random_inputs(recipe, LABELS, DIM)
        return make_trainer(copy.deepcopy(model), recipe, inputs, folder, evaluate=evaluations(values))

    whole = make(tmp_path / "whole", found)
    whole.train()
    assert whole.plan.num_steps == 12

    killed = make(tmp_path / "killed", found)

    def log(values, step):
        if step == stop:
            raise StopError

    killed.log = log
    with pytest.raises(StopError):
        killed.train()
    resumed = make(tmp_path / "killed", found[(stop - 1) // 2 * 2 // 3 :])
    resumed.train(resume=True)
    assert same(trained(resumed), trained(whole))
    assert resumed.history == whole.history
    assert resumed.evaluations == whole.evaluations


def test_resuming_a_finished_run_changes_nothing(model, tmp_path):
    recipe = small_recipe("ssf", "pocket", tmp_path, learning_rate=0.01)
    inputs = random_inputs(recipe, LABELS, DIM)
    first = make_trainer(copy.deepcopy(model), recipe, inputs, tmp_path / "c")
    first.train()
    again = make_trainer(copy.deepcopy(model), recipe, inputs, tmp_path / "c")
    again.train(resume=True)
    assert same(trained(first), trained(again))
    assert again.history == first.history


def test_nothing_to_resume_from_is_said(model, tmp_path, warned):
    recipe = small_recipe("ssf", "pocket", tmp_path)
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS[:4], DIM), tmp_path / "c")
    trainer.train(resume=True)
    assert "starting anew" in warned[0]
    assert len(trainer.history) == 2


@pytest.mark.parametrize("other", ["recipe", "images", "labels", "negatives"])
def test_a_checkpoint_of_another_run_is_refused(other, model, tiny_clip, make_model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path)
    inputs = random_inputs(recipe, LABELS, DIM)
    make_trainer(copy.deepcopy(model), recipe, inputs, tmp_path / "c").train()
    if other == "recipe":
        recipe = small_recipe("krnft", "pocket", tmp_path, learning_rate=0.5)
    elif other == "images":
        inputs.rows[0] += 100
    elif other == "labels":
        model = make_model(tiny_clip, labels=[*CLASSES[:3], "bus"], negatives=WORDS)
    else:
        model = make_model(tiny_clip, labels=CLASSES, negatives=[*WORDS[:-1], "mud"])
    trainer = make_trainer(model, recipe, inputs, tmp_path / "c")
    with pytest.raises(CheckpointError, match="another recipe"):
        trainer.train(resume=True)
