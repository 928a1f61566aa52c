"""A recipe: everything that decides a training run, in one YAML file whose fields the command line can change."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hf_oodclip.adapters import ADAPTERS
from hf_oodclip.errors import RecipeError, unknown_name

from .losses import get_loss

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
        100
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
    split: str | None = _option(None, "Split of the dataset.")
    image_column: str | None = _option(None, "Column of the images; found when there is one.")
    label_column: str | None = _option(None, "Column of the labels; found when there is one.")
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
    micro_batch_size: int | None = _option(None, "Images at once in a process; None takes all. Changes no result.")
    mixed_precision: str = _option("no", "no, bf16 or fp16, for what runs through the towers.")
    max_grad_norm: float | None = _option(None, "Clip the norm of the gradient.")
    seed: int = _option(0, "Seed of shots, crops, order and initialisation.")

    eval_dataset: str | None = _option("rest", "Held-out ID images: `rest` (those not trained on), a source, or None.")
    eval_split: str | None = _option(None, "Its split.")
    ood_datasets: list[str] = _option([], "OOD images for the evaluation.")
    eval_scores: list[str] | None = _option(None, "Scores to evaluate; None takes the one saved.")
    eval_every: int = _option(0, "Evaluate every so many epochs; 0: before and after only.")
    eval_limit: int = _option(2000, "At most so many images of each evaluation set.")
    best_metric: str | None = _option(None, "Keep the epoch with the best `id_accuracy`, `auroc` or `fpr95`.")
    calibration_dataset: str | None = _option(
        None, "Images to calibrate on: `rest`, a source, or None for not at all."
    )
    target_tpr: float = _option(0.95, "Share of ID images the calibration accepts.")
    checkpoint_every: int | None = _option(None, "Steps between checkpoints; None: every epoch.")
    extract_batch_size: int = _option(64, "Images or crops at once when features are made.")
    tracker: str | None = _option("tensorboard", "Tracker of Accelerate (tensorboard, wandb, ...), None for none.")

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            setattr(self, each.name, _coerce(each.name, getattr(self, each.name), hints[each.name]))
        self._check_names()
        for name, least in (("num_crops", 1), ("selected_crops", 1), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("shots", "micro_batch_size", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1 or none, got {getattr(self, name)}.")
        if not 0 < self.epoch_fraction <= 1:
            raise RecipeError(f"epoch_fraction must be in (0, 1], got {self.epoch_fraction}.")
        if not (self.learning_rate >= 0 and math.isfinite(self.learning_rate)):
            raise RecipeError(f"learning_rate must be at least 0 and finite, got {self.learning_rate}.")
        if self.best_metric and self.eval_every < 1:
            raise RecipeError("best_metric needs evaluations during training: set eval_every, such as eval_every 1.")

    def _check_names(self) -> None:
        for what, value, allowed in (
            ("kind of inputs", self.inputs, INPUTS),
            ("condition", self.condition, CONDITIONS),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16")),
            ("adapter type", self.adapter.get("type"), (*ADAPTERS, "lora")),
            ("best_metric", self.best_metric or "auroc", ("id_accuracy", "auroc", "fpr95")),
        ):
            if value not in allowed:
                raise unknown_name(what, value, allowed)
        if not self.losses:
            raise RecipeError("A recipe needs at least one loss.")
        for name, options in self.losses.items():
            if not isinstance(options, dict) or not isinstance(options.get("weight", 1.0), int | float):
                raise RecipeError(f"losses.{name} must be a mapping with a number as weight, got {options!r}.")
            get_loss(name, **{key: value for key, value in options.items() if key != "weight"})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the YAML file that `load_recipe` reads back."""
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")

    @property
    def digest(self) -> str:
        """Hash of all that decides the result: a run can be resumed with the same digest only."""
        without = {"eval_limit", "extract_batch_size", "micro_batch_size", "name", "description", "tracker"}
        decisive = {key: value for key, value in self.to_dict().items() if key not in without}
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=8).hexdigest()


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Return a value of the type of a field: YAML reads 1e-4 as a text, and 1 where 1.0 is meant."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(typing.get_origin(each) or each for each in allowed)
    if isinstance(value, plain) and not (isinstance(value, bool) and bool not in plain):
        return value
    if float in plain and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)
    if list in plain and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if str in plain and isinstance(value, int | float):
        return str(value)
    names = " or ".join("none" if each is types.NoneType else each.__name__ for each in plain)
    raise RecipeError(f"{name} must be {names}, got {value!r}.")


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
        overrides: New values by field name; dots reach into mappings (`losses.ebm.weight`).

    Raises:
        UnknownNameError: No such recipe or field; the message suggests the nearest.
        RecipeError: The file is no recipe, or a value is of the wrong type.

    Example:
        >>> load_recipe("krnft", {"learning_rate": "1e-4", "adapter.variant": "uni"}).adapter["variant"]
        'uni'
    """
    path = Path(name)
    if str(name) in list_recipes():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise unknown_name("recipe", str(name), list_recipes(), "Or give the path of a YAML file.")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {error}.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name} must hold fields and values, got {type(content).__name__}.")
    content.setdefault("name", path.stem)
    return override(content, overrides or {})


def override(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe of some fields and values, with others put in their place."""
    values = json.loads(json.dumps(content))
    known = [each.name for each in dataclasses.fields(Recipe)]
    for name, value in overrides.items():
        first, *rest = name.replace("-", "_").split(".")
        if first not in known:
            raise unknown_name("field of a recipe", first, known)
        if not rest:
            values[first] = value
            continue
        present = values.get(first)
        target = values[first] = dict(present) if isinstance(present, dict) else {}
        _put(target, rest, value)
    for name in values:
        if name not in known:
            raise unknown_name("field of a recipe", name, known)
    return Recipe(**values)


def _put(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        inner = target.get(name)
        target[name] = inner = dict(inner) if isinstance(inner, dict) else {}
        target = inner
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            # YAML reads 1e-4 as a text.
            value = float(value) if "e" in value.lower() else value
    if value is None and len(path) == 1:
        target.pop(path[-1], None)
    else:
        target[path[-1]] = value
