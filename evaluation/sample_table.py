"""What a run knows of every image, by set and score: the ground of pictures, galleries and comparisons."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_oodclip.errors import RunError, unknown_name

from .run_checks import check_results, check_samples

__all__ = ["FORMAT", "MEANS", "SampleTable", "check_numbers", "detection_columns", "read_run"]

FORMAT = "hf_oodclip evaluation 1"
OOD_ROLES = ("near", "far")
MEANS = {"mean of near": ("near",), "mean of far": ("far",), "mean of all": ("near", "far")}
_SCORE, _P_VALUE = "score:", "p_value:"


class SampleTable:
    """The rows of `samples.parquet`, grouped by set, in the order of the images in each set.

    Args:
        table: One row an image and set, with the columns the runner writes.
        id_filter, full_spectrum: Which images the run counts as ID when it detects, as in its results.

    Raises:
        RunError: A column is missing or malformed, an image is there twice, or a score is not a finite number.

    Example:
        >>> import pyarrow as pa
        >>> row = {"set": "a", "role": "id", "row": 0, "file": None, "label": 0, "prediction": 0}
        >>> row |= {"confidence": 0.5, "nearest_negative": None, "score:mcm": -0.25}
        >>> samples = SampleTable(pa.Table.from_pylist([row]))
        >>> samples.scores, samples.of("a", "score:mcm").tolist()
        (['mcm'], [-0.25])
    """

    def __init__(self, table: pa.Table, id_filter: str = "all", full_spectrum: bool = False) -> None:
        check_samples(table)
        self._table = table.combine_chunks()
        self._only_correct, self._known_roles = id_filter == "correct", ("id", "shifted") if full_spectrum else ("id",)
        self.scores = [name.removeprefix(_SCORE) for name in table.column_names if name.startswith(_SCORE)]
        self.calibrated = [name.removeprefix(_P_VALUE) for name in table.column_names if name.startswith(_P_VALUE)]
        # Of a dictionary the million names of a column are not made one by one.
        names = self._table["set"].combine_chunks().dictionary_encode()
        numbers, positions = names.indices.to_numpy(zero_copy_only=False), self._table["row"].to_numpy()
        self._rows: dict[str, np.ndarray] = {}
        self.roles: dict[str, str] = {}
        for number, name in enumerate(names.dictionary.to_pylist()):
            rows = np.flatnonzero(numbers == number)
            self._rows[name] = rows[np.argsort(positions[rows], kind="stable")]
            self.roles[name] = self._table["role"][int(rows[0])].as_py()
            ordered = positions[self._rows[name]]
            if (twice := np.flatnonzero(np.diff(ordered) == 0)).size:
                raise RunError(f"Set {name!r} has row {ordered[twice[0]]} twice in the samples: run it again.")
        for name in table.column_names:
            if name.startswith((_SCORE, _P_VALUE)):
                self._check(name)

    def _check(self, name: str) -> None:
        column = self._table[name]
        bad = ~np.isfinite(column.to_numpy()) if not column.null_count else column.is_null().to_numpy()
        if bad.any():
            where = int(np.flatnonzero(bad)[0])
            image = f"set {self._table['set'][where].as_py()!r}, row {self._table['row'][where].as_py()}"
            raise RunError(
                f"{name} is {column[where].as_py()} for {image}, and for {int(bad.sum())} images in all; every "
                "image needs a finite one. Find out what is wrong with these images, or leave them out as skipped."
            )

    def __len__(self) -> int:
        return self._table.num_rows

    def count(self, set_name: str) -> int:
        """Return how many images a set has."""
        return len(self._rows[set_name])

    def sets(self, *roles: str) -> list[str]:
        """Return the names of the sets that have one of these roles."""
        return [name for name, role in self.roles.items() if role in roles]

    @property
    def id_set(self) -> str | None:
        """The set of in-distribution test images, or None where it is missing."""
        return next(iter(self.sets("id")), None)

    @property
    def ood_sets(self) -> list[str]:
        """The near and far OOD sets."""
        return self.sets(*OOD_ROLES)

    @property
    def main_score(self) -> str | None:
        """The score that a model decides with by default: `neglabel`, else `mcm`, else the first."""
        ranked = sorted(self.scores, key=lambda score: {"neglabel": 0, "mcm": 1}.get(score, 2))
        return ranked[0] if ranked else None

    def of(self, set_name: str, column: str) -> np.ndarray:
        """Return a numeric column for the images of one set, in their order.

        Raises:
            UnknownNameError: There is no such set or column.
        """
        if set_name not in self._rows:
            raise unknown_name("set", set_name, self._rows)
        if column not in self._table.column_names:
            raise unknown_name("column", column, self._table.column_names)
        return np.asarray(self._table[column].to_numpy()[self._rows[set_name]])

    def id_scores(self, score: str) -> np.ndarray:
        """Return one score of all images that count as ID, those that the detection figures rest on."""
        parts = []
        for name in self.sets(*self._known_roles):
            values = self.of(name, _SCORE + score)
            right = self.of(name, "label") == self.of(name, "prediction")
            parts.append(values[right] if self._only_correct else values)
        return np.concatenate(parts)

    def texts(self, set_name: str, column: str, places: Any = None) -> list[str | None]:
        """Return a text column for the images of one set, or for those at some places in it."""
        rows = self._rows[set_name] if places is None else self._rows[set_name][places]
        values: list[str | None] = self._table[column].take(pa.array(rows)).to_pylist()
        return values


def check_numbers(value: Any, place: str = "results") -> None:
    """Raise if a number anywhere in some results is NaN or infinite.

    Raises:
        RunError: The message names the place.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"{place} is {value}; a figure is a finite number, or null where there is none.")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        check_numbers(inner, f"{place}[{key!r}]")


def detection_columns(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the OOD sets in order, missing ones too, then the means: `(name, heading)`.

    The heading of a mean over fewer sets than the benchmark has says so.
    """
    sets = [each for each in results["sets"] if each["role"] in OOD_ROLES]
    columns = [(each["name"], each["name"]) for each in sets]
    reported = {each["set"] for each in results["detection"]}
    for name, roles in MEANS.items():
        those = [each for each in sets if each["role"] in roles]
        there = sum(each["status"] == "ok" for each in those)
        if name in reported:
            columns.append((name, name if there == len(those) else f"{name} ({there} of {len(those)} sets)"))
    return columns


def read_run(folder: str | Path) -> tuple[dict[str, Any], pa.Table]:
    """Return results and samples of a finished run.

    Raises:
        RunError: The folder has no results or samples, or they are damaged or of another version.
    """
    folder = Path(folder)
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        with (folder / "samples.parquet").open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        table = pq.read_table(folder / "samples.parquet")
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise RunError(
            f"{folder} holds no finished run ({error}). Give the output folder of a run, with results.json and "
            "samples.parquet; a run that was stopped can be started again with the same command."
        ) from error
    found = results.get("format") if isinstance(results, dict) else None
    if found != FORMAT:
        raise RunError(f"{folder / 'results.json'} has format {found!r}; this version reads {FORMAT!r}.")
    check_numbers(results)
    check_results(results)
    checksums = results.get("checksums")
    expected = checksums.get("samples.parquet") if isinstance(checksums, dict) else None
    if expected is not None and digest != expected:
        raise RunError(f"{folder / 'samples.parquet'} is not the file these results were made with: run it again.")
    return results, table
