"""Several finished runs as one set of figures: repeats of a method on a benchmark give mean and standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_oodclip.errors import RunError, unknown_name

from .measures import METRICS
from .sample_table import MEANS, OOD_ROLES, read_run

__all__ = ["ROBUST", "Collection", "Key", "Run", "Spread", "harmonic_mean", "read_runs"]

ROBUST = "mean of shifted"
# Score (None for accuracy), set or mean of sets, metric.
Key = tuple[str | None, str, str]


@dataclass(frozen=True)
class Spread:
    """A figure over repeats; `std` is the sample standard deviation, None where there is none to know.

    Example:
        >>> Spread.of([1.0, 3.0, 5.0])
        Spread(mean=3.0, std=2.0, n=3)
    """

    mean: float
    std: float | None
    n: int | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean and sample standard deviation of the repeats."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def harmonic_mean(first: float, second: float) -> float:
    """Return the harmonic mean of two shares; 0 where one of them is.

    Example:
        >>> harmonic_mean(0.5, 1.0)
        0.6666666666666666
    """
    return 0.0 if min(first, second) <= 0 else 2 / (1 / first + 1 / second)


@dataclass(frozen=True)
class Run:
    """One finished run and the method it counts for."""

    method: str
    folder: Path
    results: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        return self.results["benchmark"]

    @property
    def adapter(self) -> str | None:
        return self.results.get("adapter")

    @property
    def id_rule(self) -> tuple[str, bool]:
        """Which images count as ID when it detects: the filter, and whether shifted ones do too."""
        return self.results.get("id_filter", "all"), bool(self.results.get("full_spectrum"))

    def sets(self, *roles: str) -> list[str]:
        """Return the sets of these roles that were evaluated."""
        return [s["name"] for s in self.results["sets"] if s["role"] in roles and s["status"] == "ok"]

    @cached_property
    def figures(self) -> dict[Key, float]:
        """Everything measured, and the means over the sets that are there."""
        found: dict[Key, float] = {(None, row["set"], "accuracy"): row["value"] for row in self.results["accuracy"]}
        shifted = [row["value"] for row in self.results["accuracy"] if row["role"] == "shifted"]
        if shifted:
            found[None, ROBUST, "accuracy"] = fmean(shifted)
        rows = [row for row in self.results["detection"] if row["set"] not in MEANS]
        found |= {(row["score"], row["set"], metric): row[metric] for row in rows for metric in METRICS}
        for score in dict.fromkeys(row["score"] for row in rows):
            for name, roles in MEANS.items():
                those = [row for row in rows if row["score"] == score and row["role"] in roles]
                for metric in METRICS if those else ():
                    found[score, name, metric] = fmean(row[metric] for row in those)
        return found


class Collection:
    """Runs by method and benchmark, of which every figure can be asked for.

    Args:
        runs: In the order in which methods and benchmarks are to be shown.
        scores: Only these; all that the runs have when empty.

    Raises:
        RunError: The runs cannot be put together: other labels, images or rules on the same benchmark.
        UnknownNameError: No run has such a score.
    """

    def __init__(self, runs: Sequence[Run], scores: Sequence[str] = ()) -> None:
        if not runs:
            raise RunError("There are no runs to put together: give output folders of evaluate.py.")
        self.runs = list(runs)
        self.methods = list(dict.fromkeys(run.method for run in runs))
        self.benchmarks = list(dict.fromkeys(run.benchmark for run in runs))
        there = list(dict.fromkeys(key[0] for run in runs for key in run.figures if key[0] is not None))
        for name in scores:
            if name not in there:
                raise unknown_name("score of the runs", name, there)
        self.scores = list(dict.fromkeys(scores)) or there
        _check(self)

    def of(self, method: str, benchmark: str) -> list[Run]:
        """Return the repeats of a method on a benchmark, none where it was not run."""
        return [run for run in self.runs if (run.method, run.benchmark) == (method, benchmark)]

    def one(self, benchmark: str) -> Run:
        """Return any run on a benchmark: they agree in sets, labels and rules."""
        return next(run for run in self.runs if run.benchmark == benchmark)

    def value(self, method: str, benchmark: str, key: Key) -> Spread | None:
        """Return a figure over the repeats, None where the method has no such figure."""
        values = [run.figures[key] for run in self.of(method, benchmark) if key in run.figures]
        return Spread.of(values) if values else None

    def combined(
        self, method: str, keys: Mapping[str, Key], function: Callable[[Sequence[float]], float]
    ) -> Spread | None:
        """Return a function of one figure a benchmark, None where the method lacks one of them.

        Repeats on several benchmarks belong together when they are of the same adapters. Where they are
        not, the function is taken of the means, and its spread is not known.

        Args:
            method: The method.
            keys: The figure to take, by benchmark.
            function: Takes the figures in the order of the keys, such as their mean.
        """
        repeats = {name: self.of(method, name) for name in keys}
        single = all(len(runs) == 1 for runs in repeats.values())
        columns = [
            {None if single else run.adapter: run.figures[key] for run in repeats[name] if key in run.figures}
            for name, key in keys.items()
        ]
        if not all(columns):
            return None
        unique = all(len(each) == len(runs) for each, runs in zip(columns, repeats.values(), strict=True))
        if unique and all(each.keys() == columns[0].keys() for each in columns):
            return Spread.of([function([each[adapter] for each in columns]) for adapter in columns[0]])
        means = [self.value(method, name, key) for name, key in keys.items()]
        return Spread(function([each.mean for each in means if each is not None]), None, None)


def _check(collection: Collection) -> None:
    runs = collection.runs
    _agree(runs, "the images that count as ID (id_filter, full_spectrum)", lambda run: run.id_rule)
    for method in collection.methods:
        those = [run for run in runs if run.method == method]
        _agree(those, f"the base model of method {method!r}", lambda run: run.results["model"])
    for name in collection.benchmarks:
        those = [run for run in runs if run.benchmark == name]
        _agree(those, f"the labels of benchmark {name!r}", lambda run: run.results["labels"])
        _agree(those, f"the sets of benchmark {name!r}", _images)
        for method in collection.methods:
            repeats = collection.of(method, name)
            _agree(repeats, f"the scores of {method!r} on {name!r}", lambda run: _scores(run, collection.scores))
            _check_repeats(repeats)


def _images(run: Run) -> dict[str, int | str]:
    """What was measured on: images a set, or why there are none."""
    return {
        s["name"]: s["count"] if s["status"] == "ok" else s["status"]
        for s in run.results["sets"]
        if s["role"] in ("id", "shifted", *OOD_ROLES)
    }


def _scores(run: Run, wanted: Iterable[str]) -> list[str]:
    there = {key[0] for key in run.figures}
    return [score for score in wanted if score in there]


def _agree(runs: Sequence[Run], what: str, value: Callable[[Run], Any]) -> None:
    for run in runs[1:]:
        mine, other = value(runs[0]), value(run)
        if mine != other:
            raise RunError(
                f"{runs[0].folder} and {run.folder} differ in {what}: {_short(mine, other)} and "
                f"{_short(other, mine)}. Their figures are not comparable: run them on the same images with the same "
                "options, or summarise them apart (--scores leaves scores out)."
            )


def _short(value: Any, other: Any) -> str:
    """Return a value as text, of many only what the other one has not."""
    if isinstance(value, dict):
        value = {key: each for key, each in value.items() if key not in other or other[key] != each}
    elif isinstance(value, list):
        value = [each for each in value if each not in other] or value
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _check_repeats(repeats: Sequence[Run]) -> None:
    """Refuse one and the same run twice: it would pass for a second seed that agrees to the last digit."""
    seen: dict[str, Run] = {}
    for run in repeats:
        # Runs without a checksum are told apart by where they are.
        mark = (run.results.get("checksums") or {}).get("samples.parquet", str(run.folder.resolve()))
        if mark in seen:
            raise RunError(
                f"{seen[mark].folder} and {run.folder} hold the same figures for every image, so they are no repeats "
                f"of {run.method!r} on {run.benchmark!r}: give one of them, or name the methods (name=folder)."
            )
        seen[mark] = run


def read_runs(arguments: Iterable[str]) -> list[Run]:
    """Return the runs of `folder` or `name=folder` arguments.

    The method is called by the name given, else as the folder of the run's adapter, else `zero-shot`.

    Raises:
        RunError: A folder holds no finished run, or a name is empty.
    """
    runs = []
    for argument in arguments:
        name, mark, folder = argument.partition("=")
        if not mark or Path(argument).exists():
            name, folder = "", argument
        elif not name.strip() or not folder:
            raise RunError(f"{argument!r} is no run: give a folder, or name=folder.")
        results, _ = read_run(folder)
        runs.append(Run(name.strip() or _method(results.get("adapter")), Path(folder), results))
    return runs


def _method(adapter: str | None) -> str:
    if adapter is None:
        return "zero-shot"
    parts = [adapter] if Path(adapter).exists() else adapter.split("+")
    return "+".join(Path(part).absolute().name for part in parts)
