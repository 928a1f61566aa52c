"""Lists of classes: read from a file, given in a benchmark, or a part of one, the same part every time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from hf_oodclip.errors import unknown_name

from .benchmark_errors import BenchmarkError

__all__ = ["ClassList", "read_class_file", "resolve_classes", "seeded_order"]

_SELECTION = ("file", "take", "order", "seed", "rest", "only")


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their labels.

    Args:
        ids: What tells them apart and data call them, such as WordNet ids or folder names; all different.
        names: What the model is asked for. Two classes may share one: ImageNet has two called "missile".
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, rows: Iterable[int]) -> ClassList:
        """Return the classes of these rows, in the order given."""
        rows = list(rows)
        return ClassList(tuple(self.ids[row] for row in rows), tuple(self.names[row] for row in rows))


def seeded_order(count: int, seed: int) -> np.ndarray:
    """Return the numbers below `count` in a random order that depends on nothing but the seed.

    Example:
        >>> seeded_order(5, seed=0).tolist()
        [2, 0, 1, 3, 4]
    """
    # Of NumPy's generators this one alone is promised to give the same numbers in every release.
    return np.random.RandomState(seed).permutation(count)


def read_class_file(path: Path) -> ClassList:
    """Return the classes of a text file: a line each, either a name or an id, a tab and a name; `#` begins a comment.

    Raises:
        BenchmarkError: The file cannot be read, has no classes, or a class stands in it twice.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(f"The class list {str(path)!r} cannot be read as UTF-8 text: {error}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        raise BenchmarkError(f"The class list {str(path)!r} has no classes. Write one a line.")
    pairs = [[part.strip() for part in line.split("\t")] for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) > 2 or not all(pair):
            raise BenchmarkError(
                f"Class {number} of {str(path)!r} is {lines[number - 1]!r}. Write a name, or an id, a tab and a name."
            )
    return _class_list([pair[0] for pair in pairs], [pair[-1] for pair in pairs], str(path))


def resolve_classes(value: Any, where: str, folders: Iterable[Path], seed: int | None = None) -> ClassList:
    """Return the classes a benchmark asks for.

    Args:
        value: A file of classes, by name; a list of names; or a mapping: `file`, then `take` so many classes,
            the first (`order: file`) or drawn at random (`order: random`, with a `seed`), or with `rest: true`
            all but those; then `only` those that are in a second file.
        where: What asks, for messages.
        folders: Where to look for files, after those this package ships.
        seed: Replaces the seed of a random draw.

    Raises:
        BenchmarkError: It is none of these, or asks for more classes than there are.
        UnknownNameError: No such file or option.
    """
    if isinstance(value, str):
        return read_class_file(_class_path(value, where, folders))
    if isinstance(value, list):
        if not value or not all(isinstance(name, str) and name.strip() for name in value):
            raise BenchmarkError(
                f"{where} must be a list of class names, got {value!r:.200}. Put quotes around numbers."
            )
        return _class_list(value, value, where)
    if not isinstance(value, dict):
        raise BenchmarkError(f"{where} must be a file of classes, a list of names or a mapping, got {value!r:.200}.")
    for key in value:
        if key not in _SELECTION:
            raise unknown_name(f"option of {where}", key, _SELECTION)
    if not isinstance(value.get("file"), str):
        raise BenchmarkError(f"{where} must name a file of classes: file: NAME, got {value.get('file')!r:.200}.")
    classes = _take(resolve_classes(value["file"], where, folders), value, where, seed)
    if "only" in value:
        kept = set(resolve_classes(value["only"], f"{where}, only", folders).ids)
        classes = classes.pick(row for row, name in enumerate(classes.ids) if name in kept)
        if not len(classes):
            raise BenchmarkError(f"{where}: no class of {value['file']!r} is in {value['only']!r:.200}.")
    return classes


def _take(classes: ClassList, value: dict[str, Any], where: str, seed: int | None) -> ClassList:
    take, order, rest = value.get("take", len(classes)), value.get("order", "file"), value.get("rest", False)
    if type(take) is not int or not 1 <= take <= len(classes):
        raise BenchmarkError(f"{where}: take must be a number of classes from 1 to {len(classes)}, got {take!r:.200}.")
    if not isinstance(rest, bool) or (rest and take == len(classes)):
        raise BenchmarkError(f"{where}: rest must be true or false, and leaves nothing unless take is below all.")
    if order not in ("file", "random"):
        raise unknown_name(f"order of {where}", order, ("file", "random"))
    own_seed = value.get("seed", 0)
    if type(own_seed) is not int or not 0 <= own_seed < 2**32 or ("seed" in value and order == "file"):
        raise BenchmarkError(
            f"{where}: seed must be a whole number from 0 and needs order: random, got {own_seed!r:.200}."
        )
    rows = range(len(classes)) if order == "file" else seeded_order(len(classes), own_seed if seed is None else seed)
    chosen = {int(row) for row in list(rows)[:take]}
    return classes.pick(row for row in range(len(classes)) if (row in chosen) is not rest)


def _class_list(ids: list[str], names: list[str], where: str) -> ClassList:
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise BenchmarkError(
            f"{where} has {twice[:5]} more than once. Leave out the repetition, or give ids that differ in a file of "
            "classes: id, tab, name."
        )
    return ClassList(tuple(ids), tuple(names))


def _class_path(name: str, where: str, folders: Iterable[Path]) -> Path:
    shipped = files("hf_oodclip.evaluation") / "classes"
    names = [entry.name for entry in shipped.iterdir() if entry.name.endswith(".txt")]
    if name in names:
        return Path(str(shipped)) / name
    try:
        places = [Path(folder) / Path(name).expanduser() for folder in (*folders, Path())]
        found = next((path for path in places if path.is_file()), None)
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(f"{where}: {name!r:.200} cannot be the name of a file: {error!s:.100}.") from error
    if found is None:
        advice = f"Or give a file of your own; looked for {', '.join(sorted({str(path) for path in places}))}."
        raise unknown_name(f"class list of {where}", name, names, advice)
    return found
