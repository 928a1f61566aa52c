"""Evaluate a model and its adapters on a benchmark, or on data of your own.

    accelerate launch evaluation/evaluate.py --benchmark pocket --output-dir runs/pocket
    accelerate launch evaluation/evaluate.py --model openai/clip-vit-base-patch16 --benchmark imagenet1k-four \
        --root DATA --output-dir runs/four
    accelerate launch evaluation/evaluate.py --id my/dataset --ood a/folder --ood b.parquet --output-dir runs/mine

Or `accelerate launch -m hf_oodclip.evaluation.evaluate ...` from an installed package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from hf_oodclip.evaluation.benchmark import (
    Benchmark,
    benchmark_from_sources,
    list_benchmarks,
    load_benchmark,
    open_set,
)
from hf_oodclip.evaluation.run_folder import write_run
from hf_oodclip.evaluation.runner import Settings, chosen_scores, evaluate_benchmark
from hf_oodclip.evaluation.tables import one_line
from rich.console import Console

from hf_oodclip import OODCLIPForImageClassification, pocket_path
from hf_oodclip.errors import OODCLIPError, RunError
from hf_oodclip.feature_store import FeatureStore

__all__ = ["main"]


def main(
    output_dir: Annotated[Path, typer.Option(help="Folder to write results, samples, tables and report to.")],
    benchmark: Annotated[str, typer.Option(help=f"YAML file, or one of: {', '.join(list_benchmarks())}.")] = "",
    model: Annotated[
        str, typer.Option(help="Folder or Hub id of a checkpoint; `pocket` by default, or what an adapter names.")
    ] = "",
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder or id, `a+b` for both at once; repeated, each gets a run.")
    ] = None,
    id_source: Annotated[str, typer.Option("--id", help="ID images, instead of a benchmark.")] = "",
    ood: Annotated[list[str] | None, typer.Option(help="OOD images; repeated.")] = None,
    labels_from: Annotated[str, typer.Option(help="Where the labels come from: `id`, or a text file.")] = "id",
    scores: Annotated[str, typer.Option(help="Scores by commas, or `all` that the model can give.")] = "all",
    negatives: Annotated[
        str, typer.Option(help="Mining method or file for a plain model; `none` for none.")
    ] = "neglabel",
    templates: Annotated[
        str, typer.Option(help="Prompt templates; the benchmark's or the negatives' by default.")
    ] = "",
    root: Annotated[Path | None, typer.Option(help="Folder of the data a benchmark names by relative paths.")] = None,
    id_filter: Annotated[
        str, typer.Option(help="`all` ID images count, or only `correct`ly classified ones.")
    ] = "all",
    full_spectrum: Annotated[bool, typer.Option(help="Count covariate-shifted images as ID too.")] = False,
    target_tpr: Annotated[float, typer.Option(help="Share of ID images the calibration accepts.")] = 0.95,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples for intervals; 0 for none.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images a forward pass.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the feature store.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in the output folder.")] = False,
) -> None:
    """Run a benchmark and write a report."""
    from accelerate import Accelerator
    from transformers.utils import logging

    logging.disable_progress_bar()
    accelerator = Accelerator()
    console = Console(quiet=not accelerator.is_main_process, soft_wrap=True)
    try:
        # Here, for it says in a sentence that matplotlib is missing.
        from hf_oodclip.evaluation.report import write_report

        if bool(benchmark) == bool(id_source):
            raise RunError("Give --benchmark, or --id with --ood: one of the two.")
        chosen = (
            load_benchmark(benchmark, root) if benchmark else benchmark_from_sources(id_source, ood or [], labels_from)
        )
        with accelerator.main_process_first():
            # Without ID images there is no run: known before anything takes long.
            labels = open_set(chosen.id_set, chosen.labels, root).label_names or []
        for source, folder in _folders(output_dir, adapter or [], overwrite):
            with accelerator.main_process_first():
                loaded = _load(model, source, labels, negatives, templates, chosen).to(accelerator.device)
            console.print(
                f"{loaded.name_or_path}{f' with {source}' if source else ''} on {chosen.title}", markup=False
            )
            settings = Settings(
                chosen_scores(scores, loaded), id_filter, full_spectrum, target_tpr, num_bootstrap, batch_size, seed
            )
            results, samples, read = evaluate_benchmark(
                loaded,
                chosen,
                settings,
                store=None if store is None else FeatureStore(store),
                accelerator=accelerator,
                root=root,
                adapter=source,
                say=lambda line: console.print(line, markup=False, highlight=False),
            )
            if accelerator.is_main_process:
                write_run(folder, results, samples)
                write_report(folder, results, samples, read)
                console.print((folder / "tables.md").read_text(encoding="utf-8"), markup=False, highlight=False)
                console.print(f"Wrote {folder / 'report.html'}, tables, pictures, samples.parquet and results.json.")
            accelerator.wait_for_everyone()
    except OODCLIPError as error:
        # All processes end with the same error.
        if accelerator.is_main_process:
            print(f"Error: {one_line(error)}", file=sys.stderr)
        raise typer.Exit(1) from error


def _folders(output_dir: Path, adapters: list[str], overwrite: bool) -> list[tuple[str | None, Path]]:
    """Return each adapter, or None for none, with the folder of its run."""
    if len(adapters) < 2:
        planned: list[tuple[str | None, Path]] = [(adapters[0] if adapters else None, output_dir)]
    else:
        names = ["+".join(Path(part).absolute().name for part in _together(source)) for source in adapters]
        planned = [(source, output_dir / name) for source, name in zip(adapters, names, strict=True)]
    folders = [folder for _, folder in planned]
    for folder in folders:
        if folders.count(folder) > 1:
            raise RunError(f"Several adapters are called {folder.name!r}: run them one by one, each with a folder.")
        if (folder / "results.json").exists() and not overwrite:
            raise RunError(f"{folder} holds an earlier run: give --overwrite, or another --output-dir.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be made: {error}. Give another --output-dir.") from error
    return planned


def _together(adapter: str) -> list[str]:
    """Return the adapters of `a+b`; a folder with a plus sign in its name is one."""
    parts = [adapter] if "+" not in adapter or Path(adapter).exists() else adapter.split("+")
    if not all(parts):
        raise RunError(f"{adapter!r} lacks an adapter beside its plus sign: give one, or two as in a+b.")
    return parts


def _load(
    model: str, adapter: str | None, labels: list[str], negatives: str, templates: str, chosen: Benchmark
) -> Any:
    base = pocket_path() if model in ("", "pocket") else model
    try:
        first, *others = _together(adapter) if adapter else [""]
        loaded: Any = OODCLIPForImageClassification.from_pretrained(first if first and not model else base)
        if first and model:
            loaded.load_adapter(first)
        for number, other in enumerate(others, start=2):
            # Labels, negatives and score are those of the first.
            loaded.load_adapter(other, f"adapter_{number}")
        if others:
            loaded.set_adapter(list(loaded.peft_config))
    except OSError as error:
        what = f"{adapter} or its base" if adapter else base
        raise RunError(f"{what} cannot be loaded: {one_line(error)} Give a folder or Hub id.") from error
    if loaded.labels != labels or templates:
        given = None if loaded.labels else (None if negatives == "none" else negatives)
        loaded.set_labels(labels, templates or chosen.templates, given)
    return loaded.eval()


if __name__ == "__main__":
    typer.run(main)
