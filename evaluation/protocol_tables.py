"""The papers' tables, made of runs: base and unseen classes, styles, stacked adapters, SETUP-I and II."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hf_oodclip.errors import RunError, unknown_name

from .protocol_runs import ROBUST, Collection, Key, Spread, harmonic_mean
from .sample_table import MEANS, OOD_ROLES
from .tables import Cell, Table

__all__ = ["BASE", "FPR", "Protocol", "make_protocols"]

BASE = "imagenet1k-four"
HALVES = ("-half-first", "-half-random")
# Benchmarks that differ in the style or domain of their ID images, by the beginning of their names.
FAMILIES = {
    "imagenet-styles": "Unseen styles",
    "setup2-pacs": "SETUP-II, PACS, one domain left out each",
    "setup2-vlcs": "SETUP-II, VLCS, one domain left out each",
}
FPR = {"fpr95_id_pos": "FPR95, ID positive", "fpr95_ood_pos": "FPR95, OOD positive"}
ALL = "mean of all"

Find = Callable[[str, str], Spread | None]


@dataclass(frozen=True)
class Column:
    """A heading, whether larger figures are better, and how to find the figure of a method and score."""

    heading: str
    larger_is_better: bool
    find: Find


@dataclass(frozen=True)
class Row:
    """The figures of a method and score, in the order of the columns; a row of differences is signed."""

    method: str
    score: str
    figures: Sequence[Spread | None]
    signed: bool = False


@dataclass(frozen=True)
class Protocol:
    """One table; its figures are shares, or differences of shares."""

    key: str
    title: str
    note: str
    columns: Sequence[Column]
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds."""
        headings = [column.heading for column in self.columns]
        rows = []
        for row in self.rows:
            figures = [None if figure is None else asdict(figure) for figure in row.figures]
            found = dict(zip(headings, figures, strict=True))
            rows.append({"method": row.method, "score": row.score, "figures": found})
        return {"protocol": self.key, "title": self.title, "note": self.note, "rows": rows}

    def to_table(self) -> Table:
        """Return the table in percent, the best of each column in bold."""
        best = [self._best(place, column.larger_is_better) for place, column in enumerate(self.columns)]
        rows = []
        for row in self.rows:
            cells = [
                _cell(figure, row.signed, not row.signed and figure is not None and figure.mean == top)
                for figure, top in zip(row.figures, best, strict=True)
            ]
            rows.append([Cell(row.method), Cell(row.score), *cells])
        headings = ["method", "score", *(column.heading for column in self.columns)]
        return Table(self.key, self.title, headings, rows, self.note, num_names=2)

    def _best(self, place: int, larger_is_better: bool) -> float | None:
        found = [row.figures[place] for row in self.rows if not row.signed]
        means = [figure.mean for figure in found if figure is not None]
        if len(set(means)) < 2:
            return None
        return max(means) if larger_is_better else min(means)


def _cell(figure: Spread | None, signed: bool, is_best: bool) -> Cell:
    if figure is None:
        return Cell("–")
    text = f"{100 * figure.mean:+.2f}" if signed else f"{100 * figure.mean:.2f}"
    spread = "" if figure.std is None else f" ± {100 * figure.std:.2f}"
    return Cell(text + spread, f"({figure.n})" if spread else "", is_best)


def make_protocols(
    runs: Collection, base: str | None = None, new: Sequence[str] = (), fpr: str = "fpr95_id_pos"
) -> list[Protocol]:
    """Return every table that these runs can fill.

    Args:
        runs: The runs.
        base: Benchmark of the classes that adapters were trained on; `imagenet1k-four` when None.
        new: Benchmarks of classes that they were not trained on; by default the half splits.
        fpr: Which FPR95 the tables show.

    Raises:
        UnknownNameError: There is no run on `base` or `new`, or no such FPR95.
        RunError: Only one of `base` and `new` is given.
    """
    if fpr not in FPR:
        raise unknown_name("FPR95", fpr, FPR)
    if (base is None) != (not new):
        raise RunError("Base and new classes make a table together: give both benchmarks (--base, --new), or neither.")
    for name in (base, *new):
        if name is not None and name not in runs.benchmarks:
            raise unknown_name("benchmark of the runs", name, runs.benchmarks)
    if base is None and BASE in runs.benchmarks:
        base, new = BASE, [name for name in runs.benchmarks if name.endswith(HALVES)]
    found = [protocol for name in runs.benchmarks for protocol in _benchmark(runs, name, fpr)]
    if base is not None and new:
        found.append(_base_new(runs, base, new, fpr))
    for prefix, title in FAMILIES.items():
        members = [name for name in runs.benchmarks if name.startswith(f"{prefix}-")]
        if len(members) > 1:
            found.append(_family(runs, prefix, title, members, fpr))
    return [*found, *_stacked(runs, fpr)]


def _benchmark(runs: Collection, name: str, fpr: str) -> Iterator[Protocol]:
    """Yield one benchmark's tables: a metric on every OOD set, and detection beside robust accuracy."""
    sets, title = runs.one(name).results["sets"], runs.one(name).results["title"]
    groups = _means(runs, name)
    known = [_accuracy(runs, name, set_name, "ID accuracy") for set_name in runs.one(name).sets("id")]
    for metric, heading in (("auroc", "AUROC"), (fpr, FPR[fpr])):
        columns = [
            Column(shown, metric == "auroc", _at(runs, name, set_name, metric))
            for set_name, shown in [*((each, each) for each in runs.one(name).sets(*OOD_ROLES)), *groups.items()]
        ]
        yield _protocol(runs, f"{name}:{metric}", f"{title}: {heading}", "", [*known, *columns], [name])
    shifted = runs.one(name).sets("shifted")
    if shifted:
        robust = [_accuracy(runs, name, set_name, f"{set_name}, accuracy") for set_name in shifted]
        count = sum(each["role"] == "shifted" for each in sets)
        if count > 1:
            part = "" if len(shifted) == count else f" ({len(shifted)} of {count} sets)"
            robust.append(_accuracy(runs, name, ROBUST, f"robust accuracy{part}"))
        detection = [
            Column(f"{shown}, {label}", metric == "auroc", _at(runs, name, set_name, metric))
            for set_name, shown in (groups or {ALL: "OOD"}).items()
            for metric, label in (("auroc", "AUROC"), (fpr, FPR[fpr]))
        ]
        columns = [*known, *robust, *detection]
        yield _protocol(runs, f"{name}:robust", f"{title}: detection and robust accuracy", "", columns, [name])


def _means(runs: Collection, name: str) -> dict[str, str]:
    """Return the means over OOD sets that say more than single sets do, with headings that tell what they lack."""
    run, found = runs.one(name), {}
    for mean, roles in MEANS.items():
        there = run.sets(*roles)
        defined = [each for each in run.results["sets"] if each["role"] in roles]
        if there and len(defined) > 1 and (mean != ALL or all(run.sets(role) for role in roles)):
            part = "" if len(there) == len(defined) else f" ({len(there)} of {len(defined)} sets)"
            found[mean] = f"{mean}{part}"
    return found


def _base_new(runs: Collection, base: str, new: Sequence[str], fpr: str) -> Protocol:
    columns = []
    for heading, metric in (("accuracy", "accuracy"), ("AUROC", "auroc"), ("FPR95", fpr)):
        columns.append(Column(f"base, {heading}", metric != fpr, _mean_of(runs, [base], metric)))
        columns.append(Column(f"new, {heading}", metric != fpr, _mean_of(runs, new, metric)))
        if metric != fpr:
            both = _mean_of(runs, [base, *new], metric, lambda values: harmonic_mean(values[0], fmean(values[1:])))
            columns.append(Column(f"H, {heading}", True, both))
    note = (
        f"Base: {base}. New: mean of {', '.join(new)}. H is their harmonic mean; there is none of FPR95, where less "
        f"is better. {FPR[fpr]}, mean of the OOD sets. {_PAIRS}"
    )
    return _protocol(runs, "base-new", "Base and unseen classes", note, columns, [base, *new])


_PAIRS = "Spread over several benchmarks is known only where they were run with the same adapters."


def _family(runs: Collection, prefix: str, title: str, members: Sequence[str], fpr: str) -> Protocol:
    columns = [
        Column(f"{name.removeprefix(f'{prefix}-')}, {heading}", metric != fpr, _mean_of(runs, [name], metric))
        for name in members
        for heading, metric in (("AUROC", "auroc"), ("FPR95", fpr))
    ]
    is_robust = all(runs.one(name).sets("shifted") for name in members)
    accuracy, kind = ("robust accuracy", "robust") if is_robust else ("accuracy", "accuracy")
    columns += [
        Column(f"mean of {len(members)}, {heading}", metric != fpr, _mean_of(runs, members, metric))
        for heading, metric in ((accuracy, kind), ("AUROC", "auroc"), ("FPR95", fpr))
    ]
    note = f"{FPR[fpr]}, mean of the OOD sets. {_PAIRS}"
    return _protocol(runs, prefix, title, note, columns, members)


def _stacked(runs: Collection, fpr: str) -> Iterator[Protocol]:
    """Yield a table a benchmark of methods `a+b` below `a` alone, with what `b` adds to it."""
    pairs = [(name.rpartition("+")[0], name) for name in runs.methods if name.rpartition("+")[0] in runs.methods]
    for benchmark in runs.benchmarks:
        columns = [
            Column(heading, metric != fpr, _mean_of(runs, [benchmark], metric))
            for heading, metric in (("ID accuracy", "accuracy"), ("AUROC", "auroc"), (FPR[fpr], fpr))
        ]
        there = [pair for pair in pairs if all(runs.of(method, benchmark) for method in pair)]
        rows = []
        for pair in there:
            for score in runs.scores:
                alone, both = ([column.find(method, score) for column in columns] for method in pair)
                if alone[1] is None or both[1] is None:
                    continue
                gains = [
                    None if one is None or other is None else Spread(other.mean - one.mean, None, None)
                    for one, other in zip(alone, both, strict=True)
                ]
                rows += [Row(pair[0], score, alone), Row(pair[1], score, both), Row("difference", score, gains, True)]
        if rows:
            title = f"{runs.one(benchmark).results['title']}: adapter on top of adapter"
            note = "In percent, means of the OOD sets; differences of the means in points."
            yield Protocol(f"{benchmark}:stacked", _titled(runs, title), note, columns, rows)


def _protocol(
    runs: Collection, key: str, title: str, note: str, columns: Sequence[Column], benchmarks: Sequence[str]
) -> Protocol:
    rows = []
    for method in runs.methods:
        scores = [
            score
            for score in runs.scores
            if any(runs.value(method, name, (score, ALL, "auroc")) is not None for name in benchmarks)
        ]
        # Without OOD images there still is an accuracy.
        for score in scores or ["–"]:
            figures = [column.find(method, score) for column in columns]
            if any(figure is not None for figure in figures):
                rows.append(Row(method, score, figures))
    text = f"In percent. {note} {_missing(runs, benchmarks)}"
    return Protocol(key, _titled(runs, title), " ".join(text.split()), columns, rows)


def _missing(runs: Collection, benchmarks: Sequence[str]) -> str:
    lacking = [
        f"{each['name']} of {name}"
        for name in benchmarks
        for each in runs.one(name).results["sets"]
        if each["role"] in ("shifted", *OOD_ROLES) and each["status"] != "ok"
    ]
    return f"Left out, missing or failed: {', '.join(lacking)}." if lacking else ""


def _titled(runs: Collection, title: str) -> str:
    """Return a title that says which ID images count in the detection figures."""
    id_filter, full_spectrum = runs.runs[0].id_rule
    return f"{title} (id_filter {id_filter}{', full spectrum' if full_spectrum else ''})"


def _at(runs: Collection, benchmark: str, set_name: str, metric: str) -> Find:
    return lambda method, score: runs.value(method, benchmark, (score, set_name, metric))


def _accuracy(runs: Collection, benchmark: str, set_name: str, heading: str) -> Column:
    return Column(heading, True, lambda method, _: runs.value(method, benchmark, (None, set_name, "accuracy")))


def _mean_of(
    runs: Collection, benchmarks: Sequence[str], metric: str, function: Callable[[Sequence[float]], float] = fmean
) -> Find:
    """Return how to find a function of a benchmark's main figures: accuracy, or means of its OOD sets."""

    def key(name: str, score: str) -> Key:
        if metric == "robust":
            return None, ROBUST, "accuracy"
        if metric == "accuracy":
            return None, next(iter(runs.one(name).sets("id"))), "accuracy"
        return score, ALL, metric

    return lambda method, score: runs.combined(method, {name: key(name, score) for name in benchmarks}, function)
