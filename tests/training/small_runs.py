"""Recipes and inputs so small that a whole run takes a second."""

import torch
from accelerate import Accelerator
from hf_oodclip.training.inputs import Inputs
from hf_oodclip.training.recipe import Recipe, load_recipe
from hf_oodclip.training.trainer import Trainer, add_adapter

WORDS = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")
# Of the tiny CLIP.
DIM = 24
CLASSES = ["tabby cat", "police van", "acorn", "desk"]


def words_file(folder):
    """A file of negatives, so that nothing needs mining."""
    path = folder / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return str(path)


def small_recipe(name, base, folder, **changes) -> Recipe:
    """A shipped recipe on 4 classes of the embedded images, one shot each, few crops and epochs; dots as `__`."""
    recipe = load_recipe(name)
    small = {
        "base": base,
        "dataset": "embedded",
        "split": "calibration",
        "classes": CLASSES,
        "shots": 1,
        "num_crops": 4,
        "selected_crops": 2,
        "epochs": 1,
        "epoch_fraction": 1.0,
        "batch_size": 2,
        "warmup_epochs": 0,
        "eval_dataset": "rest",
        "eval_split": None,
        "ood_datasets": [],
        "eval_limit": 8,
        "calibration_dataset": None,
        "num_negatives": None,
        "tracker": None,
    }
    if recipe.negatives is not None:
        small["negatives"] = words_file(folder)
    return load_recipe(name, {**small, **{field.replace("__", "."): value for field, value in changes.items()}})


def random_inputs(recipe, labels, dim, *, crops=2, views=2, seed=0, dtype=torch.float32) -> Inputs:
    """Inputs of random features, one an entry of `labels`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(len(labels), *shape, dim, generator=generator, dtype=dtype)

    tensors = {
        "image_embeds": random(),
        "positives": random(crops),
        "negatives": random(crops),
        "views": random(views),
    }
    return Inputs(recipe, torch.tensor(labels), torch.arange(len(labels)), tensors, {})


def make_trainer(model, recipe, inputs, folder=None, accelerator=None, **options) -> Trainer:
    """A trainer on the CPU, with the adapter put on the model first."""
    add_adapter(model, recipe)
    return Trainer(model, recipe, inputs, accelerator or Accelerator(cpu=True), folder, **options)


def trained(trainer):
    """What is trained, as it is now."""
    return {name: each.detach().clone() for name, each in trainer.parameters.items()}


def same(one, other):
    """Whether two sets of parameters are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def evaluations(values):
    """An evaluate function with a list of what it will find."""
    remaining = iter(values)
    return lambda: dict(next(remaining))
