"""How the pocket CLIP is pretrained, as data: `recipes/<name>.yaml`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_oodclip.errors import RecipeError, unknown_name

__all__ = ["ImageStage", "PocketRecipe", "Teacher", "Tower", "list_pocket_recipes", "load_pocket_recipe"]

FOLDER = Path(__file__).with_name("recipes")


@dataclass(frozen=True)
class Tower:
    """Shape of a transformer tower; heads are 64 wide in the vision tower, 32 in the text tower."""

    width: int
    layers: int


@dataclass(frozen=True)
class ImageStage:
    """A part of the image training.

    Args:
        pixels: Side of the images.
        steps, batch_size: Optimizer steps, and images a step over all processes.
        kept_patches: Share of the patches the tower sees; the others are dropped at random.
        restart: Share of the learning rate that it starts anew with, to go on after a finished training, in a new
            cycle; 0 goes on with the stage before. The towers at the ends of cycles are averaged.
    """

    pixels: int
    steps: int
    batch_size: int
    kept_patches: float = 1.0
    restart: float = 0.0

    def work(self, patch_size: int) -> float:
        """Return what the stage costs, in patches."""
        return self.steps * self.batch_size * (self.kept_patches * (self.pixels // patch_size) ** 2 + 1)


@dataclass(frozen=True)
class Teacher:
    """A larger vision tower that is trained first, for the small one to follow."""

    tower: Tower
    stages: tuple[ImageStage, ...]
    weight: float = 0.5


@dataclass(frozen=True)
class PocketRecipe:
    """All settings of a pretraining.

    Args:
        description: What it is for, and what it takes.
        seed: Fixes initial weights, draws and order.
        vision, text: Shapes of the towers.
        patch_size, projection_dim, vocab_size: Sizes of the checkpoint; images have 64 pixels a side.
        lexicon: How many texts of each kind.
        text_steps, text_batch_size, text_learning_rate: The text stage.
        more_text_steps: Steps of reading on after the images, with captions pinned.
        stages: The image stages, one after the other.
        learning_rate, weight_decay: Of the image stages: Muon for matrices, AdamW for the rest.
        warmup_steps, decay_from: The rate rises over the first, and falls to 0 from that share of the work on; so
            again after a restart.
        average: Decay of the running mean of the weights that is exported; 0 exports the last weights.
        num_distractors: Nouns that no image shows, a step.
        parent_weight: Weight of the loss for parents of a class.
        mix: Share of the batches that are mixed (half mixup, half CutMix).
        shuffled: Share of the images that are cut into tiles and shuffled, as examples of none of the classes.
        smallest_crop: Least share of an image that a crop keeps.
        teacher: A larger tower to learn from, or None.
    """

    description: str
    stages: tuple[ImageStage, ...]
    text_steps: int
    seed: int = 0
    vision: Tower = Tower(192, 6)
    text: Tower = Tower(160, 4)
    patch_size: int = 8
    projection_dim: int = 256
    vocab_size: int = 5600
    lexicon: dict[str, int] = field(
        default_factory=lambda: {
            "nouns": 42000,
            "common": 14000,
            "adjectives": 6000,
            "glosses": 9000,
            "pairs": 9000,
        }
    )
    text_batch_size: int = 512
    text_learning_rate: float = 2e-3
    more_text_steps: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: float = 0.35
    average: float = 0.998
    num_distractors: int = 256
    parent_weight: float = 0.4
    mix: float = 0.0
    shuffled: float = 0.0
    smallest_crop: float = 0.35
    teacher: Teacher | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    def shorter(self) -> list[PocketRecipe]:
        """Return the recipes that this one goes on from: its stages before each restart, longest first."""
        places = [place for place, stage in enumerate(self.stages) if place and stage.restart]
        return [dataclasses.replace(self, stages=self.stages[:place]) for place in reversed(places)]


def list_pocket_recipes() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_pocket_recipe(name_or_path: str | Path) -> PocketRecipe:
    """Return a recipe by its name, or from a YAML file.

    Raises:
        UnknownNameError: No such recipe, or field.
        RecipeError: The file is malformed.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in list_pocket_recipes():
            raise unknown_name("pocket recipe", str(name_or_path), list_pocket_recipes())
        path = FOLDER / f"{name_or_path}.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = [each.name for each in dataclasses.fields(PocketRecipe)]
        if wrong := [name for name in values if name not in known]:
            raise unknown_name("field of a pocket recipe", wrong[0], known)
        return PocketRecipe(**_nested(values))
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is no recipe of the pocket CLIP: {error}.") from error


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    values = dict(values)
    for name in ("vision", "text"):
        if name in values:
            values[name] = Tower(**values[name])
    values["stages"] = tuple(ImageStage(**each) for each in values["stages"])
    if values.get("teacher"):
        teacher = values["teacher"]
        stages = tuple(ImageStage(**each) for each in teacher["stages"])
        values["teacher"] = Teacher(Tower(**teacher["tower"]), stages, teacher.get("weight", Teacher.weight))
    return values
