"""What adapters do on real images: base, unseen and restyled classes against near and far OOD sets, over seeds.

    python evaluation/prove_adapters.py --data DIR --output proof

`DIR` holds parquet files in the image format of 🤗 datasets: `tiny-imagenet-200-val.parquet` (50 images of each of
200 classes, column `label`), `textures-dtd10-128px.parquet`, `digits-uci-32px.parquet`, `clothing-64px-test.parquet`.
A seed draws 20 base and 20 new classes of those the pocket CLIP was trained for. Shots come from the first 16
validation images of a class, tests from the other 34: pretraining has seen none of them. Negatives are mined for the
base classes, and again for the new ones, where class-agnostic adapters are used as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
import yaml
from accelerate import Accelerator
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.training.data import ImageSet, load_image_set
from hf_oodclip.training.few_shot import few_shot
from hf_oodclip.training.inputs import make_inputs
from hf_oodclip.training.monitor import score_inputs_of
from hf_oodclip.training.pocket.lexicon import Classes, read_classes
from hf_oodclip.training.recipe import Recipe, load_recipe
from hf_oodclip.training.run import load_model
from hf_oodclip.training.trainer import Trainer, add_adapter
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from transformers.utils import logging

from hf_oodclip import get_score
from hf_oodclip.dataset_images import image_reader
from hf_oodclip.errors import AdapterError
from hf_oodclip.feature_store import FeatureStore
from hf_oodclip.metrics import accuracy, auroc, fpr95_id_pos

NUM_CLASSES, NUM_SHOTS, FIRST_IMAGES = 20, 4, 16
FAR_SETS = {
    "textures": "textures-dtd10-128px.parquet",
    "digits": "digits-uci-32px.parquet",
    "clothing": "clothing-64px-test.parquet",
}
SCORES = {
    "neglabel": ("neglabel", {"num_groups": 1}),
    "mcm": ("mcm", {}),
    "energy": ("energy", {}),
    "delta_energy, τ=0.01": ("delta_energy", {}),
    "delta_energy, τ=1": ("delta_energy", {"temperature": 1.0}),
    "delta_energy, τ=0.1": ("delta_energy", {"temperature": 0.1}),
    "delta_energy, τ=1, c=2": ("delta_energy", {"temperature": 1.0, "top_c": 2}),
}
# Fields changed from a named recipe: all methods get the same shots and the negatives of krnft-pocket.
NEGATIVES = {"negatives": "neglabel", "num_negatives": 2000, "templates": "photo"}
# The same random crops for all methods that take one an epoch.
VIEWS = {"num_crops": 30}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("krnft-pocket", {"epochs": 0}),
    "KR-NFT": ("krnft-pocket", {}),
    "NFT without KR": ("krnft-pocket", {"losses.knowledge_regularization.weight": 0}),
    "NFT without conditioning": ("krnft-pocket", {"adapter.conditional": False}),
    "CoOp from random words": ("coop", VIEWS),
    "CoOp from words": ("coop", {**VIEWS, "adapter.context_words": "a photo of a"}),
    "CoCoOp": ("cocoop", VIEWS),
    "EBM": ("ebm", VIEWS),
    "EBM (identity)": ("ebm", {**VIEWS, "losses.ebm.phi": "identity"}),
    "EBM (softplus)": ("ebm", {**VIEWS, "losses.ebm.phi": "softplus"}),
    "EBM (softplus) from random words": (
        "ebm",
        {**VIEWS, "losses.ebm.phi": "softplus", "adapter.context_words": None, "adapter.num_context": 16},
    ),
    "TaskRes": ("taskres", VIEWS),
}


# The scores a method is made for, for the short table.
OWN_SCORES = {
    "zero-shot": tuple(SCORES),
    "CoOp from random words": ("neglabel", "mcm"),
    "CoOp from words": ("neglabel", "mcm", "delta_energy, τ=1"),
    "CoCoOp": ("neglabel", "mcm"),
    **dict.fromkeys((name for name in METHODS if name.startswith("EBM")), ("neglabel", "delta_energy, τ=1")),
    "TaskRes": ("neglabel", "mcm"),
}


def restyled(image: Image.Image, style: str) -> Image.Image:
    """Return an image in another style: drained of colour, blurred, or compressed hard."""
    if style == "colour":
        return ImageEnhance.Color(image).enhance(0.1)
    if style == "blur":
        return image.filter(ImageFilter.GaussianBlur(1.2))
    coded = BytesIO()
    image.save(coded, "JPEG", quality=8)
    return Image.open(coded).convert("RGB")


STYLES = ("colour", "blur", "jpeg")


class Sets:
    """The image sets of one seed, and their features."""

    def __init__(self, data: Path, seed: int, store: FeatureStore, classes: Classes) -> None:
        self.store = store
        validation = load_image_set(str(data / "tiny-imagenet-200-val.parquet"))
        seen = list(classes.seen.values())
        names = [seen[index] for index in torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))]
        self.base, self.new = names[:NUM_CLASSES], names[NUM_CLASSES : 2 * NUM_CLASSES]
        self.tests: dict[str, ImageSet] = {}
        for group, chosen in (("base", self.base), ("new", self.new)):
            first, last = _halves(validation.of_classes(chosen))
            self.tests[group] = last
            if group == "base":
                self.shots, _ = few_shot(first, NUM_SHOTS, seed)
        self.oods: dict[str, Any] = {"held-out classes": validation.of_classes(list(classes.held_out.values())).images}
        self.oods |= {
            name: load_image_set(str(data / file), label_column="").images for name, file in FAR_SETS.items()
        }
        read = image_reader(self.tests["base"].images)
        base = [read(row) for row in range(len(self.tests["base"]))]
        self.styles = {style: [restyled(image, style) for image in base] for style in STYLES}

    def features(self, model: Any) -> dict[str, Tensor]:
        """Return the image embeddings of all sets: the vision tower is the same for all methods."""
        sets = {"base": self.tests["base"].images, "new": self.tests["new"].images, **self.styles, **self.oods}
        return {name: self.store.image_features(model, images).image_embeds for name, images in sets.items()}


def _halves(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Return the first images of each class, and the others."""
    seen: dict[int, int] = {}
    first, last = [], []
    for row, label in enumerate(images.labels or []):
        seen[label] = seen.get(label, 0) + 1
        (first if seen[label] <= FIRST_IMAGES else last).append(row)
    return images.select(first), images.select(last)


def measure(model: Any, sets: Sets, features: dict[str, Tensor], groups: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield one record a group of ID images, OOD set and score."""
    inputs = {name: score_inputs_of(model, features[name]) for name in (*groups, *sets.oods)}
    labels = {"new": sets.tests["new"].labels, "base": sets.tests["base"].labels}
    for key, (name, options) in SCORES.items():
        score = get_score(name, **options)
        values = {each: torch.cat([score(part) for part in parts]).numpy() for each, parts in inputs.items()}
        for group in groups:
            predictions = torch.cat([part.similarity.argmax(-1) for part in inputs[group]])
            right = labels["new" if group == "new" else "base"]
            for ood in sets.oods:
                yield {
                    "group": group,
                    "score": key,
                    "ood": ood,
                    "id_accuracy": accuracy(predictions.numpy(), torch.tensor(right).numpy()),
                    "auroc": auroc(values[group], values[ood]),
                    "fpr95": fpr95_id_pos(values[group], values[ood]),
                }


def run_method(name: str, sets: Sets, seed: int, changes: dict[str, Any]) -> tuple[list[dict[str, Any]], float]:
    """Train one method on the shots of a seed; return its records and the seconds of training."""
    recipe_name, own = METHODS[name]
    options: dict[str, Any] = {**NEGATIVES, "seed": seed, "shots": NUM_SHOTS, **own, **changes}
    if recipe_name == "taskres":
        options.pop("templates")
    recipe: Recipe = load_recipe(recipe_name, options)
    model = load_model(recipe, sets.base)
    model.set_score(None)
    seconds = 0.0
    if recipe.epochs:
        inputs = make_inputs(recipe, model, sets.shots, sets.store)
        add_adapter(model, recipe)
        trainer = Trainer(model, recipe, inputs, Accelerator(cpu=True))
        trainer.train()
        seconds = trainer.seconds
    model.eval()
    features = sets.features(model)
    records = list(measure(model, sets, features, ("base", *STYLES)))
    try:
        model.set_labels(sets.new)
    except AdapterError:
        # Class-specific: it has nothing to say about other classes.
        return records, seconds
    return records + list(measure(model, sets, features, ("new",))), seconds


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds, of means over OOD sets."""
    rows: dict[tuple[str, str, str, str], dict[int, list[dict[str, Any]]]] = {}
    for record in records:
        for which in ("all", "near" if record["ood"] == "held-out classes" else "far"):
            place = rows.setdefault((record["method"], record["score"], record["group"], which), {})
            place.setdefault(record["seed"], []).append(record)
    summary = []
    for (method, score, group, which), by_seed in rows.items():
        row: dict[str, Any] = {"method": method, "score": score, "group": group, "ood": which, "seeds": len(by_seed)}
        for metric in ("id_accuracy", "auroc", "fpr95"):
            values = [100 * mean(record[metric] for record in found) for found in by_seed.values()]
            row[metric] = mean(values)
            row[f"{metric}_std"] = stdev(values) if len(values) > 1 else 0.0
        summary.append(row)
    return summary


def markdown(summary: list[dict[str, Any]]) -> str:
    """Return the table of the README: one row a method and score."""
    found = {(row["method"], row["score"], row["group"], row["ood"]): row for row in summary}
    lines = [
        "| method, score | base: ID acc | base: AUROC | base: FPR95 | near FPR95 | far FPR95 | new: ID acc "
        "| new: AUROC | new: FPR95 | acc, harmonic mean | styles: ID acc | styles: FPR95 |",
        "|---|" + "---:|" * 11,
    ]

    def cell(row: dict[str, Any] | None, metric: str) -> str:
        return "–" if row is None else f"{row[metric]:.1f} ± {row[f'{metric}_std']:.1f}"

    for method, score in dict.fromkeys((row["method"], row["score"]) for row in summary):
        base, new = (found.get((method, score, group, "all")) for group in ("base", "new"))
        styles = [found[method, score, style, "all"] for style in STYLES if (method, score, style, "all") in found]
        harmonic = "–"
        if base and new:
            harmonic = f"{2 / (1 / base['id_accuracy'] + 1 / new['id_accuracy']):.1f}"
        cells = [
            *(cell(base, metric) for metric in ("id_accuracy", "auroc", "fpr95")),
            cell(found.get((method, score, "base", "near")), "fpr95"),
            cell(found.get((method, score, "base", "far")), "fpr95"),
            *(cell(new, metric) for metric in ("id_accuracy", "auroc", "fpr95")),
            harmonic,
            *(f"{mean(row[metric] for row in styles):.1f}" if styles else "–" for metric in ("id_accuracy", "fpr95")),
        ]
        lines.append(f"| {method}, `{score}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    data: Annotated[Path, typer.Option(help="Folder of the parquet files.")],
    output: Annotated[Path, typer.Option(help="Folder to write records, summary and table to.")],
    seeds: Annotated[int, typer.Option(help="Seeds 0, 1, ... to run.")] = 4,
    methods: Annotated[str, typer.Option(help="Names of methods, by commas.")] = ",".join(METHODS),
    change: Annotated[list[str] | None, typer.Option(help="field=value changed in every recipe.")] = None,
    classes: Annotated[Path | None, typer.Option(help="JSON like training/pocket/classes.json.")] = None,
) -> None:
    """Run the methods on all seeds and print the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known = read_classes(classes)
    changes = {name: yaml.safe_load(value) for name, value in (each.split("=", 1) for each in change or [])}
    output.mkdir(parents=True, exist_ok=True)
    store, start = FeatureStore(), time.monotonic()
    # What an earlier, interrupted run has measured is not measured again.
    earlier = output / "proof.json"
    records = json.loads(earlier.read_text(encoding="utf-8"))["records"] if earlier.exists() else []
    done = {(record["method"], record["seed"]) for record in records}
    for seed in range(seeds):
        wanted = [name.strip() for name in methods.split(",") if (name.strip(), seed) not in done]
        sets = Sets(data, seed, store, known) if wanted else None
        for name in wanted:
            assert sets is not None
            found, seconds = run_method(name, sets, seed, changes)
            records += [{"method": name, "seed": seed, "training_seconds": seconds, **each} for each in found]
            typer.echo(f"seed {seed}, {name}: trained in {seconds:.1f} s, {time.monotonic() - start:.0f} s so far")
            results = {"records": records, "summary": summarise(records), "environment": describe_environment(seeds)}
            (output / "proof.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    order = list(METHODS)
    summary = summarise(sorted(records, key=lambda record: order.index(record["method"])))
    (output / "table-all.md").write_text(markdown(summary), encoding="utf-8")
    own = [row for row in summary if row["score"] in OWN_SCORES.get(row["method"], ("neglabel",))]
    table = markdown(own)
    (output / "table.md").write_text(table, encoding="utf-8")
    (output / "summary.json").write_text(_without_records(own, describe_environment(seeds)), encoding="utf-8")
    typer.echo(table)


def _without_records(summary: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return what is worth keeping as JSON, one line a row."""
    rounded = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        for row in summary
    ]
    rows = ",\n".join(json.dumps(row) for row in rounded)
    return f'{{"environment": {json.dumps(environment)},\n"summary": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    typer.run(main)
