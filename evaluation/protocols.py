"""Put runs together as the papers do: mean and deviation over seeds, base and new classes, styles, stacked adapters.

    python evaluation/protocols.py runs/zero-shot krnft=runs/seed0 krnft=runs/seed1 --output-dir runs/summary
    python evaluation/protocols.py runs/*/four runs/*/cub --base imagenet1k-four --new cub-half-first --output-dir out
    python evaluation/protocols.py runs/zero-shot runs/krnft --compare zero-shot krnft --output-dir runs/summary

or, from an installed package, `python -m hf_oodclip.evaluation.protocols ...`. Runs of one name on one benchmark are
repeats. What cannot be compared is refused: other labels, images, missing sets, or ID images that count.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from hf_oodclip.evaluation.compare import compare_runs
from hf_oodclip.evaluation.environment import describe_environment
from hf_oodclip.evaluation.protocol_runs import Collection, Run, Spread, read_runs
from hf_oodclip.evaluation.protocol_tables import FPR, Protocol, make_protocols
from hf_oodclip.evaluation.tables import Cell, Table, one_line, to_latex, to_markdown

# Imported as the package does it, since this file is also started by its path.
from hf_oodclip.errors import OODCLIPError, RunError, unknown_name

__all__ = ["main", "summarise"]

FORMAT = "hf_oodclip protocols 1"


def summarise(
    runs: Collection,
    protocols: Sequence[Protocol],
    differences: Sequence[dict[str, Any]] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Return all there is to know of some runs: the runs, every figure over repeats, tables, and significance.

    Args:
        runs: The runs.
        protocols: The tables made of them.
        differences: What `compare_methods` found.
        seed: Seed of the paired bootstrap.
    """
    figures = []
    for method in runs.methods:
        for name in runs.benchmarks:
            repeats = runs.of(method, name)
            for key in repeats[0].figures if repeats else ():
                score, set_name, metric = key
                if score is not None and score not in runs.scores:
                    continue
                values = [run.figures[key] for run in repeats]
                place = {"method": method, "benchmark": name, "score": score, "set": set_name, "metric": metric}
                figures.append({**place, **dataclasses.asdict(Spread.of(values)), "values": values})
    id_filter, full_spectrum = runs.runs[0].id_rule
    return {
        "format": FORMAT,
        "id_filter": id_filter,
        "full_spectrum": full_spectrum,
        "runs": [_describe(run) for run in runs.runs],
        "figures": figures,
        "protocols": [protocol.to_dict() for protocol in protocols],
        "significance": list(differences),
        "environment": describe_environment(seed),
    }


def _describe(run: Run) -> dict[str, Any]:
    kept = {name: run.results.get(name) for name in ("benchmark", "model", "adapter", "num_negatives", "checksums")}
    command = run.results.get("environment", {}).get("command")
    return {"method": run.method, "folder": str(run.folder), **kept, "command": command}


def compare_methods(
    runs: Collection, methods: tuple[str, str], num_resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the differences of two methods in every figure, with p-values, on each benchmark that both were run on.

    Repeats are compared in their order, or all of one method with the only run of the other.

    Args:
        runs: The runs.
        methods: Their names; a difference is the second less the first.
        num_resamples: Resamples of the paired bootstrap.
        seed: Its seed.

    Raises:
        UnknownNameError: There is no such method.
        RunError: The methods share no benchmark, or their numbers of repeats do not match.
    """
    for method in methods:
        if method not in runs.methods:
            raise unknown_name("method", method, runs.methods)
    found = []
    for name in runs.benchmarks:
        first, second = (runs.of(method, name) for method in methods)
        if not first or not second:
            continue
        if len(first) != len(second) and 1 not in (len(first), len(second)):
            raise RunError(
                f"{methods[0]!r} has {len(first)} runs on {name!r} and {methods[1]!r} has {len(second)}: which belong "
                "together? Give equally many, in the same order, or one of either."
            )
        for place in range(max(len(first), len(second))):
            pair = first[min(place, len(first) - 1)].folder, second[min(place, len(second) - 1)].folder
            differences = compare_runs(*pair, num_resamples=num_resamples, seed=seed)
            found += [
                {"benchmark": name, "folders": [str(folder) for folder in pair], **dataclasses.asdict(each)}
                for each in differences
                if each.score is None or each.score in runs.scores
            ]
    if not found:
        raise RunError(f"{methods[0]!r} and {methods[1]!r} have no figure on any benchmark in common.")
    return found


def _significance(differences: Sequence[dict[str, Any]], methods: tuple[str, str], fpr: str) -> Table:
    shown = {"accuracy": "accuracy", "auroc": "AUROC", fpr: FPR[fpr]}
    rows = []
    for each in differences:
        if each["metric"] in shown:
            interval = f"[{100 * each['low']:+.2f}, {100 * each['high']:+.2f}]"
            figures = (f"{100 * each['first']:.2f}", f"{100 * each['second']:.2f}", f"{100 * each['difference']:+.2f}")
            names = (each["benchmark"], each["set"], each["score"] or "–", shown[each["metric"]])
            rows.append([Cell(text) for text in (*names, *figures, interval, f"{each['p_value']:.4f}")])
    headings = ("benchmark", "set", "score", "metric", *methods, "difference", "95 % interval", "p")
    note = "In percent and points; paired bootstrap over the images of one run each, p-values not corrected."
    return Table("significance", f"{methods[1]} less {methods[0]}", headings, rows, note, num_names=4)


def _write(folder: Path, summary: dict[str, Any], tables: Sequence[Table]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (folder / "protocols.json").write_text(text + "\n", encoding="utf-8")
    (folder / "protocols.md").write_text(to_markdown(tables), encoding="utf-8")
    (folder / "protocols.tex").write_text(to_latex(tables), encoding="utf-8")
    columns = ["method", "benchmark", "score", "set", "metric", "mean", "std", "n"]
    with (folder / "protocols.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(summary["figures"])


def main(
    runs: Annotated[list[str], typer.Argument(help="Run folders, or name=folder to name the method.")],
    output_dir: Annotated[Path, typer.Option(help="Folder to write protocols.json, .csv, .md and .tex to.")],
    base: Annotated[str | None, typer.Option(help="Benchmark of the classes the adapters were trained on.")] = None,
    new: Annotated[list[str] | None, typer.Option(help="Benchmark of classes they were not; repeated.")] = None,
    scores: Annotated[str, typer.Option(help="Scores by commas; all by default.")] = "",
    fpr: Annotated[str, typer.Option(help=f"FPR95 that the tables show: {' or '.join(FPR)}.")] = "fpr95_id_pos",
    compare: Annotated[tuple[str, str] | None, typer.Option(help="Two methods to compare, with p-values.")] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the paired bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Fixes the resamples.")] = 0,
) -> None:
    """Summarise runs of evaluate.py."""
    chosen = [name.strip() for name in scores.split(",") if name.strip()]
    try:
        collection = Collection(read_runs(runs), chosen)
        protocols = make_protocols(collection, base, new or [], fpr)
        differences = [] if compare is None else compare_methods(collection, compare, resamples, seed)
        tables = [protocol.to_table() for protocol in protocols]
        if compare is not None:
            tables.append(_significance(differences, compare, fpr))
        _write(output_dir, summarise(collection, protocols, differences, seed), tables)
    except (OODCLIPError, OSError) as error:
        print(f"Error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    typer.echo(to_markdown(tables))
    typer.echo(f"Wrote protocols.json, .csv, .md and .tex to {output_dir}.")


if __name__ == "__main__":
    typer.run(main)
