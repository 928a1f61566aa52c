"""The training loop: only the adapter learns, the best epoch is kept, trouble stops it before it does harm."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hf_oodclip.training.checkpoints import latest_checkpoint
from hf_oodclip.training.recipe import list_recipes
from hf_oodclip.training.run import run_recipe
from hf_oodclip.training.trainer import Trainer
from small_runs import CLASSES, DIM, WORDS, evaluations, make_trainer, random_inputs, same, small_recipe, trained

from hf_oodclip.errors import NonFiniteError, RecipeError

LABELS = [0, 1, 2, 3] * 3


@pytest.fixture
def model(tiny_clip, make_model):
    return make_model(tiny_clip, labels=CLASSES, negatives=WORDS)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_runs_and_trains_its_adapter_only(name, tiny_clip, make_model, tmp_path):
    recipe = small_recipe(name, tiny_clip, tmp_path, learning_rate=0.01)
    bare = make_model(tiny_clip, labels=CLASSES, negatives=None).clip.state_dict()
    result = run_recipe(recipe)
    assert result.metrics["num_steps"] == 2
    assert all(math.isfinite(record["loss"]) for record in result.metrics["history"])
    assert [record["step"] for record in result.metrics["history"]] == [1, 2]
    assert 0 <= result.metrics["trained"]["id_accuracy"] <= 1

    parameters = dict(result.model.named_parameters())
    trainable = {key for key, each in parameters.items() if each.requires_grad}
    assert trainable == {key for key in parameters if ".default" in key}
    assert sum(parameters[key].numel() for key in trainable) == result.metrics["num_parameters"]
    # The tuned towers hide their weights in a base_layer.
    frozen = {key.replace(".base_layer", ""): each for key, each in parameters.items() if key not in trainable}
    for key, value in bare.items():
        assert torch.equal(frozen[f"clip.{key}"], value), key
    assert all(each.grad is None for key, each in parameters.items() if key not in trainable)


def test_two_steps_move_every_parameter(model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path, learning_rate=0.01)
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS[:4], DIM))
    before = trained(trainer)
    trainer.train()
    after = trained(trainer)
    # The second layers start at zero, so the first ones learn from the second step on.
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not model.training


def test_loss_goes_down(model, tmp_path):
    changes = {"learning_rate": 0.02, "epochs": 30, "batch_size": 4, "losses__knowledge_regularization__weight": 0.1}
    recipe = small_recipe("krnft", "pocket", tmp_path, **changes)
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS, DIM))
    trainer.train()
    losses = [record["classification_with_negatives"] for record in trainer.history]
    assert len(losses) == 90
    assert sum(losses[-9:]) < 0.3 * sum(losses[:9])


def test_same_recipe_same_bits_whatever_the_global_seed(model, tmp_path):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        recipe = small_recipe("ssf", "pocket", tmp_path, learning_rate=0.01)
        trainer = make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS, DIM))
        state = torch.get_rng_state()
        trainer.train()
        assert torch.equal(torch.get_rng_state(), state)
        found.append((trained(trainer), trainer.history))
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    recipe = small_recipe("ssf", "pocket", tmp_path, learning_rate=0.01, seed=1)
    other = make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS, DIM))
    other.train()
    assert not same(found[0][0], trained(other))


def test_views_are_another_one_every_epoch(model, tmp_path):
    recipe = small_recipe("ssf", "pocket", tmp_path, epochs=3)
    inputs = random_inputs(recipe, LABELS, DIM, views=2)
    positions = torch.tensor([3, 1])
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        batch = inputs.batch(positions, epoch, torch.device("cpu"))
        assert torch.equal(batch.images, inputs.tensors["views"][positions, view])
        assert batch.labels.tolist() == [3, 1]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_step(what, model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path, batch_size=1, checkpoint_every=1, learning_rate=0.01)
    inputs = random_inputs(recipe, LABELS, DIM)
    inputs.rows.add_(50)
    trainer = make_trainer(model, recipe, inputs, tmp_path / "checkpoints")
    bad = int(trainer.plan.positions(5))
    if what == "loss":
        inputs.tensors["negatives"][bad, 1] = torch.nan
    else:
        parameter = next(iter(trainer.parameters.values()))
        calls = iter(range(100))
        parameter.register_hook(lambda gradient: gradient * (torch.inf if next(calls) == 5 else 1))
    seen = []
    trainer.log = lambda values, step: seen.append((step, trained(trainer)))
    message = rf"'ood_negatives' is nan on batch \[{bad + 50}\]" if what == "loss" else rf"batch \[{bad + 50}\]"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train()
    assert seen[-1][0] == 5
    assert same(seen[-1][1], trained(trainer))
    kept = latest_checkpoint(tmp_path / "checkpoints", trainer.digest)
    assert kept.step == 5
    assert same(kept.parameters, trained(trainer))


def test_gradients_are_clipped_to_their_norm(model, tmp_path):
    changes = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "learning_rate": 1.0, "batch_size": 4}
    norms = {}
    for limit in (None, 1e-3):
        recipe = small_recipe("krnft", "pocket", tmp_path, max_grad_norm=limit, **changes)
        trainer = make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS[:4], DIM))
        before = trained(trainer)
        trainer.train()
        after = trained(trainer)
        norms[limit] = float(torch.cat([(after[name] - before[name]).flatten() for name in before]).norm())
    assert norms[None] > 0.01
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_follows_the_schedule(model, tmp_path):
    changes = {
        "schedule": "cosine",
        "warmup_epochs": 1,
        "warmup_learning_rate": 1e-3,
        "learning_rate": 0.1,
        "epochs": 3,
    }
    recipe = small_recipe("ssf", "pocket", tmp_path, **changes)
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS[:4], DIM))
    used = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (used.append(trainer.optimizer.param_groups[0]["lr"]), step())
    trainer.train()
    assert used == [trainer.plan.learning_rate(index) for index in range(6)]
    assert used == [record["learning_rate"] for record in trainer.history]
    assert used[:3] == [1e-3, 1e-3, 0.1]


def test_bf16_keeps_the_adapter_in_fp32_and_stays_near(model, tmp_path):
    found = {}
    for precision in ("no", "bf16"):
        recipe = small_recipe("coop", "pocket", tmp_path, mixed_precision=precision, learning_rate=0.01, epochs=2)
        # Accelerate keeps one state a process.
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        inputs = random_inputs(recipe, LABELS[:4], DIM)
        trainer = make_trainer(copy.deepcopy(model), recipe, inputs, accelerator=accelerator)
        trainer.train()
        assert all(each.dtype == torch.float32 for each in trainer.parameters.values())
        found[precision] = trainer.history[0]["loss"]
    AcceleratorState._reset_state()
    # The text tower ran in bf16, so the loss is near, and not the same.
    assert found["bf16"] != found["no"]
    assert found["bf16"] == pytest.approx(found["no"], rel=0.05)


@pytest.mark.parametrize(("metric", "kept"), [("auroc", 2), ("fpr95", 3)])
def test_best_metric_keeps_the_best_epoch(metric, kept, model, tmp_path):
    recipe = small_recipe("ssf", "pocket", tmp_path, best_metric=metric, eval_every=1, epochs=4, learning_rate=0.01)
    found = [
        {"auroc": 0.5, "fpr95": 0.5},
        {"auroc": 0.9, "fpr95": 0.4},
        {"auroc": 0.7, "fpr95": 0.1},
        {"auroc": 0.9, "fpr95": 0.1},
    ]
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS, DIM), evaluate=evaluations(found))
    seen, logged = {}, {}

    def log(values, step):
        seen[step] = trained(trainer)
        logged.setdefault(step, {}).update(values)

    trainer.log = log
    trainer.train()
    assert [(each["epoch"], each["step"]) for each in trainer.evaluations] == [(1, 6), (2, 12), (3, 18), (4, 24)]
    assert [each["auroc"] for each in trainer.evaluations] == [0.5, 0.9, 0.7, 0.9]
    assert logged[12]["eval_auroc"] == 0.9
    assert same(trained(trainer), seen[6 * kept])
    assert not same(seen[12], seen[18])


def test_evaluations_are_as_often_as_asked(model, tmp_path):
    for every, epochs in ((0, [5]), (2, [2, 4, 5])):
        recipe = small_recipe("ssf", "pocket", tmp_path, eval_every=every, epochs=5)
        inputs = random_inputs(recipe, LABELS[:4], DIM)
        trainer = make_trainer(copy.deepcopy(model), recipe, inputs, evaluate=lambda: {"auroc": 0.5})
        trainer.train()
        assert [each["epoch"] for each in trainer.evaluations] == epochs


def test_adapters_that_cannot_be_trained_so(model, tmp_path):
    target = r"clip\.{}_model\..*\.self_attn\.(q_proj|v_proj)"
    recipe = small_recipe("clip-lora", "pocket", tmp_path, adapter__target_modules=target.format("vision"))
    recipe.inputs = "views"
    with pytest.raises(RecipeError, match=r"changes the vision tower .* set inputs to pixels"):
        make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS, DIM))
    recipe.adapter["target_modules"] = target.format("text")
    make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS, DIM)).train()

    recipe.adapter["target_modules"] = "no_such_module"
    with pytest.raises(RecipeError, match=r"does not fit the model.*no_such_module"):
        make_trainer(copy.deepcopy(model), recipe, random_inputs(recipe, LABELS, DIM))


def test_no_epoch_leaves_the_adapter_as_it_starts(model, tmp_path):
    recipe = small_recipe("krnft", "pocket", tmp_path, epochs=0)
    trainer = make_trainer(model, recipe, random_inputs(recipe, LABELS, DIM), tmp_path / "c", evaluate=dict)
    assert isinstance(trainer, Trainer)
    before = trained(trainer)
    trainer.train()
    assert same(before, trained(trainer))
    assert trainer.history == trainer.evaluations == []
