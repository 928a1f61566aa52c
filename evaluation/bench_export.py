"""What an ONNX file costs and gains against torch: differences, accuracy, AUROC, size, time, share of ID accepted.

    python evaluation/bench_export.py --output bench-export.json

The pocket CLIP on the embedded images with 2,000 mined negatives and NegLabel: without an adapter, with NFT
(conditional) trained by the recipe `krnft-pocket`, and with CoOp's words trained for 10 epochs by the recipe `coop`
on the same shots, then fixed in the text features. Calibrated at 95 % on the images of the split `calibration` that
trained nothing; all else is measured on other images. Files: float32; int8 with the calibration of the float32 model;
int8 calibrated by itself. Times are of one thread, in turn with torch in the same run, of the pocket CLIP and of a
ViT-B/16 with random weights, 1,000 labels and 10,000 negatives.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
import typer
from hf_oodclip.evaluation.bench_inference import make_vit_b16, words
from hf_oodclip.evaluation.benchmark import load_benchmark, open_set
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.training.data import ImageSet
from hf_oodclip.training.inputs import choose_shots
from hf_oodclip.training.recipe import load_recipe
from hf_oodclip.training.run import load_model, run_recipe
from torch import Tensor

from hf_oodclip import OODCLIPForImageClassification, export_onnx
from hf_oodclip.dataset_images import image_reader
from hf_oodclip.image_features import pixel_values_of
from hf_oodclip.metrics import accuracy, auroc

SEED, BATCH = 0, 32
# What differs from the recipes: the same shots and negatives, no evaluation on the way, and for CoOp fewer epochs.
SAME = {"eval_dataset": None, "ood_datasets": [], "calibration_dataset": None, "seed": SEED}
COOP = {
    **SAME,
    "dataset": "embedded",
    "split": "calibration",
    "shots": 4,
    "negatives": "neglabel",
    "num_negatives": 2000,
    "num_crops": 10,
    "epochs": 10,
}
# A run of some batches: `logits`, `label`, `ood_score`, `p_value` and `is_ood` by name.
Runner = Callable[[Tensor, int], dict[str, np.ndarray]]


def make_models() -> tuple[dict[str, Any], ImageSet]:
    """Return the three models, not calibrated, and the images to calibrate them with."""
    recipe = load_recipe("krnft-pocket", SAME)
    shots = choose_shots(recipe)
    assert shots.rest is not None
    models = {
        "base": load_model(recipe, shots.labels).eval(),
        "NFT (conditional)": run_recipe(recipe).model.eval(),
        "context prompt": run_recipe(load_recipe("coop", COOP)).model.eval(),
    }
    return models, shots.rest


def pixels_of(model: Any, images: ImageSet) -> Tensor:
    """Return the pixel values of a whole set."""
    read = image_reader(images.images)
    return pixel_values_of(model.image_processor, [read(row) for row in range(len(images))])


def torch_runner(model: Any) -> Runner:
    """Return what runs a model by torch."""

    @torch.inference_mode()
    def run(pixels: Tensor, batch: int) -> dict[str, np.ndarray]:
        found = [model(part) for part in pixels.split(batch)]
        scores = torch.cat([each.ood_score for each in found])
        logits = torch.cat([each.logits for each in found])
        outputs = {"logits": logits, "label": logits.argmax(-1), "ood_score": scores}
        if model.calibration is not None:
            outputs |= {"p_value": model.calibration.p_values(scores), "is_ood": model.calibration.is_ood(scores)}
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def onnx_runner(path: Path) -> Runner:
    """Return what runs a file by onnxruntime, in as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor, batch: int) -> dict[str, np.ndarray]:
        parts = [session.run(None, {"pixel_values": part.numpy()}) for part in pixels.split(batch)]
        return {name: np.concatenate(found) for name, *found in zip(names, *parts, strict=True)}

    return run


def export_all(model: Any, folder: Path, calibration: Tensor | None) -> dict[str, Path]:
    """Write the files of a model, by name."""
    files = {
        "onnx float32": export_onnx(model, folder / "float32.onnx"),
        "onnx int8": export_onnx(model, folder / "int8.onnx", int8=True),
    }
    if calibration is not None:
        path = folder / "int8-calibrated.onnx"
        files["onnx int8, calibrated by itself"] = export_onnx(model, path, int8=True, calibration_images=calibration)
    return files


def measure(run: Runner, sets: dict[str, Tensor], labels: list[int], wanted: dict[str, Any] | None) -> dict[str, Any]:
    """Return the figures of one engine on all sets; the first set is the ID one."""
    found = {name: run(pixels, BATCH) for name, pixels in sets.items()}
    id_name, *ood_names = sets
    id_found = found[id_name]
    areas = {name: auroc(id_found["ood_score"], found[name]["ood_score"]) for name in ood_names}
    alone = run(sets[id_name], 1)
    results = {
        "id_accuracy": accuracy(id_found["label"], labels),
        "auroc": {**areas, "mean": statistics.mean(areas.values())},
        "accepted": {name: float(1 - each["is_ood"].mean()) for name, each in found.items()},
        "accepted_id_one_at_a_time": float(1 - alone["is_ood"].mean()),
        "largest_change_of_a_score_by_its_batch": float(np.abs(alone["ood_score"] - id_found["ood_score"]).max()),
        "outputs": found,
    }
    if wanted is not None:
        for output in ("logits", "ood_score"):
            changes = [np.abs(each[output] - wanted[name][output]) for name, each in found.items()]
            results[f"largest_difference_{output}"] = float(max(change.max() for change in changes))
            results[f"mean_difference_{output}"] = float(np.concatenate([c.ravel() for c in changes]).mean())
        count = sum(len(each["label"]) for each in found.values())
        for output in ("label", "is_ood"):
            other = sum(int((each[output] != wanted[name][output]).sum()) for name, each in found.items())
            results[f"other_{output}"] = other / count
    return results


def times(runners: dict[str, Runner], pixels: Tensor, rounds: int) -> dict[str, Any]:
    """Return milliseconds an image at batch 1 and 32, engines in turn, and how much faster than torch they are."""
    results: dict[str, Any] = {}
    for batch in (1, BATCH):
        # At batch 1 a sample is eight calls, or it would be too short to time.
        part = pixels[: 8 if batch == 1 else batch]
        samples: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(rounds + 1):
            for name, run in runners.items():
                start = time.perf_counter()
                run(part, batch)
                if number:
                    samples[name].append(1000 * (time.perf_counter() - start) / len(part))
        medians = {name: statistics.median(values) for name, values in samples.items()}
        results[f"batch {batch}"] = {
            name: {
                "ms_per_image": median,
                "best_ms_per_image": min(samples[name]),
                "times_faster_than_torch": statistics.median(
                    slow / fast for slow, fast in zip(samples["torch"], samples[name], strict=True)
                ),
            }
            for name, median in medians.items()
        }
    return results


def bench_pocket(rounds: int, folder: Path) -> dict[str, Any]:
    """Measure all on the pocket CLIP."""
    benchmark = load_benchmark("pocket")
    models, rest = make_models()
    labels = models["base"].labels
    id_set = open_set(benchmark.id_set, labels)
    opened = {benchmark.id_set.name: id_set, **{spec.name: open_set(spec, None) for spec in benchmark.ood_sets}}
    sets = {name: pixels_of(models["base"], images) for name, images in opened.items()}
    calibration = pixels_of(models["base"], rest)
    results: dict[str, Any] = {}
    for name, model in models.items():
        model.calibrate(calibration)
        place = folder / name.split()[0]
        files = export_all(model, place, calibration)
        runners = {"torch": torch_runner(model), **{key: onnx_runner(path) for key, path in files.items()}}
        rows: dict[str, Any] = {}
        for engine, run in runners.items():
            wanted = rows["torch"]["outputs"] if rows else None
            rows[engine] = measure(run, sets, list(id_set.labels or []), wanted)
            rows[engine]["megabytes"] = files[engine].stat().st_size / 1e6 if engine in files else None
        for row in rows.values():
            del row["outputs"]
        runners.popitem()
        results[name] = {"engines": rows, "times": times(runners, sets[benchmark.id_set.name], rounds)}
    return {"calibration_images": len(calibration), "images": {k: len(v) for k, v in sets.items()}, "models": results}


def bench_vit_b16(rounds: int, folder: Path) -> dict[str, Any]:
    """Time a ViT-B/16 of random weights with 1,000 labels and 10,000 negatives."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        base = make_vit_b16(folder / "vit_b16")
    model = OODCLIPForImageClassification.from_pretrained(
        base, labels=words(1_000, "adjective"), negatives=words(10_000, "noun")
    ).eval()
    files = export_all(model, folder / "vit", None)
    pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    runners = {"torch": torch_runner(model), **{name: onnx_runner(path) for name, path in files.items()}}
    wanted = runners["torch"](pixels[:4], 4)
    return {
        "times": times(runners, pixels, rounds),
        "megabytes": {name: path.stat().st_size / 1e6 for name, path in files.items()},
        "largest_difference_logits": {
            name: float(np.abs(runners[name](pixels[:4], 4)["logits"] - wanted["logits"]).max()) for name in files
        },
    }


def say(results: dict[str, Any]) -> None:
    """Print the figures as tables."""
    typer.echo("| model | engine | MB | max diff logits | score | ID accuracy | AUROC | ID accepted |")
    typer.echo("|---|---|---:|---:|---:|---:|---:|---:|")
    for model, found in results["pocket"]["models"].items():
        for engine, row in found["engines"].items():
            size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
            differences = [f"{row.get(f'largest_difference_{output}', 0):.1e}" for output in ("logits", "ood_score")]
            accepted = next(iter(row["accepted"].values()))
            typer.echo(
                f"| {model} | {engine} | {size} | {' | '.join(differences)} | {row['id_accuracy']:.3f} "
                f"| {row['auroc']['mean']:.4f} | {accepted:.3f} |"
            )
    timed = {name: found["times"] for name, found in results["pocket"]["models"].items()}
    if results["vit_b16"] is not None:
        timed["ViT-B/16, random weights"] = results["vit_b16"]["times"]
    for model, found in timed.items():
        for batch, engines in found.items():
            parts = [
                f"{name} {row['ms_per_image']:.2f} ms ({row['times_faster_than_torch']:.2f} times faster)"
                for name, row in engines.items()
            ]
            typer.echo(f"{model}, {batch}: {', '.join(parts)}")


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed runs of each engine.")] = 15,
    vit: Annotated[bool, typer.Option(help="Also time a ViT-B/16 (some minutes).")] = True,
) -> None:
    """Run all and print the figures."""
    torch.set_num_threads(1)
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        pocket = bench_pocket(rounds, Path(folder))
        load.append(os.getloadavg())
        big = bench_vit_b16(max(3, rounds // 3), Path(folder)) if vit else None
    load.append(os.getloadavg())
    environment = {**describe_environment(SEED), "onnxruntime": onnxruntime.__version__}
    results = {"pocket": pocket, "vit_b16": big, "load_average": load, "environment": environment}
    say(results)
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
