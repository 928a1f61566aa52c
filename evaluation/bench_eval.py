"""Speed and memory of the evaluation: from stored features instead of images, and with a million of them.

    python evaluation/bench_eval.py --output bench-eval.json

Three parts. `reuse`: a run of the benchmark `pocket` on its real images with ten scores, and the same run again from
the feature store. `growth`: whole runs on synthetic features, each in a fresh process: seconds and peak resident
memory. `neglabel`: the same with 1,000 labels, 10,000 negatives and NegLabel alone, and what that would be on eight
GPUs, which is arithmetic, not a measurement. Synthetic features lie in the feature store under the key of data with a
1 x 1 image a row, so that runner, store, metrics and samples are those of any run; only the tower has nothing to do.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from hf_oodclip.evaluation.bench_inference import make_vit_b16, seconds, words
from hf_oodclip.evaluation.bench_nft import status_mib
from hf_oodclip.evaluation.benchmark import Benchmark, SetSpec, load_benchmark, open_set
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.utils import logging

from hf_oodclip import OODCLIPForImageClassification, pocket_path
from hf_oodclip.feature_store import FeatureRows, FeatureStore, features_key

SEED, DIM, NUM_LABELS = 0, 512, 1_000
# Ten scores that any model with negatives can give.
SCORES = "mcm,msp,max_logit,energy,entropy,gen,delta_energy,neglabel,ash,eoe"
# Of a hundred rows; the texts that features lie near, and how near.
SHARES = {"id": 50, "calibration": 10, "near": 20, "far": 20}
NOISE = 6.0
# NVIDIA H200 SXM as its data sheet has it: FP32 without tensor cores, in which the cosines are, and memory bandwidth.
GPU, GPU_FLOPS, GPU_BYTES = "NVIDIA H200 SXM", 67e12, 4.8e12
ASSUMED, NUM_GPUS, PASSES = 0.5, 8, 14


def load_average() -> list[float]:
    """Return how busy the machine is: others use its cores too."""
    return [round(value, 2) for value in os.getloadavg()]


def bench_reuse(source: str, folder: Path, negatives: Any, limit: int | None, rounds: int) -> dict[str, Any]:
    """Time first runs of `pocket`, each with an empty store, and runs after them, with and without bootstrap."""
    benchmark = load_benchmark("pocket")
    sets = tuple(dataclasses.replace(each, limit=limit, count=None) for each in benchmark.sets)
    few = tuple(dataclasses.replace(each, limit=8, count=None) for each in benchmark.sets)
    labels = open_set(benchmark.id_set, None).label_names
    model = OODCLIPForImageClassification.from_pretrained(source, labels=labels, negatives=negatives).eval()
    results: dict[str, Any] = {"scores": SCORES.split(","), "negatives": model.config.num_negatives}

    def run(name: str, num_bootstrap: int, chosen: tuple[SetSpec, ...] = sets) -> tuple[float, float]:
        store, settings = (
            FeatureStore(folder / name),
            Settings(chosen_scores(SCORES, model), num_bootstrap=num_bootstrap),
        )
        start, used = time.perf_counter(), time.process_time()
        found, samples, _ = evaluate_benchmark(
            model, dataclasses.replace(benchmark, sets=chosen), settings, store=store
        )
        elapsed = time.perf_counter() - start, time.process_time() - used
        assert not found["skipped_scores"]
        results["images"] = samples.num_rows
        return elapsed

    # What the first run of a process imports and allocates is no part of it.
    run("few", 10, few)
    for name, num_bootstrap in (("without_bootstrap", 0), ("with_1000_resamples", 1000)):
        before = load_average()
        first, first_used = run(name, num_bootstrap)
        again, again_used = zip(*(run(name, num_bootstrap) for _ in range(rounds)), strict=True)
        results[name] = {
            "first_seconds": first,
            "second_seconds": statistics.median(again),
            "all_second_seconds": again,
            "times_faster": first / statistics.median(again),
            # Of this process alone: how busy the machine is hardly counts.
            "first_processor_seconds": first_used,
            "second_processor_seconds": statistics.median(again_used),
            "times_fewer_processor_seconds": first_used / statistics.median(again_used),
            "load_average": [before, load_average()],
        }
    return results


def make_checkpoint(folder: Path, num_labels: int, num_negatives: int) -> Path:
    """Write a small random CLIP of the width of ViT-B/16's features, with labels and negatives."""
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **tower, "vocab_size": len(tokenizer), "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=DIM,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        CLIPModel(config).save_pretrained(folder / "clip")
        texts = torch.nn.functional.normalize(torch.randn(num_labels + num_negatives, DIM), dim=-1)
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    model = OODCLIPForImageClassification.from_pretrained(
        folder / "clip", labels=words(num_labels, "adjective"), negatives=words(num_negatives, "noun")
    )
    # Such a tower's own text features are nearly one and the same.
    model.text_bank.update(texts[:num_labels], texts[num_labels:])
    model.save_pretrained(folder / "full")
    return folder / "full"


def synthetic_benchmark(model: Any, data: Path) -> Benchmark:
    """Return the benchmark of the data that `make_data` has written."""
    sets = tuple(SetSpec(role, role, str(data / f"{role}.parquet")) for role in SHARES)
    return Benchmark("synthetic", "Synthetic features", "", list(model.labels), None, sets)


def make_data(checkpoint: Path, data: Path, num_rows: int) -> None:
    """Write parquet files with a 1 x 1 image a row, and features of these rows to the store."""
    data.mkdir()
    model = OODCLIPForImageClassification.from_pretrained(checkpoint).eval()
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    for role, share in SHARES.items():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=model.labels)})
        with pq.ParquetWriter(data / f"{role}.parquet", features.arrow_schema) as writer:
            for start in range(0, num_rows * share // 100, 50_000):
                rows = range(start, min(start + 50_000, num_rows * share // 100))
                cells = [{"bytes": stream.getvalue(), "path": f"{role}/{row:07}.png"} for row in rows]
                numbers = [row % len(model.labels) for row in rows]
                writer.write_table(pa.table({"image": cells, "label": numbers}, schema=features.arrow_schema))
    store = FeatureStore(data / "store")
    for number, spec in enumerate(synthetic_benchmark(model, data).sets):
        # OOD images are near the negatives, those of the near set less so.
        bank = model.text_bank.negative_embeds if spec.role in ("near", "far") else model.text_bank.label_embeds

        def compute(rows: list[int], bank: Any = bank, number: int = number) -> FeatureRows:
            generator = torch.Generator().manual_seed(SEED + 10 * rows[0] + number)
            noise = torch.randn(len(rows), DIM, generator=generator) / DIM**0.5
            embeds = bank[torch.tensor(rows) % len(bank)] + (NOISE + 3 * (number == 2)) * noise
            return FeatureRows({"image_embeds": 10 * embeds}, rows, {})

        images = open_set(spec, model.labels).images
        key = features_key(model, images, image_column="image", features="image_embeds")
        for _ in store.shards(key, len(images), compute):
            pass


def measure(checkpoint: Path, data: Path, scores: str, num_bootstrap: int) -> dict[str, Any]:
    """Run the synthetic benchmark, samples and results written, and return seconds and memory of this process."""
    model = OODCLIPForImageClassification.from_pretrained(checkpoint).eval()
    settings, before = Settings(chosen_scores(scores, model), num_bootstrap=num_bootstrap), status_mib("VmRSS")
    load, start, used = load_average(), time.perf_counter(), time.process_time()
    benchmark = synthetic_benchmark(model, data)
    results, samples, _ = evaluate_benchmark(model, benchmark, settings, store=FeatureStore(data / "store"))
    write_run(data / "run", results, samples)
    elapsed, used = time.perf_counter() - start, time.process_time() - used
    far = [row for row in results["detection"] if row["set"] == "far"]
    return {
        "rows": samples.num_rows,
        "seconds": elapsed,
        "processor_seconds": used,
        "resident_mib_before": before,
        "peak_resident_mib": status_mib("VmHWM"),
        "samples_parquet_mib": (data / "run" / "samples.parquet").stat().st_size / 2**20,
        "id_accuracy": results["accuracy"][0]["value"],
        "far_auroc": {row["score"]: [row[name] for name in ("auroc_low", "auroc", "auroc_high")] for row in far},
        "load_average": [load, load_average()],
    }  # fmt: skip


def in_child(function: str, *arguments: Any) -> Any:
    """Return what a function of this file returns in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps([function, *map(str, arguments)])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _run_child(function: str, *arguments: str) -> Any:
    if function == "make_data":
        return make_data(Path(arguments[0]), Path(arguments[1]), int(arguments[2]))
    return measure(Path(arguments[0]), Path(arguments[1]), arguments[2], int(arguments[3]))


def bench_growth(
    checkpoint: Path, folder: Path, sizes: Sequence[int], scores: str, num_bootstrap: int = 1000
) -> list[dict[str, Any]]:
    """Measure runs of growing size, each in a process of its own."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            data = Path(place) / "data"
            in_child("make_data", checkpoint, data, size)
            found.append(in_child("measure", checkpoint, data, scores, num_bootstrap))
    return found


@torch.no_grad()
def bench_scoring(checkpoint: Path, score: str, batch_size: int, rounds: int) -> float:
    """Return how many rows a second one score takes, cosines included and nothing else."""
    model = OODCLIPForImageClassification.from_pretrained(checkpoint).eval()
    embeds = torch.randn(batch_size, DIM, generator=torch.Generator().manual_seed(SEED))
    (chosen,) = chosen_scores(score, model)

    def run() -> None:
        chosen(model.score_inputs(image_embeds=embeds, score=chosen))

    run()
    return batch_size / statistics.median(seconds(run) for _ in range(rounds))


def project(num_rows: int, num_texts: int) -> dict[str, Any]:
    """Return what scoring that many rows would take on GPUs: arithmetic from a data sheet, nothing measured."""
    flops, moved = 2 * num_rows * num_texts * DIM, 4 * PASSES * num_rows * num_texts
    products, passes = flops / (ASSUMED * GPU_FLOPS), moved / (ASSUMED * GPU_BYTES)
    one = products + passes
    return {
        "status": "projected, not measured",
        "gpu": GPU,
        "published_peak": {"fp32_flops_per_second": GPU_FLOPS, "bytes_per_second": GPU_BYTES},
        "assumed_share_of_peak": ASSUMED,
        "arithmetic": [
            f"cosines: 2 x {num_rows} rows x {num_texts} texts x {DIM} = {flops:.4g} FLOP; / ({ASSUMED} x "
            f"{GPU_FLOPS:.3g} FLOP/s) = {products:.3g} s",
            f"softmax over groups: {PASSES} reads or writes of {num_rows} x {num_texts} fp32 cosines = {moved:.4g} "
            f"bytes; / ({ASSUMED} x {GPU_BYTES:.3g} bytes/s) = {passes:.3g} s",
            f"one GPU: {products:.3g} + {passes:.3g} = {one:.3g} s; rows shared by {NUM_GPUS}: {one / NUM_GPUS:.3g} s",
        ],
        "seconds_on_one_gpu": one,
        "seconds_on_eight_gpus": one / NUM_GPUS,
        "rows_per_second_on_eight_gpus": num_rows * NUM_GPUS / one,
    }


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    sizes: Annotated[str, typer.Option(help="Rows of the synthetic runs, by commas.")] = "1000,10000,100000,1000000",
    neglabel_sizes: Annotated[str, typer.Option(help="Rows of those with 10,000 negatives.")] = "100000",
    tower_images: Annotated[int, typer.Option(help="Images a set for the ViT-B/16 shape.")] = 100,
    rounds: Annotated[int, typer.Option(help="Runs from the store, of which the median counts.")] = 5,
    work_dir: Annotated[Path | None, typer.Option(help="Where 3 GB fit for a while.")] = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Run all benchmarks and print their figures."""
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if child:
        typer.echo(json.dumps(_run_child(*json.loads(child))))
        return
    with tempfile.TemporaryDirectory(dir=work_dir) as place:
        folder = Path(place)
        os.environ["HF_OODCLIP_CACHE"], os.environ["HF_DATASETS_CACHE"] = str(folder / "texts"), str(folder / "data")
        vit = make_vit_b16(folder / "vit-b16")
        few, many = (make_checkpoint(folder / str(count), NUM_LABELS, count) for count in (1_000, 10_000))
        results: dict[str, Any] = {
            "reuse": {
                "pocket": bench_reuse(pocket_path(), folder / "a", "neglabel", None, rounds),
                "vit_b16_shape": bench_reuse(vit, folder / "b", words(10_000, "noun"), tower_images, rounds),
            },
            "growth": bench_growth(few, folder, _numbers(sizes), SCORES),
            "neglabel": {
                "texts": NUM_LABELS + 10_000,
                "whole_runs": bench_growth(many, folder, _numbers(neglabel_sizes), "neglabel"),
                "scoring_alone_rows_per_second": bench_scoring(many, "neglabel", 762, 9),
                "eight_gpus": project(1_000_000, NUM_LABELS + 10_000),
            },
            "environment": describe_environment(SEED, CLIPImageProcessor()),
        }
    typer.echo(json.dumps(results, indent=1))
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
