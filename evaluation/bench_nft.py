"""Speed and memory of NFT's cosines against building every moved text feature, both sides in one run.

    python evaluation/bench_nft.py --output bench-nft.json

The reference is the formula as the paper writes it, eight images at a time. Prints times, ratios, peak
extra memory (each side in a process of its own), cost over batch and classes, and the share of the head in
the time of a ViT-B/16 tower.
"""

from __future__ import annotations

import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from hf_oodclip.evaluation.environment import describe_environment
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_oodclip import NFTConfig
from hf_oodclip.adapters.nft import NFTLayer, TextMap, tuned_cosines
from hf_oodclip.similarity import OODSimilarity

IMAGES, CLASSES, LABELS, DIM, CHUNK, SEED = 64, 11_000, 1_000, 512, 8, 0
LOGIT_SCALE, KNOWLEDGE_WEIGHT = 100.0, 100.0


class Problem:
    """Random unit-length features and maps: B images, K classes, width D."""

    def __init__(self, images: int = IMAGES, classes: int = CLASSES, dim: int = DIM) -> None:
        generator = torch.Generator().manual_seed(SEED)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.images, self.classes = normalize(random(images, dim), dim=-1), normalize(random(classes, dim), dim=-1)
        self.scale, self.shift = 0.2 * random(images, dim), 0.2 * random(images, dim) / dim**0.5
        self.labels = torch.arange(images) % min(classes, LABELS)

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Return the maps as tensors whose gradient is asked for."""
        return self.scale.clone().requires_grad_(), self.shift.clone().requires_grad_()


def moved(problem: Problem, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the moved text features of some images, `[b, K, D]`."""
    return normalize((1 + scale.unsqueeze(1)) * problem.classes + shift.unsqueeze(1), dim=-1)


@torch.no_grad()
def reference_cosines(problem: Problem) -> Tensor:
    """Return `[B, K]` cosines, building the moved text features of eight images at a time."""
    found = []
    for rows in torch.arange(len(problem.images)).split(CHUNK):
        texts = moved(problem, problem.scale[rows], problem.shift[rows])
        found.append((texts @ problem.images[rows].unsqueeze(-1)).squeeze(-1))
    return torch.cat(found)


@torch.no_grad()
def our_cosines(problem: Problem) -> Tensor:
    """Return the same by matrix products."""
    return tuned_cosines(problem.images, problem.classes, TextMap(problem.scale, problem.shift)).cosines


def loss_of(cosines: Tensor, knowledge: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy and knowledge regularisation, summed over images."""
    classification = cross_entropy(LOGIT_SCALE * cosines, labels, reduction="sum")
    return classification + KNOWLEDGE_WEIGHT * (1 - knowledge.mean(dim=-1)).sum()


def reference_gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the gradients of the loss, eight images at a time."""
    scale, shift = problem.leaves()
    for rows in torch.arange(len(problem.images)).split(CHUNK):
        texts = moved(problem, scale[rows], shift[rows])
        cosines = (texts @ problem.images[rows].unsqueeze(-1)).squeeze(-1)
        loss_of(cosines, (texts * problem.classes).sum(-1), problem.labels[rows]).backward()
    assert scale.grad is not None and shift.grad is not None
    return scale.grad, shift.grad


def our_gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the same by matrix products."""
    scale, shift = problem.leaves()
    found = tuned_cosines(problem.images, problem.classes, TextMap(scale, shift), knowledge=True)
    assert found.knowledge is not None
    loss_of(found.cosines, found.knowledge, problem.labels).backward()
    assert scale.grad is not None and shift.grad is not None
    return scale.grad, shift.grad


SIDES: dict[str, tuple[Callable[[Problem], Any], Callable[[Problem], Any]]] = {
    "cosines": (reference_cosines, our_cosines),
    "forward_backward": (reference_gradients, our_gradients),
}


def seconds(function: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    gc.collect()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bench_speed(rounds: int, repeats: int) -> dict[str, Any]:
    """Time both sides in turn, and compare what they return."""
    problem = Problem()
    results: dict[str, Any] = {}
    for name, (reference, ours) in SIDES.items():
        wanted, found = reference(problem), ours(problem)
        pairs = list(zip(wanted, found, strict=True)) if isinstance(wanted, tuple) else [(wanted, found)]
        error = max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
        slow, fast = [], []
        for _ in range(rounds):
            slow.append(seconds(lambda run=reference: run(problem)))
            fast += [seconds(lambda run=ours: run(problem)) for _ in range(repeats)]
        results[name] = {
            "reference_seconds": statistics.median(slow),
            "seconds": statistics.median(fast),
            "times_faster": statistics.median(slow) / statistics.median(fast),
            "best_seconds": min(fast),
            "times_faster_best_of_each": min(slow) / min(fast),
            "largest_difference_relative_to_largest_value": error,
        }
    return results


def status_mib(field: str) -> float:
    """Return a memory field of this process in MiB (Linux)."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return int(found[1]) / 1024


def peak_extra_mib(side: str) -> float:
    """Return by how much one call raises the resident memory of this process, at its peak."""
    name, which = side.split(":")
    run = SIDES[name][int(which)]
    problem = Problem()
    # What the libraries allocate once (threads, work space) is no part of it.
    run(Problem(CHUNK, 256))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status_mib("VmRSS")
    kept = run(problem)
    del kept
    return status_mib("VmHWM") - before


def bench_memory(names: Iterable[str] = tuple(SIDES)) -> dict[str, Any]:
    """Measure the peak extra memory of each side in a process of its own."""
    results: dict[str, Any] = {}
    for name in names:
        peaks = []
        for which in (0, 1):
            # Freed memory goes back to the system at once, so that what is resident is what is in use.
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
            command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", f"{name}:{which}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            peaks.append(float(done.stdout))
        results[name] = {"reference_mib": peaks[0], "mib": peaks[1], "times_smaller": peaks[0] / peaks[1]}
    return results


def bench_growth(repeats: int) -> list[dict[str, Any]]:
    """Time forward and backward over batch and classes."""
    rows = []
    for images, classes in ((16, 11_000), (32, 11_000), (64, 11_000), (128, 11_000), (256, 11_000), (64, 2_750),
                            (64, 5_500), (64, 22_000), (64, 44_000)):  # fmt: skip
        problem = Problem(images, classes)
        our_gradients(problem)
        best = min(seconds(lambda problem=problem: our_gradients(problem)) for _ in range(repeats))
        rows.append(
            {"images": images, "classes": classes, "seconds": best, "ns_per_pair": 1e9 * best / (images * classes)}
        )
    return rows


@torch.no_grad()
def bench_head(repeats: int) -> dict[str, float]:
    """Time the whole layer (networks, normalisation, cosines) against a ViT-B/16 tower at the same batch."""
    problem = Problem()
    layer = NFTLayer(OODSimilarity(DIM), "default", NFTConfig())
    labels, negatives = problem.classes[:LABELS], problem.classes[LABELS:]
    layer(problem.images, labels, negatives)
    head = statistics.median(seconds(lambda: layer(problem.images, labels, negatives)) for _ in range(repeats))
    tower = CLIPVisionModel(CLIPVisionConfig(patch_size=16)).eval()
    pixels = torch.randn(IMAGES, 3, 224, 224)
    tower(pixels[:2])
    tower_seconds = seconds(lambda: tower(pixels))
    return {"head_seconds": head, "vit_b16_seconds": tower_seconds, "share": head / tower_seconds}


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    rounds: Annotated[int, typer.Option(help="Runs of the reference.")] = 3,
    repeats: Annotated[int, typer.Option(help="Runs of ours for each of the reference.")] = 10,
    tower: Annotated[bool, typer.Option(help="Also time a ViT-B/16 tower (some 30 seconds).")] = True,
    memory_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run all benchmarks and print the ratios."""
    if memory_of is not None:
        typer.echo(peak_extra_mib(memory_of))
        return
    results: dict[str, Any] = {
        "sizes": {"images": IMAGES, "classes": CLASSES, "dim": DIM, "reference_chunk": CHUNK, "dtype": "float32"},
        "speed": bench_speed(rounds, repeats),
        "memory": bench_memory(),
        "growth": bench_growth(repeats),
        "head": bench_head(repeats) if tower else None,
        "environment": describe_environment(SEED),
    }
    for name in SIDES:
        speed, memory = results["speed"][name], results["memory"][name]
        typer.echo(
            f"{name}: reference {speed['reference_seconds']:.3f} s, ours {speed['seconds']:.4f} s, "
            f"{speed['times_faster']:.0f} times faster (best of each: {speed['times_faster_best_of_each']:.0f}); "
            f"peak extra memory {memory['reference_mib']:.0f} MiB, ours {memory['mib']:.1f} MiB, "
            f"{memory['times_smaller']:.0f} times smaller; largest relative difference "
            f"{speed['largest_difference_relative_to_largest_value']:.1e}"
        )
    for row in results["growth"]:
        typer.echo(
            f"forward_backward, {row['images']} images, {row['classes']} classes: {row['seconds']:.4f} s, "
            f"{row['ns_per_pair']:.0f} ns a pair"
        )
    if results["head"] is not None:
        head = results["head"]
        typer.echo(
            f"head {head['head_seconds']:.4f} s, ViT-B/16 tower {head['vit_b16_seconds']:.1f} s: {head['share']:.2%}"
        )
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
