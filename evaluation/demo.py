"""The whole story on the embedded images: a run of the benchmark `pocket`, its report, and a calibrated model.

Run by `make demo` or `oodclip demo`. Needs the extra `eval` (matplotlib) and no network.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.markdown import Markdown

from hf_oodclip import Calibration, OODCLIPForImageClassification, get_score, pocket_path
from hf_oodclip.errors import RunError
from hf_oodclip.feature_store import FeatureStore
from hf_oodclip.scores import SCORES

from .benchmark import load_benchmark, open_set
from .report import METRICS, write_report
from .run_folder import write_run
from .runner import Settings, evaluate_benchmark
from .sample_table import SampleTable
from .tables import Cell, Table, to_markdown

__all__ = ["overview", "run_demo"]

SHOWN = ("auroc", "fpr95_id_pos", "fpr95_ood_pos")
WIDTH = 96


def run_demo(output: str | Path, num_bootstrap: int = 1000) -> dict[str, Any]:
    """Write a run with its report, a short table and a calibrated model into a folder, and print what they say.

    Args:
        output: Folder to write to; what an earlier demo left there is replaced.
        num_bootstrap: Resamples for the 95 % intervals; 0 leaves them out.

    Returns:
        What `results.json` holds.

    Raises:
        RunError: The folder cannot be written.
    """
    folder, console = Path(output), Console()
    if console.width < WIDTH:
        console = Console(width=WIDTH)
    if reason := _why_unwritable(folder):
        raise RunError(f"The demo cannot write to {folder} ({reason}). Give another folder: --output.")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with _feature_store(say) as store:
        benchmark = load_benchmark("pocket")
        labels = open_set(benchmark.id_set, benchmark.labels).label_names or []
        say(f"{benchmark.title}: {', '.join(labels)}.")
        say("Mining negatives from WordNet (some 30 s the first time, then cached) ...")
        model: Any = OODCLIPForImageClassification.from_pretrained(
            pocket_path(), labels=labels, negatives="neglabel"
        ).eval()
        say(f"{len(model.negatives):,} negatives, such as {', '.join(model.negatives.texts[:6])}.")
        scores = (*(get_score(name) for name in SCORES), get_score("delta_energy", temperature=1.0))
        settings = Settings(scores, num_bootstrap=num_bootstrap)
        results, samples, read_image = evaluate_benchmark(model, benchmark, settings, store=store, say=say)
        write_run(folder, results, samples)
        write_report(folder, results, samples, read_image)
    table = to_markdown([overview(results)])
    (folder / "table.md").write_text(table, encoding="utf-8")
    console.print(Markdown(table))

    record = next(each for each in results["calibration"] if each["score"] == model.score.key)
    say(_decisions(record, results))
    known = SampleTable(samples).of(benchmark.calibration_set.name, f"score:{model.score.key}")
    model.set_calibration(Calibration.from_dict(record, torch.from_numpy(np.sort(known))))
    model.save_pretrained(folder / "model")
    say(f"\nThe report, with pictures: {folder / 'report.html'}\nThe calibrated model on your own images:\n")
    say("import hf_oodclip, transformers")
    say(f'classifier = transformers.pipeline("ood-image-classification", model="{(folder / "model").as_posix()}")')
    say('print(classifier(["your-photo.jpg"]))  # other labels: pipeline(..., labels=["cat", "dog"])')
    return results


def overview(results: dict[str, Any]) -> Table:
    """Return AUROC and FPR95 in both conventions, one row a score under the name of each OOD set.

    Args:
        results: What `results.json` holds.
    """
    rows = []
    for each in results["sets"]:
        found = [record for record in results["detection"] if record["set"] == each["name"]]
        if found:
            rows.append([Cell(f"{each['role']}: {each['name']}", best=True), *[Cell("")] * len(SHOWN)])
        rows += [[Cell(record["score"]), *(_cell(record, metric) for metric in SHOWN)] for record in found]
    first = results["accuracy"][0]
    accuracy, told = _cell(first, "value"), ", with 95 % intervals" if "low" in first else ""
    note = f"ID accuracy {accuracy.text} {accuracy.detail}".rstrip() + f" on {first['count']} images. All in %{told}."
    return Table("overview", results["title"], ("score", *(METRICS[metric] for metric in SHOWN)), rows, note)


def _cell(record: dict[str, Any], key: str) -> Cell:
    bounds = [record.get(f"{key}_{bound}", record.get(bound)) for bound in ("low", "high")]
    interval = "" if None in bounds else f"[{', '.join(f'{100 * bound:.0f}' for bound in bounds)}]"
    return Cell(f"{100 * record[key]:.1f}", interval)


def _decisions(record: dict[str, Any], results: dict[str, Any]) -> str:
    low, high = record["tpr_interval"]
    accepted, known = dict(record["accepted"]), next(each["name"] for each in results["sets"] if each["role"] == "id")
    lines = [
        f"\nCalibrated {record['score']} on {record['num_images']} other ID images: OOD above "
        f"{record['threshold']:.4f}.\nOf the test ID images {accepted.pop(known):.1%} are accepted (target "
        f"{record['target_tpr']:.0%}, interval {low:.1%} to {high:.1%})."
    ]
    return "\n".join([*lines, *(f"  caught of {name}: {1 - share:.1%}" for name, share in accepted.items())])


@contextlib.contextmanager
def _feature_store(say: Callable[[str], None]) -> Iterator[FeatureStore]:
    """Yield a feature store; where the caches cannot be written, a folder for this run alone takes their place."""
    store, kept = FeatureStore(), datasets.config.HF_DATASETS_CACHE
    reason = _why_unwritable(store.folder) or _why_unwritable(Path(kept))
    if not reason:
        yield store
        return
    say(f"The cache cannot be written ({reason}): nothing is kept for the next run. HF_HOME chooses another folder.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "datasets"
        try:
            yield FeatureStore(Path(folder) / "features")
        finally:
            datasets.config.HF_DATASETS_CACHE = kept


def _why_unwritable(folder: Path) -> str:
    """Return why no file can be made in a folder; nothing if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)
