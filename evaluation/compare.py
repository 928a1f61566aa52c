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
from hf_oodclip.evaluation.sample_table import MEANS, SampleTable, read_run
from hf_oodclip.evaluation.tables import one_line
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

# Imported as the package does it, since this file is also started by its path.
from hf_oodclip.detection_curves import evaluate_curves, rank_scores, score_curves
from hf_oodclip.errors import OODCLIPError, RunError, unknown_name

__all__ = ["Difference", "compare_runs", "main"]

_SHOWN = {
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID pos.",
    "fpr95_ood_pos": "FPR95, OOD pos.",
}
# Images drawn at a time: bounds the memory.
_CHUNK = 2**17

logger = logging.get_logger("hf_oodclip.evaluation.compare")


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
        RunError: A folder holds no run, the images differ, or nothing can be compared.
        UnknownNameError: A run has no such score.
    """
    if num_resamples < 1 or not 0 < confidence < 1 or seed < 0:
        raise RunError(
            f"num_resamples is {num_resamples}, confidence {confidence} and seed {seed}; allowed are at least 1, a "
            "share between 0 and 1, and at least 0. Try 2000, 0.95 and 0."
        )
    (results, table), (other_results, other_table) = read_run(first), read_run(second)
    runs = SampleTable(table), SampleTable(other_table)
    sets = [name for name in runs[0].roles if name in runs[1].roles]
    for name in sets:
        _check_same_images(name, runs, (results, other_results))
    if lone := sorted({*runs[0].roles, *runs[1].roles} - {*sets}):
        logger.warning(f"Only one of the runs has {', '.join(lone)}: left out, of the means as well.")
    if any(each.get("id_filter", "all") != "all" or each.get("full_spectrum") for each in (results, other_results)):
        logger.warning("A run counts other images as ID; compared are all images of the ID set, and only those.")
    bootstrap = _PairedBootstrap(runs, num_resamples, confidence, seed)
    found = [
        bootstrap.accuracy(name)
        for name in sets
        if runs[0].roles[name] in ("id", "shifted") and (runs[0].of(name, "label") >= 0).all()
    ]
    id_set, ood_sets = runs[0].id_set, [name for name in runs[0].ood_sets if name in sets]
    if id_set in sets and id_set is not None and ood_sets:
        for pair in _score_pairs(runs, score, other_score):
            found += bootstrap.detection(id_set, ood_sets, pair)
    if not found:
        raise RunError(f"{first} and {second} have no labelled ID set and no pair of ID and OOD sets in common.")
    return found


class _PairedBootstrap:
    """Differences of two runs, both measured on the same draws of the images, set by set."""

    def __init__(self, runs: Sequence[SampleTable], num_resamples: int, confidence: float, seed: int) -> None:
        self.runs, self.num_resamples, self.confidence, self.seed = runs, num_resamples, confidence, seed

    def accuracy(self, name: str) -> Difference:
        right = [(run.of(name, "label") == run.of(name, "prediction")).astype(float) for run in self.runs]
        gain, rows = right[1] - right[0], max(1, _CHUNK // len(right[0]))
        resampled = np.concatenate([gain[drawn].mean(axis=1) for drawn in self._draws(name, rows)])
        return self._difference(name, "accuracy", (None, None), [float(each.mean()) for each in right], resampled)

    def detection(self, id_set: str, ood_sets: Sequence[str], scores: tuple[str, str]) -> list[Difference]:
        figures: dict[str, dict[str, np.ndarray]] = {}
        resampled: dict[str, dict[str, np.ndarray]] = {}
        for name in ood_sets:
            sides = [
                rank_scores(run.of(id_set, f"score:{key}"), run.of(name, f"score:{key}"))
                for run, key in zip(self.runs, scores, strict=True)
            ]
            points = [evaluate_curves(score_curves(*each), None) for each in sides]
            figures[name] = {metric: np.concatenate([each[metric] for each in points]) for metric in points[0]}
            parts = []
            rows = max(1, _CHUNK // (self.runs[0].count(id_set) + self.runs[0].count(name)))
            for known, unknown in zip(self._draws(id_set, rows), self._draws(name, rows), strict=True):
                one, other = (
                    evaluate_curves(score_curves([side[0][0, known], side[1][0, unknown]], distinct), None)
                    for side, distinct in sides
                )
                parts.append({metric: other[metric] - one[metric] for metric in one})
            resampled[name] = {metric: np.concatenate([part[metric] for part in parts]) for metric in points[0]}
        groups = {name: [name] for name in ood_sets}
        for mean, roles in MEANS.items():
            those = [name for name in ood_sets if self.runs[0].roles[name] in roles]
            # The ID images of one resample are the same for every set, so the mean is resampled as it is measured.
            groups |= {mean: those} if len(those) > 1 else {}
        return [
            self._difference(
                group,
                metric,
                scores,
                np.mean([figures[name][metric] for name in names], axis=0).tolist(),
                np.mean([resampled[name][metric] for name in names], axis=0),
            )
            for group, names in groups.items()
            for metric in figures[ood_sets[0]]
        ]

    def _draws(self, name: str, rows: int) -> Iterator[np.ndarray]:
        # A generator for each set: its draws are the same for every score and whatever other sets there are.
        generator, count = np.random.default_rng([self.seed, *name.encode()]), self.runs[0].count(name)
        for start in range(0, self.num_resamples, rows):
            yield generator.integers(count, size=(min(rows, self.num_resamples - start), count))

    def _difference(
        self,
        name: str,
        metric: str,
        scores: tuple[str | None, str | None],
        figures: Sequence[float],
        resampled: np.ndarray,
    ) -> Difference:
        low, high = np.quantile(resampled, [0.5 - self.confidence / 2, 0.5 + self.confidence / 2])
        turned = 1 + min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
        return Difference(
            set=name,
            metric=metric,
            score=scores[0],
            other_score=scores[1],
            first=figures[0],
            second=figures[1],
            difference=figures[1] - figures[0],
            low=float(low),
            high=float(high),
            p_value=min(1.0, 2 * turned / (self.num_resamples + 1)),
        )


def _check_same_images(name: str, runs: Sequence[SampleTable], results: Sequence[Mapping[str, Any]]) -> None:
    def differ(what: str, one: object, other: object) -> RunError:
        return RunError(
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
        raise RunError(f"Only the second run's score {other_score!r} is given; give the first run's as well.")
    if score is not None:
        pair = score, other_score or score
        for run, key in zip(runs, pair, strict=True):
            if key not in run.scores:
                raise unknown_name("score of the run", key, run.scores)
        return [pair]
    common = [key for key in runs[0].scores if key in runs[1].scores]
    if not common:
        raise RunError(
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
        names = (each.set, " / ".join(keys), _SHOWN[each.metric])
        table.add_row(*(_literal(text) for text in (*names, *figures, interval, f"{each.p_value:.4f}")))
    console = Console()
    # Rather beyond the edge than figures broken over lines.
    console.width = max(console.width, Console(width=400).measure(table).maximum)
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
