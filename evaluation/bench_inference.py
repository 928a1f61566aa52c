"""Speed of the pipeline, the text side, mining and import: ratios of two implementations in one run.

    python evaluation/bench_inference.py --output bench-inference.json

Prints, on a ViT-B/16-shaped CLIP with random weights and on the pocket CLIP:
the pipeline against a bare loop of processor and `get_image_features`; against the stock
`zero-shot-image-classification` pipeline; embedding 11,000 texts the first and the second time;
mining against a loop over words; `import hf_oodclip` against `import transformers`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import torch
import typer
from datasets import Dataset
from hf_oodclip.evaluation.environment import describe_environment
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, pipeline

from hf_oodclip import OODCLIPForImageClassification, pocket_path
from hf_oodclip.assets import images_path
from hf_oodclip.mining import upper_quantile, wordnet_words

NUM_LABELS, NUM_NEGATIVES, SEED = 1_000, 10_000, 0


def seconds(function: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def make_vit_b16(folder: Path) -> str:
    """Write a ViT-B/16-shaped CLIP with random weights, and return its folder."""
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    config = CLIPConfig(
        text_config={"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id},
        vision_config={"patch_size": 16},
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


def words(count: int, kind: str) -> list[str]:
    """Return some WordNet words, spread over the alphabet."""
    pool = [word for word in wordnet_words()[kind] if len(word) < 16]
    return pool[:: len(pool) // count][:count]


def bench_pipeline(source: str, num_images: int, batch_size: int, stock_images: int, rounds: int) -> dict[str, float]:
    """Time the pipeline with 1,000 labels and 10,000 negatives against the bare loop and the stock pipeline."""
    data = Dataset(pq.read_table(images_path("id")))
    images = [image.convert("RGB") for image in data["image"][:num_images]]
    labels, negatives = words(NUM_LABELS, "adjective"), words(NUM_NEGATIVES, "noun")
    model = OODCLIPForImageClassification.from_pretrained(source)
    first = seconds(lambda: model.set_labels(labels, "photo", negatives))
    second = seconds(lambda: model.set_labels(labels, "photo", negatives))
    processor = model.image_processor
    ours = pipeline("ood-image-classification", model=model, image_processor=processor, device="cpu")

    @torch.no_grad()
    def bare_loop() -> None:
        for start in range(0, len(images), batch_size):
            pixels = processor(images=images[start : start + batch_size], return_tensors="pt")
            model.clip.get_image_features(**pixels)

    def run_ours() -> None:
        ours(images, batch_size=batch_size)

    bare_loop(), run_ours()
    pairs = [(seconds(bare_loop), seconds(run_ours)) for _ in range(rounds)]
    stock = pipeline("zero-shot-image-classification", model=source, device="cpu")
    stock_image = seconds(lambda: [stock(image, candidate_labels=labels) for image in images[:stock_images]])
    stock_image /= stock_images
    our_image = statistics.median(mine for _, mine in pairs) / len(images)
    return {
        "bare_loop_images_per_second": len(images) / statistics.median(bare for bare, _ in pairs),
        "pipeline_images_per_second": 1 / our_image,
        "pipeline_relative_to_bare_loop": statistics.median(bare / mine for bare, mine in pairs),
        "stock_zero_shot_seconds_per_image": stock_image,
        "times_faster_than_stock": stock_image / our_image,
        "embed_11000_texts_first_seconds": first,
        "embed_11000_texts_again_seconds": second,
    }


def bench_mining(num_words: int, num_labels: int, loop_words: int) -> dict[str, float]:
    """Time `upper_quantile` against a loop that takes one word at a time (timed on `loop_words` of them)."""
    generator = torch.Generator().manual_seed(SEED)
    word_embeds = normalize(torch.randn(num_words, 512, generator=generator), dim=-1)
    label_embeds = normalize(torch.randn(num_labels, 512, generator=generator), dim=-1)

    def one_by_one() -> None:
        for word in word_embeds[:loop_words]:
            torch.quantile(label_embeds @ word, 0.95)

    upper_quantile(word_embeds[:1000], label_embeds), one_by_one()
    loop = seconds(one_by_one) * num_words / loop_words
    ours = min(seconds(lambda: upper_quantile(word_embeds, label_embeds)) for _ in range(3))
    sizes = {"words": num_words, "labels": num_labels}
    return {**sizes, "loop_seconds": loop, "seconds": ours, "times_faster": loop / ours}


def bench_import(rounds: int = 7) -> dict[str, float]:
    """Time both imports in fresh interpreters, alternating."""
    timed: dict[str, list[float]] = {"transformers": [], "hf_oodclip": []}
    for _ in range(rounds):
        for name, found in timed.items():
            command = [sys.executable, "-c", f"import {name}"]
            found.append(seconds(lambda command=command: subprocess.run(command, check=True)))
    medians = {name: statistics.median(found) for name, found in timed.items()}
    return {**medians, "relative": medians["hf_oodclip"] / medians["transformers"]}


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    images: Annotated[int, typer.Option(help="Images for the ViT-B/16 shape, a tenth of the pocket's.")] = 48,
    batch_size: int = 16,
    rounds: int = 3,
) -> None:
    """Run all benchmarks and print the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_OODCLIP_CACHE"] = str(Path(folder) / "cache")
        shape = make_vit_b16(Path(folder) / "vit-b16")
        results: dict[str, Any] = {
            "import": bench_import(),
            "mining_20_labels": bench_mining(70_000, 20, 5_000),
            "mining_1000_labels": bench_mining(70_000, 1_000, 5_000),
            "pocket": bench_pipeline(pocket_path(), images * 10, batch_size, 5, rounds),
            "vit_b16_shape": bench_pipeline(shape, images, batch_size, 2, rounds),
            "environment": describe_environment(SEED, CLIPImageProcessor()),
        }
    for name, figures in results.items():
        typer.echo(name)
        for what, value in figures.items():
            typer.echo(f"  {what}: {value:.4g}" if isinstance(value, int | float) else f"  {what}: {value}")
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
