"""What small CLIP checkpoints know: accuracy, OOD detection, speed and size, side by side.

    python evaluation/compare_pocket.py --data DIR --checkpoint one=FOLDER --checkpoint two=FOLDER --output pocket.json

`DIR` holds parquet files in the image format of 🤗 datasets: `tiny-imagenet-200-val.parquet`,
`cifar10-test2k.parquet`, and the far OOD sets of `prove_adapters.py`, whose seeds of 20 ID classes this program
shares. All figures are zero-shot. A checkpoint is a plain CLIP: accuracy and speed are measured with transformers
alone. `--into README.md` puts the table between that file's comment lines `pocket comparison`.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

import torch
import typer
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.evaluation.prove_adapters import Sets, run_method
from hf_oodclip.training.data import load_image_set
from hf_oodclip.training.pocket.export import measure_checkpoint
from hf_oodclip.training.pocket.images import Images, load_images
from hf_oodclip.training.pocket.lexicon import Classes, read_classes
from transformers import AutoConfig, AutoImageProcessor, CLIPModel
from transformers.utils import logging

from hf_oodclip.errors import DataError
from hf_oodclip.feature_store import FeatureStore

START, END = "<!-- pocket comparison -->", "<!-- end of pocket comparison -->"
SCORES = ("mcm", "energy", "neglabel")
# Each seed draws 20 base and 20 new classes; without training one is as good as the other.
GROUPS = ("base", "new")
ACCURACIES = {
    "seen_top1": "170 seen classes, top-1",
    "seen_top5": "170 seen classes, top-5",
    "held_out_top1": "30 held-out classes among themselves, top-1 (chance 3.3)",
    "held_out_top5": "30 held-out classes among themselves, top-5",
    "all_top1": "all 200 jointly, top-1",
    "cifar10_top1": "CIFAR-10, top-1 (chance 10)",
}


def measure_accuracy(folder: Path, classes: Classes, validation: Images, data: Path) -> dict[str, float]:
    """Return zero-shot accuracies in % in the template "a photo of a {}."."""
    found = measure_checkpoint(folder, classes, validation)
    source = str(data / "cifar10-test2k.parquet")
    names = load_image_set(source).label_names
    if names is None:
        raise DataError(f"{source} has no labels.")
    cifar = dict(zip(names, names, strict=True))
    other = measure_checkpoint(folder, Classes(cifar, {}, frozenset()), load_images([source], cifar))
    found |= {f"cifar10_{name.removeprefix('seen_')}": value for name, value in other.items() if "seen" in name}
    return {name: 100 * value for name, value in found.items()}


def measure_detection(folder: Path, sets: list[Sets]) -> list[dict[str, Any]]:
    """Return one record a seed, group of ID classes, score and OOD set, in %."""
    records = []
    for seed, each in enumerate(sets):
        found, _ = run_method("zero-shot", each, seed, {"base": str(folder)})
        records += [
            {
                "seed": seed,
                "group": record["group"],
                "score": record["score"],
                "ood": record["ood"],
                **{name: 100 * record[name] for name in ("id_accuracy", "auroc", "fpr95")},
            }
            for record in found
            if record["group"] in GROUPS and record["score"] in SCORES
        ]
    return records


@torch.inference_mode()
def measure_speed(folder: Path, batch_size: int = 256, rounds: int = 9) -> dict[str, float]:
    """Return images a second through the image tower, processor not included: median over rounds."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = CLIPModel.from_pretrained(folder, dtype=dtype).eval()
        side = model.config.vision_config.image_size
        pixels = torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            model.get_image_features(pixel_values=pixels)
            times.append(time.perf_counter() - start)
        found[str(dtype).removeprefix("torch.")] = batch_size / median(times[1:])
    return found


def measure(folder: Path, classes: Classes, validation: Images, data: Path, sets: list[Sets]) -> dict[str, Any]:
    """Return everything there is to say of a checkpoint."""
    config, weights = AutoConfig.from_pretrained(folder), folder / "model.safetensors"
    vision = config.vision_config
    return {
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "weight_bytes": weights.stat().st_size,
        "tokenizer_bytes": sum(path.stat().st_size for path in folder.glob("tokenizer*")),
        "patch_grid": vision.image_size // vision.patch_size,
        "image_processor": type(AutoImageProcessor.from_pretrained(folder)).__name__,
        "accuracy": measure_accuracy(folder, classes, validation, data),
        "detection": measure_detection(folder, sets),
        "images_per_second": measure_speed(folder),
        "threads": torch.get_num_threads(),
    }


def mean_auroc(record: dict[str, Any], score: str | None = None, ood: str | None = None) -> tuple[float, float]:
    """Return AUROC over draws, as mean and deviation, of means over the scores and OOD sets that are asked for."""
    draws: dict[tuple[int, str], list[float]] = {}
    for each in record["detection"]:
        if score in (None, each["score"]) and ood in (None, each["ood"]):
            draws.setdefault((each["seed"], each["group"]), []).append(each["auroc"])
    values = [mean(each) for each in draws.values()]
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """Return the table: one row a figure, one column a checkpoint."""
    any_record = next(iter(results.values()))
    rows: list[tuple[str, list[str]]] = [
        (title, [f"{record['accuracy'][name]:.1f}" for record in results.values()])
        for name, title in ACCURACIES.items()
    ]
    oods = list(dict.fromkeys(each["ood"] for each in any_record["detection"]))
    for score in SCORES:
        for ood in (*oods, None):
            cells = ["{:.1f} ± {:.1f}".format(*mean_auroc(record, score, ood)) for record in results.values()]
            rows.append((f"AUROC, `{score}`, {ood or 'mean'}", cells))
    cells = ["{:.1f} ± {:.1f}".format(*mean_auroc(record)) for record in results.values()]
    rows.append(("**mean OOD AUROC**", cells))
    for dtype in any_record["images_per_second"]:
        rows.append(
            (f"images/s, {dtype}", [f"{record['images_per_second'][dtype]:.0f}" for record in results.values()])
        )
    for name, title in (("weight_bytes", "weights, MB"), ("tokenizer_bytes", "tokenizer, MB")):
        rows.append((title, [f"{record[name] / 1e6:.2f}" for record in results.values()]))
    lines = [f"| | {' | '.join(results)} |", "|---|" + "---:|" * len(results)]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)]) + "\n"


def section(results: dict[str, dict[str, Any]]) -> str:
    """Return the table with what it says."""
    draws = len({(each["seed"], each["group"]) for record in results.values() for each in record["detection"]})
    threads = next(iter(results.values()))["threads"]
    return f"""
Zero-shot, in %, on Tiny-ImageNet's validation images and 2,000 CIFAR-10 test images. OOD detection: mean ± deviation
over {draws} draws of 20 ID classes, 2,000 mined negatives. Images/s: the image tower alone on {threads} CPU threads.

{markdown(results)}
"""


def put_into(path: Path, table: str) -> None:
    """Replace what stands between the two comment lines of a file."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise typer.BadParameter(f"{path} has no lines {START} and {END}.")
    path.write_text(f"{before}{start}\n{table}{end}{after}", encoding="utf-8")


def main(
    data: Annotated[Path, typer.Option(help="Folder of the parquet files.")],
    checkpoint: Annotated[list[str], typer.Option(help="NAME=FOLDER of a CLIP checkpoint; repeated.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    seeds: Annotated[int, typer.Option(help="Seeds, each of two draws of 20 ID classes.")] = 4,
    into: Annotated[list[Path] | None, typer.Option(help="File to put the table into; repeated.")] = None,
) -> None:
    """Measure checkpoints and print the table."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folders = {name: Path(folder) for name, _, folder in (each.partition("=") for each in checkpoint)}
    if missing := [str(folder) for folder in folders.values() if not (folder / "config.json").is_file()]:
        raise typer.BadParameter(f"{missing[0]!r} is no checkpoint; give NAME=FOLDER.")
    classes = read_classes()
    both = {**classes.seen, **classes.held_out}
    validation = load_images([str(data / "tiny-imagenet-200-val.parquet")], both)
    store = FeatureStore()
    sets = [Sets(data, seed, store, classes) for seed in range(seeds)]
    results = {name: measure(folder, classes, validation, data, sets) for name, folder in folders.items()}
    record = {"checkpoints": results, "environment": describe_environment(seeds)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in into or ():
        put_into(path, section(results))
    typer.echo(markdown(results))


if __name__ == "__main__":
    typer.run(main)
