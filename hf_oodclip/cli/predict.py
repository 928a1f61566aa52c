"""`oodclip predict`: a label and a decision for every image."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ImageReadError
from . import options
from .records import Journal, OutputFormat, RecordsError, write_csv


class OnError(StrEnum):
    """What to do with an image that cannot be read."""

    stop = "stop"
    skip = "skip"


def predict(
    images: options.Images,
    model: options.Model = "pocket",
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    templates: options.TemplatesOption = None,
    negatives: options.NegativesOption = None,
    score: options.ScoreName = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", "-t", help="Call OOD above this ood_score, not by calibration.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Labels to return.")] = 1,
    batch_size: options.BatchSize = 32,
    output: Annotated[
        OutputFormat | None,
        typer.Option("--output", "-o", help="Format; by default the suffix of --to, a table on a terminal, or jsonl."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; default is standard output.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run with --to stopped.")] = False,
    on_error: Annotated[OnError, typer.Option(help="Stop at an unreadable image, or skip it.")] = OnError.stop,
    device: options.Device = None,
) -> None:
    """Classify images and say which are none of the labels.

    Example: `oodclip predict photos/ --labels "goldfish,school bus" --negatives neglabel`
    """
    from ..images import find_images

    chosen = _output_format(output, to)
    paths = find_images(images)
    names = options.read_labels(labels, labels_file)
    settings = {
        "model": model, "labels": names, "templates": templates, "negatives": negatives,
        "score": score, "threshold": threshold, "top_k": top_k,
    }  # fmt: skip
    journal = None if to is None else Journal(to, chosen, settings, resume)
    todo = [path for path in paths if journal is None or str(path) not in journal.done]
    if journal is not None and len(todo) < len(paths):
        typer.secho(f"Resuming: {len(paths) - len(todo)} of {len(paths)} images are done.", err=True)
    skipped: list[dict[str, str]] = []
    if todo:
        classifier = options.load_pipeline(model, names, templates, negatives, score, device)
        call = {"threshold": threshold, "top_k": top_k, "batch_size": batch_size}
        batches = _predict(classifier, todo, call, on_error, skipped)
        if journal is None:
            _print(batches, chosen)
        else:
            for batch in batches:
                journal.append(batch)
    if journal is not None:
        journal.finish()
        typer.secho(f"Wrote {to}.", err=True)
    _report_skipped(skipped, to)
    if todo and len(skipped) == len(todo):
        raise ImageReadError(f"None of the {len(todo)} images could be read.")


def _output_format(output: OutputFormat | None, to: Path | None) -> OutputFormat:
    if to is not None:
        suffix = to.suffix.lower().lstrip(".")
        chosen = output or (OutputFormat(suffix) if suffix in OutputFormat.__members__ else OutputFormat.jsonl)
        return OutputFormat.jsonl if chosen is OutputFormat.table else chosen
    if output is OutputFormat.parquet:
        raise RecordsError("Parquet cannot be printed: give a file with --to results.parquet.")
    return output or (OutputFormat.table if sys.stdout.isatty() else OutputFormat.jsonl)


def _predict(
    classifier: Any, paths: list[Path], call: dict[str, Any], on_error: OnError, skipped: list[dict[str, str]]
) -> Iterator[list[dict[str, Any]]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..images import load_image

    count_ood, count_done, start = 0, 0, time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=len(paths))
        for position in range(0, len(paths), call["batch_size"]):
            chunk, readable, loaded = paths[position : position + call["batch_size"]], [], []
            for path in chunk:
                try:
                    loaded.append(load_image(path))
                    readable.append(path)
                except ImageReadError as error:
                    if on_error is OnError.stop:
                        raise ImageReadError(f"{error} Use --on-error skip to go on without it.") from error
                    skipped.append({"image": str(path), "error": str(error)})
            results = classifier(loaded, **call) if loaded else []
            count_ood += sum(result["is_ood"] is True for result in results)
            count_done += len(chunk)
            rate = count_done / (time.monotonic() - start)
            progress.update(task, advance=len(chunk), description=f"{rate:.0f} images/s, {count_ood} OOD")
            yield [{"image": str(path), **result} for path, result in zip(readable, results, strict=True)]


def _print(batches: Iterator[list[dict[str, Any]]], output: OutputFormat) -> None:
    if output is OutputFormat.table:
        _print_table([record for batch in batches for record in batch])
        return
    first = True
    for batch in batches:
        if output is OutputFormat.csv:
            write_csv(sys.stdout, iter(batch), header=first)
        else:
            sys.stdout.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in batch)
        sys.stdout.flush()
        first = False


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "label", "score", "OOD score", "p-value", "verdict", "nearest negative")
    verdicts = {True: "[red]OOD[/red]", False: "[green]ID[/green]", None: "not calibrated"}
    for record in records:
        p_value = record["p_value"]
        table.add_row(
            escape(record["image"]),
            escape(record["label"]),
            f"{record['score']:.3f}",
            f"{record['ood_score']:.4f}",
            "" if p_value is None else f"{p_value:.3f}",
            verdicts[record["is_ood"]],
            escape(record.get("nearest_negative", "")),
        )
    Console().print(table)


def _report_skipped(skipped: list[dict[str, str]], to: Path | None) -> None:
    if not skipped:
        return
    typer.secho(f"Skipped {len(skipped)} images that cannot be read:", fg=typer.colors.YELLOW, err=True)
    for entry in skipped[:10]:
        typer.echo(f"  {entry['error']}", err=True)
    if to is not None:
        report = to.with_name(to.name + ".skipped.jsonl")
        report.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in skipped), encoding="utf-8")
        typer.echo(f"  The whole list is in {report}.", err=True)
    elif len(skipped) > 10:
        typer.echo(f"  ... and {len(skipped) - 10} more", err=True)
