"""A recipe: everything that decides a training run, in one YAML file whose fields the command line can change."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hf_oodclip.errors import RecipeError, unknown_name
from hf_oodclip.scores import get_score
from hf_oodclip.templates import resolve_templates
from hf_oodclip.text_bank import Average

from .adapter_options import adapter_config
from .augmentation import AUGMENTATIONS
from .losses import get_loss
from .recipe_values import coerce, read_value, read_yaml, write_yaml

__all__ = ["INPUTS", "Recipe", "list_recipes", "load_recipe", "override"]

INPUTS = {
    "crops": "the crops most and least like the label, mined from each image",
    "views": "one random crop of each image an epoch",
    "images": "the images themselves",
    "pixels": "one random crop an epoch, through the vision tower every time (for adapters inside the towers)",
}
CONDITIONS = {
    "self": "every crop moves the text features it is compared with",
    "best_crop": "the crop most like the label moves them for all crops of its image",
    "image": "the uncropped image moves them for all its crops",
}
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine")

_LEAST = {
    1: (
        "batch_size checkpoint_every eval_limit extract_batch_size micro_batch_size num_crops num_negatives "
        "selected_crops shots"
    ),
    0: (
        "epochs eval_every final_learning_rate learning_rate max_grad_norm momentum warmup_epochs "
        "warmup_learning_rate weight_decay"
    ),
}
# What a run can be resumed with another value of: its adapter and metrics stay the same, but for rounding.
_INDECISIVE = ("name", "description", "extract_batch_size", "micro_batch_size", "checkpoint_every", "tracker")


def _option(default: Any, help: str) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: json.loads(json.dumps(default)), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """All settings of a training run; the YAML files in `training/recipes/` fill it.

    Example:
        >>> recipe = load_recipe("krnft")
        >>> recipe.losses["knowledge_regularization"]["weight"]
        100.0
    """

    name: str = _option("custom", "Name of the recipe.")
    description: str = _option("", "What it is and where it comes from.")

    base: str = _option("pocket", "Checkpoint to adapt: `pocket`, a folder or a Hub id.")
    templates: str | list[str] | None = _option(None, "Prompt templates of the labels; None takes the negatives' own.")
    template_average: str = _option("normalized", "How a prompt ensemble is averaged.")
    negatives: str | None = _option("krnft", "Mining method or file of negatives; None for none.")
    num_negatives: int | None = _option(None, "Negatives to mine; None takes the method's own number.")
    score: str | None = _option(None, "Score saved with the adapter; None takes the model's default.")
    adapter: dict[str, Any] = _option({"type": "nft"}, "`type` and options of the adapter.")

    dataset: str = _option("embedded", "Images to train on: `embedded`, folder, parquet file, Hub id.")
    dataset_config: str | None = _option(None, "Configuration of a dataset on the Hub that has several.")
    dataset_revision: str | None = _option(None, "Branch, tag or commit of a dataset on the Hub.")
    split: str | None = _option(None, "Split of the dataset.")
    image_column: str | None = _option(None, "Column of the images; found when there is one.")
    label_column: str | None = _option(None, "Column of the labels; found when there is one.")
    label_names: list[str] | None = _option(
        None, "Names of labels that are bare numbers, in their order: a list, or a text file with one a line."
    )
    streaming: bool = _option(False, "Read the dataset as a stream.")
    classes: list[str] | None = _option(None, "Train on these classes only.")
    shots: int | None = _option(4, "Images a class; None takes all.")

    inputs: str = _option("crops", "; ".join(f"`{name}`: {what}" for name, what in INPUTS.items()))
    num_crops: int = _option(256, "Crops an image to choose from, or views an image.")
    selected_crops: int = _option(32, "Crops kept of each kind.")
    augmentation: str = _option("paper", "Kind of random crops, see training/crops.py.")
    crop_template: str = _option("a photo of a {}.", "Template of the label that crops are compared with.")
    condition: str = _option("self", "; ".join(f"`{name}`: {what}" for name, what in CONDITIONS.items()))

    losses: dict[str, dict[str, Any]] = _option({"classification": {"weight": 1.0}}, "Weight and options by loss.")
    optimizer: str = _option("adamw", "adamw, adam or sgd.")
    learning_rate: float = _option(1e-4, "Peak learning rate.")
    weight_decay: float = _option(0.01, "Weight decay.")
    momentum: float = _option(0.9, "Momentum of sgd.")
    schedule: str = _option("constant", "constant or cosine.")
    final_learning_rate: float = _option(0.0, "Where the cosine ends.")
    warmup_epochs: int = _option(0, "Epochs at a constant small learning rate.")
    warmup_learning_rate: float = _option(1e-5, "That learning rate.")
    epochs: int = _option(3, "Passes over the images.")
    epoch_fraction: float = _option(1.0, "Share of the batches an epoch takes: floor(share * batches) + 1 if below 1.")
    batch_size: int = _option(4, "Images a step, over all processes.")
    micro_batch_size: int | None = _option(None, "Images at once in a process; None takes all. Changes rounding only.")
    mixed_precision: str = _option("no", "no, bf16 or fp16, for what runs through the towers.")
    max_grad_norm: float | None = _option(None, "Clip the norm of the gradient.")
    seed: int = _option(0, "Seed of shots, crops, order and initialisation.")

    eval_dataset: str | None = _option("rest", "Held-out ID images: `rest` (those not trained on), a source, or None.")
    eval_split: str | None = _option(None, "Its split.")
    ood_datasets: list[str] = _option([], "OOD images for the evaluation; source#split names a split.")
    eval_scores: list[str] | None = _option(None, "Scores to evaluate; None takes the one saved.")
    eval_every: int = _option(0, "Evaluate every so many epochs; 0: before and after only.")
    eval_limit: int = _option(2000, "At most so many images of each evaluation set.")
    best_metric: str | None = _option(None, "Keep the epoch with the best `id_accuracy`, `auroc` or `fpr95`.")
    calibration_dataset: str | None = _option(
        None, "Images to calibrate on: `rest`, a source, or None for not at all."
    )
    calibration_split: str | None = _option(None, "Its split.")
    target_tpr: float = _option(0.95, "Share of ID images the calibration accepts.")
    checkpoint_every: int | None = _option(None, "Steps between checkpoints; None: every epoch.")
    extract_batch_size: int = _option(64, "Images or crops at once when features are made.")
    tracker: str | None = _option("tensorboard", "Tracker of Accelerate (tensorboard, wandb, ...), None for none.")

    def __post_init__(self) -> None:
        if isinstance(self.label_names, str) and Path(self.label_names).is_file():
            # The names, not the file: the saved recipe must hold all that the run was.
            self.label_names = Path(self.label_names).read_text(encoding="utf-8").splitlines()
        hints = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            setattr(self, each.name, coerce(each.name, getattr(self, each.name), hints[each.name]))
        self._check_names()
        for least, names in _LEAST.items():
            for name in names.split():
                if getattr(self, name) is not None and getattr(self, name) < least:
                    raise RecipeError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.epoch_fraction <= 1:
            raise RecipeError(f"epoch_fraction must be in (0, 1], got {self.epoch_fraction}.")
        if not 0 < self.target_tpr < 1:
            raise RecipeError(f"target_tpr must be in (0, 1), got {self.target_tpr}.")
        if self.best_metric and self.eval_every < 1:
            raise RecipeError("best_metric needs evaluations during training: set eval_every, such as eval_every 1.")

    def _check_names(self) -> None:
        for what, value, allowed in (
            ("kind of inputs", self.inputs, INPUTS),
            ("template_average", self.template_average, typing.get_args(Average)),
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("condition", self.condition, CONDITIONS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16")),
            ("best_metric", self.best_metric or "auroc", ("id_accuracy", "auroc", "fpr95")),
        ):
            if value not in allowed:
                raise unknown_name(what, value, allowed)
        for score in [self.score, *(self.eval_scores or [])]:
            if score is not None:
                get_score(score)
        if self.templates is not None:
            resolve_templates(self.templates)
        adapter_config(self.adapter)
        if not self.losses:
            raise RecipeError("A recipe needs at least one loss.")
        for name, options in self.losses.items():
            if not isinstance(options, dict):
                raise RecipeError(f"losses.{name} must be a mapping of weight and options, got {options!r}.")
            options["weight"] = coerce(f"losses.{name}.weight", options.get("weight", 1.0), float)
            get_loss(name, **{key: value for key, value in options.items() if key != "weight"})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the YAML file that `load_recipe` reads back."""
        Path(path).write_text(write_yaml(self.to_dict()), encoding="utf-8")

    @property
    def digest(self) -> str:
        """Hash of all that decides the result: a run can be resumed with the same digest only."""
        decisive = {key: value for key, value in self.to_dict().items() if key not in _INDECISIVE}
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=8).hexdigest()


def _folder() -> Any:
    return files("hf_oodclip.training") / "recipes"


def list_recipes() -> list[str]:
    """Return the names that `load_recipe` and `--recipe` accept.

    Example:
        >>> "krnft" in list_recipes()
        True
    """
    return sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe by name, or from a YAML file, with some fields changed.

    Args:
        name: A name from `list_recipes()`, or the path of a YAML file.
        overrides: New values by field name; dots reach into mappings (`losses.ebm.weight`), where None removes.

    Raises:
        UnknownNameError: No such recipe, field, adapter, loss or option; the message suggests the nearest.
        RecipeError, AdapterError, LossError: The file is no recipe, or a value cannot be used.

    Example:
        >>> load_recipe("krnft", {"learning_rate": "1e-4", "adapter.variant": "uni"}).adapter["variant"]
        'uni'
    """
    path = Path(name)
    if str(name) in list_recipes():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        raise unknown_name("recipe", str(name), list_recipes(), "Or give the path of a YAML file.")
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name} must hold fields and values, got {type(content).__name__}.")
    content.setdefault("name", path.stem)
    return override(content, overrides or {})


def override(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of some fields and values, with others put in their place."""
    values = copy.deepcopy(dict(content))
    known = [each.name for each in dataclasses.fields(Recipe)]
    for name, value in overrides.items():
        first, *rest = name.replace("-", "_").split(".")
        if first not in known:
            raise unknown_name("field of a recipe", first, known)
        if not rest:
            values[first] = value
            continue
        target = values
        for step in (first, *rest[:-1]):
            present = target.get(step)
            target[step] = target = dict(present) if isinstance(present, dict) else {}
        target[rest[-1]] = read_value(value) if isinstance(value, str) else value
        if target[rest[-1]] is None:
            del target[rest[-1]]
    for name in values:
        if name not in known:
            raise unknown_name("field of a recipe", name, known)
    return Recipe(**values)
