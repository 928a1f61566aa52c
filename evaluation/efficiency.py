"""What adapters cost: parameters, file, training time, and an image's time, FLOPs and memory in tower and head.

    python evaluation/efficiency.py --adapter krnft-adapter --output efficiency.json
    python evaluation/efficiency.py --base openai/clip-vit-base-patch16 --adapter runs/krnft --adapter runs/coop \
        --num-labels 1000 --num-negatives 10000 --device cuda --output runs/efficiency.json

or, from an installed package, `python -m hf_oodclip.evaluation.efficiency ...`. The head is all that comes after the
tower: cosines with labels and negatives under the adapter, and the score. Text features that no image moves are made
once, before the clock starts, and reading images is not counted. Each row is measured in a process of its own.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.evaluation.tables import Cell, Table, one_line, shorten, to_markdown
from safetensors import SafetensorError, safe_open
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Imported as the package does it, since this file is also started by its path.
from hf_oodclip import OODCLIPForImageClassification, pocket_path
from hf_oodclip.errors import AdapterError, OODCLIPError, RunError

__all__ = ["describe_adapter", "main", "measure"]

FORMAT = "hf_oodclip efficiency 1"
WARM_UPS = 2


def describe_adapter(folder: str) -> dict[str, Any]:
    """Return parameters and size of an adapter's file, and how long its training took where that is recorded.

    Args:
        folder: Adapter folder or Hub id.

    Raises:
        AdapterError: There are no weights, or they are damaged.
    """
    from hf_oodclip.adapters.checking import adapter_weights_file

    path = Path(adapter_weights_file(folder, {}))
    try:
        with safe_open(path, "pt") as tensors:
            sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{path} is damaged ({error}): fetch or save the adapter again.") from error
    record = path.parent / "metrics.json"
    metrics = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    training = {name: metrics.get(name) for name in ("training_seconds", "num_images", "num_steps")}
    machine = metrics.get("environment", {}).get("machine")
    return {"parameters": sum(sizes), "file_bytes": path.stat().st_size, **training, "training_machine": machine}


def measure(
    base: str | None,
    adapter: str | None,
    classes_of: str | None = None,
    num_labels: int | None = None,
    num_negatives: int | None = None,
    batch_size: int = 32,
    rounds: int = 10,
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Return an image's seconds and FLOPs in vision tower and head, and the peak memory of this process.

    Args:
        base: Folder or Hub id of the checkpoint; None is what the adapter names.
        adapter: Its adapter, None for none.
        classes_of: The adapter whose labels and negatives are taken, where there is none.
        num_labels, num_negatives: So many English words instead, as labels and negatives.
        batch_size: Images a pass.
        rounds: Passes of which the median is taken, after some to warm up.
        device: Where to measure.
        seed: Of the random pixels.

    Raises:
        OODCLIPError: What cannot be loaded, or an adapter that belongs to other classes.
    """
    model = _load(base, adapter, classes_of, num_labels, num_negatives).to(device).eval()
    vision, generator = model.config.clip_config.vision_config, torch.Generator().manual_seed(seed)
    shape = (batch_size, vision.num_channels, vision.image_size, vision.image_size)
    pixel_values = torch.randn(shape, generator=generator).to(model.device, model.dtype)
    score = model.score

    def tower() -> Any:
        return model.encode(pixel_values, [score])[:2]

    def head() -> Any:
        return score(model.score_inputs(pixel_values, image_embeds, patch_embeds, score=score))

    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with torch.inference_mode():
        image_embeds, patch_embeds = tower()
        parts: dict[str, Callable[[], Any]] = {"tower": tower, "head": head}
        seconds: dict[str, list[float]] = {"tower": [], "head": []}
        for each in range(WARM_UPS + rounds):
            for name, run in parts.items():
                taken = _seconds(run, model.device)
                if each >= WARM_UPS:
                    seconds[name].append(taken / batch_size)
        flops = {name: _flops(run) // batch_size for name, run in parts.items()}
    return {
        "base": str(model.name_or_path),
        "num_labels": len(model.labels),
        "num_negatives": model.config.num_negatives,
        "score": score.key,
        **{f"{name}_seconds": statistics.median(found) for name, found in seconds.items()},
        **{f"{name}_flops": found for name, found in flops.items()},
        "peak_memory_bytes": _peak_memory(model.device),
    }


def _load(
    base: str | None, adapter: str | None, classes_of: str | None, num_labels: int | None, num_negatives: int | None
) -> Any:
    from transformers.utils import logging

    from hf_oodclip.adapter_record import AdapterRecord
    from hf_oodclip.mining import wordnet_words

    logging.disable_progress_bar()
    source = base or adapter or classes_of
    try:
        model: Any = OODCLIPForImageClassification.from_pretrained(pocket_path() if source == "pocket" else source)
        if base and adapter:
            model.load_adapter(adapter)
    except OSError as error:
        raise RunError(f"{source} cannot be loaded: {one_line(error)} Give a folder or Hub id.") from error
    if classes_of is not None and adapter is None:
        if not base:
            model.delete_adapter("default")
        elif (record := AdapterRecord.load(classes_of, {})) is not None:
            record.apply(model)
    if num_labels is not None:
        words = wordnet_words()["noun"]
        needed = num_labels + (num_negatives or 0)
        if needed > len(words):
            raise RunError(f"There are {len(words)} English nouns and {needed} are asked for: ask for fewer.")
        model.set_labels(words[:num_labels], None, words[num_labels:needed])
    return model


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(run: Callable[[], Any]) -> int:
    # Of attention in one kernel the counter knows some and not others: here its two products are done apart.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _peak_memory(device: torch.device) -> int | None:
    """Return the most memory that was in use: on the GPU, else by this process; None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    # Not getrusage: after a fork it still counts what the parent used.
    line = next((each for each in status.read_text().splitlines() if each.startswith("VmHWM:")), None)
    return None if line is None else 1024 * int(line.split()[1])


def _table(result: dict[str, Any]) -> Table:
    rows = []
    for row in result["rows"]:
        trained = "not recorded" if row["training_seconds"] is None else f"{row['training_seconds']:,.1f}"
        memory = row["peak_memory_bytes"]
        cells = [
            shorten(row["name"], 40),
            f"{row['parameters']:,}",
            f"{row['file_bytes'] / 1000:,.1f}",
            "–" if row["adapter"] is None else trained,
            f"{row['num_labels']:,} + {row['num_negatives']:,}",
            f"{1000 * row['tower_seconds']:.3f}",
            f"{1000 * row['head_seconds']:.3f}",
            f"{row['tower_flops'] / 1e6:,.2f}",
            f"{row['head_flops'] / 1e6:,.2f}",
            "not known" if memory is None else f"{memory / 1e6:,.0f}",
        ]
        rows.append([Cell(text) for text in cells])
    columns = (
        "adapter", "parameters", "file, kB", "training, s", "labels + negatives", "tower, ms", "head, ms",
        "tower, MFLOPs", "head, MFLOPs", "peak memory, MB",
    )  # fmt: skip
    note = (
        f"Per image, in batches of {result['batch_size']} on {result['device']} with {result['threads']} threads; "
        f"medians of {result['rounds']} passes. FLOPs are of matrix products. Training time is that of the machine it "
        "was trained on."
    )
    return Table("efficiency", "Efficiency", columns, rows, note)


def main(
    adapter: Annotated[list[str] | None, typer.Option(help="Adapter folder or Hub id; repeated.")] = None,
    base: Annotated[str, typer.Option(help="Checkpoint; `pocket`, or by default what each adapter names.")] = "",
    num_labels: Annotated[int | None, typer.Option(min=1, help="So many words as labels; the adapter's own.")] = None,
    num_negatives: Annotated[int, typer.Option(min=0, help="So many negatives, with --num-labels.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Passes of which the median is taken.")] = 10,
    device: Annotated[str, typer.Option(help="Where to measure: cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of the random pixels.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file to write; the table goes beside it as .md.")] = None,
) -> None:
    """Measure a base without adapter, then each adapter."""
    try:
        result = _measure_all(adapter or [], base or None, num_labels, num_negatives, batch_size, rounds, device, seed)
        table = to_markdown([_table(result)])
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            output.with_suffix(".md").write_text(table, encoding="utf-8")
    except (OODCLIPError, OSError) as error:
        print(f"Error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    typer.echo(table)


def _measure_all(
    adapters: list[str],
    base: str | None,
    num_labels: int | None,
    num_negatives: int,
    batch_size: int,
    rounds: int,
    device: str,
    seed: int,
) -> dict[str, Any]:
    if not adapters and (base is None or num_labels is None):
        raise RunError("Give --adapter, or --base with --num-labels (and --num-negatives) to measure it without one.")
    if num_negatives and num_labels is None:
        raise RunError("--num-negatives goes with --num-labels; without both, adapters keep their own classes.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(
            f"--device {device}: there is no GPU that this torch can use; leave it out to measure on the CPU."
        )
    nothing = {"parameters": 0, "file_bytes": 0, "training_seconds": None, "training_machine": None}
    files = [nothing, *(describe_adapter(each) for each in adapters)]
    rows = []
    for each, file in zip([None, *adapters], files, strict=True):
        arguments = (base, each, adapters[0] if adapters else None, num_labels, num_negatives)
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(measure, *arguments, batch_size, rounds, device, seed).result()
        name = "no adapter" if each is None else Path(each).absolute().name
        rows.append({"name": name, "adapter": each, **file, **found})
    result = {"format": FORMAT, "batch_size": batch_size, "rounds": rounds, "device": device}
    return {**result, "threads": torch.get_num_threads(), "rows": rows, "environment": describe_environment(seed)}


if __name__ == "__main__":
    typer.run(main)
