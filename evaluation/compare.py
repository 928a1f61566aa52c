"""Say whether one run is better than another on the same images, or by how much chance alone could explain it.

    python evaluation/compare.py runs/zero-shot runs/adapter
    python evaluation/compare.py runs/a runs/a --score mcm --other-score neglabel

or, from an installed package, `python -m hf_oodclip.evaluation.compare ...`. Every difference is the second run less
the first, with an interval and a p-value from a paired bootstrap: both runs are measured on the same resampled images.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

# Imported as the package does it, since this file is also started by its path.
from hf_oodclip.errors import OODCLIPError, unknown_name
from hf_oodclip.evaluation.sample_table import MEANS, ReportError, SampleTable, read_run
from hf_oodclip.evaluation.tables import one_line
from hf_oodclip.metrics import _curves, _evaluate, _rank

__all__ = ["Difference", "compare_runs", "main"]

_SHOWN = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID pos.",
    "fpr95_ood_pos": "FPR95, OOD pos.",
}
_CHUNK = 2**17


@dataclass(frozen=True)
class Difference:
    """One figure of two runs on the same images, as shares; `difference` is `second - first`.

    Args:
        set, metric: What was measured on which set, or on the mean of some sets.
        score, other_score: The scores of the first and of the second run; None for accuracy.
        first, second, difference: The figures.
        low, high: Percentile bootstrap interval of the difference (Efron & Tibshirani 1993).
        p_value: Two-sided: how often resampling turns the difference round, twice, plus one resample.
    """

    set: str
    metric: str
    score: str | None
    other_score: str | None
    first: float
    second: float
    difference: float
    low: float
    high: float
    p_value: float


def compare_runs(
    first: str | Path,
    second: str | Path,
    score: str | None = None,
    other_score: str | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Return the differences in accuracy, and in every detection metric, on every set that both runs have.

    Args:
        first, second: Run folders; the same one twice compares two scores of one run.
        score: Compare this score only; by default every score that both runs have.
        other_score: The score of the second run, where it is another than `score`.
        num_resamples: Resamples of the images; the smallest possible p-value is `2 / (num_resamples + 1)`.
        confidence: Share of the resampled differences inside the interval.
        seed: Fixes the resamples; no global generator is used.

    Raises:
        ReportError: A folder holds no run, the images differ, or nothing can be compared.
        UnknownNameError: A run has no such score.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ReportError(
            f"num_resamples is {num_resamples} and confidence {confidence}; allowed are at least 1, and a share "
            "between 0 and 1. Try 2000 and 0.95."
        )
    (results, table), (other_results, other_table) = read_run(first), read_run(second)
    runs = SampleTable(table), SampleTable(other_table)
    sets = [name for name in runs[0].roles if name in runs[1].roles]
    for name in sets:
        _check_same_images(name, runs, (results, other_results))
    pairs = _score_pairs(runs, score, other_score)
    # A generator for each set: the draws of one do not depend on which others there are after it.
    order = {name: place for place, name in enumerate(sets)}

    def draws(name: str, rows: int) -> Iterator[np.ndarray]:
        generator, count = np.random.default_rng([seed, order[name]]), runs[0].count(name)
        for start in range(0, num_resamples, rows):
            yield generator.integers(count, size=(min(rows, num_resamples - start), count))

    found: list[Difference] = []

    def add(
        name: str, metric: str, keys: tuple[str | None, str | None], figures: Sequence[float], all_: np.ndarray
    ) -> None:
        low, high = np.quantile(all_, [0.5 - confidence / 2, 0.5 + confidence / 2])
        turned = 1 + min((all_ <= 0).sum(), (all_ >= 0).sum())
        p_value = min(1.0, 2 * float(turned) / (num_resamples + 1))
        difference = figures[1] - figures[0]
        found.append(Difference(name, metric, *keys, *figures, difference, float(low), float(high), p_value))

    for name in sets:
        if runs[0].roles[name] in ("id", "shifted") and (runs[0].of(name, "label") >= 0).all():
            right = [(run.of(name, "label") == run.of(name, "prediction")).astype(float) for run in runs]
            gain, rows = right[1] - right[0], max(1, _CHUNK // len(right[0]))
            resampled = np.concatenate([gain[drawn].mean(axis=1) for drawn in draws(name, rows)])
            add(name, "accuracy", (None, None), [float(each.mean()) for each in right], resampled)
    id_set, ood_sets = runs[0].id_set, [name for name in runs[0].ood_sets if name in sets]
    if id_set not in sets or id_set is None or not ood_sets:
        if not found:
            raise ReportError(f"{first} and {second} have no labelled ID set and no ID and OOD set in common.")
        return found
    for keys in pairs:
        figures: dict[tuple[str, str], list[float]] = {}
        resampled_by: dict[tuple[str, str], np.ndarray] = {}
        for name in ood_sets:
            sides = [
                _rank(run.of(id_set, f"score:{key}"), run.of(name, f"score:{key}"))
                for run, key in zip(runs, keys, strict=True)
            ]
            rows = max(1, _CHUNK // (runs[0].count(id_set) + runs[0].count(name)))
            points = [_evaluate(_curves(*each), None) for each in sides]
            parts: list[Mapping[str, np.ndarray]] = []
            for known, unknown in zip(draws(id_set, rows), draws(name, rows), strict=True):
                one, other = (
                    _evaluate(_curves([side[0][0, known], side[1][0, unknown]], distinct), None)
                    for side, distinct in sides
                )
                parts.append({metric: other[metric] - one[metric] for metric in one})
            for metric in points[0]:
                figures[name, metric] = [float(each[metric][0]) for each in points]
                resampled_by[name, metric] = np.concatenate([part[metric] for part in parts])
        groups = {name: [name] for name in ood_sets}
        for mean, roles in MEANS.items():
            those = [name for name in ood_sets if runs[0].roles[name] in roles]
            groups |= {mean: those} if len(those) > 1 else {}
        for group, names in groups.items():
            for metric in points[0]:
                means = np.mean([figures[name, metric] for name in names], axis=0).tolist()
                add(group, metric, keys, means, np.mean([resampled_by[name, metric] for name in names], axis=0))
    return found


def _check_same_images(name: str, runs: Sequence[SampleTable], results: Sequence[Mapping[str, Any]]) -> None:
    def differ(what: str, one: object, other: object) -> ReportError:
        return ReportError(
            f"The runs differ in {what} of set {name!r}: {one!r} and {other!r}. Only runs on the same images can be "
            "compared: run the same benchmark on the same data with both."
        )

    if (counts := [run.count(name) for run in runs])[0] != counts[1]:
        raise differ("the number of images", *counts)
    columns = {
        "row": [run.of(name, "row").tolist() for run in runs],
        "file": [run.texts(name, "file") for run in runs],
    }
    if results[0]["labels"] == results[1]["labels"]:
        columns["label"] = [run.of(name, "label").tolist() for run in runs]
    for column, (one, other) in columns.items():
        for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            if mine != theirs:
                raise differ(f"the {column} of image {place}", mine, theirs)
    if None in columns["file"][0]:
        # Where files have no names, only the source tells two data sets of one size apart.
        sources = [next((s["source"] for s in each["sets"] if s["name"] == name), None) for each in results]
        if sources[0] != sources[1]:
            raise differ("the source", *sources)


def _score_pairs(runs: Sequence[SampleTable], score: str | None, other_score: str | None) -> list[tuple[str, str]]:
    if score is None and other_score is not None:
        raise ReportError(f"Only the second run's score {other_score!r} is given; give the first run's as well.")
    if score is not None:
        pair = score, other_score or score
        for run, key in zip(runs, pair, strict=True):
            if key not in run.scores:
                raise unknown_name("score of the run", key, run.scores)
        return [pair]
    common = [key for key in runs[0].scores if key in runs[1].scores]
    if not common:
        raise ReportError(
            f"The runs have no score in common: {', '.join(runs[0].scores)} and {', '.join(runs[1].scores)}. "
            "Name one of each (--score, --other-score)."
        )
    return [(key, key) for key in common]


def main(
    first: Annotated[Path, typer.Argument(help="Run folder.")],
    second: Annotated[Path, typer.Argument(help="Run folder to compare it with.")],
    score: Annotated[str | None, typer.Option(help="Compare this score only.")] = None,
    other_score: Annotated[str | None, typer.Option(help="The second run's score, if it is another.")] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the paired bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Fixes the resamples.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write all differences to this JSON file.")] = None,
) -> None:
    """Compare two runs on the same images: differences, 95 % intervals and p-values."""
    found = compare_runs(first, second, score, other_score, resamples, seed=seed)
    table = Table(title="Second less first, in points; 95 % intervals", box=SIMPLE, padding=(0, 1))
    for heading in ("set", "score", "metric"):
        table.add_column(heading)
    for heading in (f"first: {first.name}", f"second: {second.name}", "difference", "interval", "p"):
        table.add_column(one_line(heading), justify="right")
    for each in (each for each in found if each.metric in _SHOWN):
        keys = dict.fromkeys(key for key in (each.score, each.other_score) if key is not None)
        figures = (f"{100 * each.first:.1f}", f"{100 * each.second:.1f}", f"{100 * each.difference:+.1f}")
        interval = f"[{100 * each.low:+.1f}, {100 * each.high:+.1f}]"
        names = (each.set, ", ".join(keys), _SHOWN[each.metric])
        table.add_row(*(_literal(text) for text in (*names, *figures, interval, f"{each.p_value:.4f}")))
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    console.print(f"{resamples} resamples. The p-values are not corrected for how many there are.")
    if output is not None:
        output.write_text(json.dumps([dataclasses.asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


def _literal(text: str) -> str:
    return one_line(text).replace("[", r"\[")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (OODCLIPError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
