"""The images of a set of a benchmark, opened and labelled by the benchmark's own classes."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from hf_oodclip.training.data import ImageSet, dataset_of, load_image_set, with_labels
from hf_oodclip.training.data_columns import describe_columns, find_columns
from hf_oodclip.training.data_sources import open_source
from transformers.utils import logging

from hf_oodclip.errors import DataError

from .benchmark_errors import BenchmarkError, MissingSet
from .benchmark_specs import SetSpec
from .class_lists import seeded_order

__all__ = ["class_slice", "open_set"]

logger = logging.get_logger("hf_oodclip.evaluation.image_sets")


@dataclass
class _Opened:
    """Images as the data have them: `labels` index `names`, which are the data's own; both None without labels."""

    images: datasets.Dataset
    labels: np.ndarray | None
    names: list[str] | None


def open_set(spec: SetSpec, labels: Sequence[str] | None, root: str | Path | None = None) -> ImageSet:
    """Return the images of a set; of the ID classes with labels that index `labels`, of OOD sets without.

    Args:
        spec: Which set.
        labels: The benchmark's labels; None if they are to be those of the images, for the ID set.
        root: The folder below which the data of benchmarks are. None: the current folder.

    Raises:
        MissingSet: The data are not there; the message says what to fetch and where to put it.
        DataError: They are there and cannot be used: unreadable, without a class the set needs, malformed.
        UnknownNameError: No split or column of that name.

    Example:
        >>> from hf_oodclip.evaluation.benchmark import load_benchmark
        >>> len(open_set(load_benchmark("pocket").ood_sets[0], None))
        240
    """
    title = f"Set {spec.name!r}"
    is_id = spec.role in ("id", "shifted", "calibration")
    ids = spec.label_ids or (list(labels) if labels is not None else None)
    if labels is not None and ids is not None and len(ids) != len(labels) and is_id:
        raise DataError(f"{title} belongs to a benchmark of {len(ids)} labels, got {len(labels)}.")
    needs_labels = is_id or spec.classes is not None or spec.per_class is not None
    pieces = [_open(spec, part, ids if is_id else None, needs_labels, root) for part in spec.parts or (None,)]
    if is_id and ids is None:
        ids = pieces[0].names
    wanted = ids if is_id else spec.classes
    images, targets = _together([_keep(piece, wanted, spec, title) for piece in pieces])
    images, targets = _drawn(images, targets, spec, title)
    if not is_id or targets is None:
        return ImageSet(images, None, title)
    names = list(labels if labels is not None else ids or ())
    return ImageSet(with_labels(images, targets.tolist()), names, title)


def class_slice(text: str, where: str) -> slice:
    """Return the slice that `per_class` stands for.

    Raises:
        BenchmarkError: It is not `start:stop`, both whole numbers or left out.

    Example:
        >>> class_slice("4:", "set 'id'")
        slice(4, None, None)
    """
    match = re.fullmatch(r"([0-9]{0,9}):([0-9]{0,9})", text)
    start, stop = (int(part) if part else None for part in match.groups()) if match else (None, None)
    if match is None or (stop is not None and stop <= (start or 0)):
        raise BenchmarkError(
            f"{where}: per_class must be start:stop as in ':100' or '4:', with images left, got {text!r:.50}."
        )
    return slice(start, stop)


def _open(spec: SetSpec, part: str | None, ids: list[str] | None, labelled: bool, root: str | Path | None) -> _Opened:
    base = Path(root).expanduser() if root is not None else Path()
    if spec.image_list is not None:
        return _open_list(spec, base, ids, labelled)
    source = str(spec.source)
    embedded, on_hub = source.partition(":")[0] == "embedded", spec.revision is not None
    if not embedded and not on_hub:
        path = (base / Path(source).expanduser() / (part or "")).absolute()
        if not _matches(path):
            raise _missing(spec, f"{path} does not exist or is empty", path)
        source = str(path)
    options = {"split": spec.split, "config_name": spec.config_name, "revision": spec.revision}
    columns = {"image_column": spec.image_column, "label_column": spec.label_column if labelled else ""}
    try:
        numbered = (spec.label_names or ids) if labelled and _bare_numbers(spec, source, options) else None
        opened = load_image_set(source, label_names=numbered, **columns, **options)
    except DataError as error:
        if on_hub and isinstance(error.__cause__, FileNotFoundError | ConnectionError):
            raise _missing(spec, f"the dataset {source!r} cannot be had from the Hub now: {error}", None) from error
        raise
    names, found = opened.label_names, None if opened.labels is None else np.asarray(opened.labels)
    if labelled and names is not None and spec.label_names is not None:
        names = _renamed(names, spec.label_names, f"Set {spec.name!r}")
    return _Opened(opened.images, found, names)


def _renamed(names: list[str], classes: list[str], title: str) -> list[str]:
    """Return the class of each of the data's names: by number where they are numbers, else by position.

    Folders called by number, such as those of ImageNet-V2, sort as 0, 1, 10, 100.
    """
    if names != classes and all(name.isascii() and name.isdigit() for name in names):
        if outside := [name for name in names if int(name) >= len(classes)]:
            raise DataError(f"{title} has a class {outside[0]!r}, but label_names numbers 0 to {len(classes) - 1}.")
        return [classes[int(name)] for name in names]
    if len(names) != len(classes):
        raise DataError(f"{title} has {len(names)} classes, but label_names gives {len(classes)}.")
    return classes


def _matches(path: Path) -> bool:
    try:
        return any(path.iterdir()) if path.is_dir() else bool(glob.glob(str(path), recursive=True))  # noqa: PTH207
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r:.200} cannot be looked into: {error!s:.100}.") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def _bare_numbers(spec: SetSpec, source: str, options: dict[str, str | None]) -> bool:
    """Return whether labels are numbers whose names the data do not tell."""
    title = f"Set {spec.name!r}"
    dataset = open_source(source, **options)
    _, feature = find_columns(dataset, spec.image_column, spec.label_column, title)
    if feature is None:
        raise DataError(
            f"{title} has no labels, and needs them. Its columns: {describe_columns(dataset.features)}. Name that of "
            "the class names or whole numbers, label_column; or sort the images into class folders, at least two and "
            "all equally deep."
        )
    return isinstance(feature, datasets.Value) and "string" not in feature.dtype


def _open_list(spec: SetSpec, base: Path, ids: list[str] | None, labelled: bool) -> _Opened:
    list_path, folder = base / str(spec.image_list), base / (spec.image_root or "")
    if not _is_file(list_path):
        raise _missing(spec, f"the list {list_path} does not exist or is no file", list_path)
    names, labels = _read_list(list_path)
    paths = [folder / name for name in names]
    absent = [str(path) for path in paths if not _is_file(path)]
    if len(absent) == len(paths):
        raise _missing(spec, f"none of the {len(paths)} images of {list_path} is there, such as {absent[0]}", folder)
    if absent:
        logger.warning(
            f"Set {spec.name!r}: {len(absent)} of {len(paths)} images of {list_path} are not there and will be "
            f"skipped, such as {absent[:3]}."
        )
    images = dataset_of([{"bytes": None, "path": str(path)} for path in paths], None, None)
    if not labelled:
        return _Opened(images, None, None)
    classes = spec.label_names or ids
    if classes is None:
        raise DataError(f"Set {spec.name!r}: the labels of {list_path} are numbers. Give labels or label_names.")
    given: dict[str, int] = {}
    for name, label in zip(names, labels, strict=True):
        if given.setdefault(name, label) != label:
            raise DataError(f"{list_path} gives {name!r} both the label {given[name]} and {label}. Leave one out.")
    if outside := [row for row, label in enumerate(labels) if not 0 <= label < len(classes)]:
        raise DataError(
            f"{list_path}: {len(outside)} labels are not in 0 to {len(classes) - 1}, such as {labels[outside[0]]} of "
            f"{names[outside[0]]!r}. Only OOD images may have the label -1."
        )
    return _Opened(images, np.asarray(labels), classes)


def _read_list(path: Path) -> tuple[list[str], list[int]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The image list {path} cannot be read as UTF-8 text: {error}.") from error
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(.*\S)\s+(-?[0-9]{1,9})", line.strip())
        if match is None or "\0" in line:
            raise DataError(
                f"Line {number} of {path} is {line[:100]!r}. Each must be a path, a space and a whole number."
            )
        names.append(match[1])
        labels.append(int(match[2]))
    if not names:
        raise DataError(f"The image list {path} has no lines.")
    if len(set(names)) < len(names):
        logger.warning(f"{path} lists {len(names) - len(set(names))} images more than once; each line counts.")
    return names, labels


def _missing(spec: SetSpec, what: str, path: Path | None) -> MissingSet:
    place = "" if path is None else f" Put it at {path}, or give another root."
    fetch = spec.where.strip() or "Its benchmark does not say where to fetch it."
    return MissingSet(f"The images of set {spec.name!r} are not here: {what}. {fetch}{place}")


def _keep(piece: _Opened, wanted: list[str] | None, spec: SetSpec, title: str) -> _Opened:
    """Return the images of wanted classes with labels that index `wanted`; all of them if none are named."""
    if piece.labels is None or piece.names is None or wanted is None:
        return piece
    targets = _find(piece.names, wanted)
    found, needed = set(targets.tolist()), set(spec.classes or wanted)
    if missing := [each for row, each in enumerate(wanted) if row not in found and each in needed]:
        nearest = difflib.get_close_matches(missing[0], piece.names, n=3, cutoff=0.0)
        raise DataError(
            f"{title} has no class {missing[0]!r}{f' ({len(missing)} are missing)' if missing[1:] else ''}. It has "
            f"{len(piece.names)} classes; most like it: {nearest}. Name its classes as the benchmark does, or give "
            "label_names, the class of each of its label numbers."
        )
    if spec.classes is not None:
        targets = np.asarray([row if row >= 0 and wanted[row] in needed else -1 for row in targets.tolist()])
    new = targets[piece.labels]
    rows = np.flatnonzero(new >= 0)
    if len(rows) == 0:
        raise DataError(f"{title} has no image of its {len(wanted)} classes.")
    if len(rows) < len(new) and spec.classes is None and spec.count is None:
        other = [name for name, target in zip(piece.names, targets, strict=True) if target < 0]
        logger.warning(
            f"{title}: {len(new) - len(rows)} of {len(new)} images are left out, of {len(other)} classes that are no "
            f"labels, such as {other[:3]}."
        )
    images = piece.images if len(rows) == len(new) else piece.images.select(rows)
    return _Opened(images, new[rows], wanted)


def _find(names: list[str], wanted: list[str]) -> np.ndarray:
    """Return the row in `wanted` of each name of the data, -1 for those that are not wanted.

    They are the same if equal, if equal but for case, punctuation and a leading "001.", or if the data call as many
    classes as are wanted by their numbers.
    """
    if names == wanted:
        return np.arange(len(names))
    exact = {each: row for row, each in enumerate(wanted)}
    numbers = {str(row): row for row in range(len(wanted))}
    if numbers.keys() == set(names) and not exact.keys() & set(names):
        return np.asarray([numbers[name] for name in names])
    alike: dict[str, int] = {}
    for row, each in enumerate(wanted):
        alike[_plain(each)] = -1 if _plain(each) in alike else row
    return np.asarray([exact.get(name, alike.get(_plain(name), -1)) for name in names])


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"^[0-9]+\.", "", name)).casefold().split())


def _together(pieces: list[_Opened]) -> tuple[datasets.Dataset, np.ndarray | None]:
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    if len(pieces) == 1:
        return pieces[0].images, labels[0] if labels else None
    images = datasets.concatenate_datasets([piece.images.select_columns(["image"]) for piece in pieces])
    return images, np.concatenate(labels) if labels else None


def _drawn(
    images: datasets.Dataset, labels: np.ndarray | None, spec: SetSpec, title: str
) -> tuple[datasets.Dataset, np.ndarray | None]:
    rows = np.arange(len(images))
    if spec.per_class is not None and labels is not None:
        kept = class_slice(spec.per_class, title)
        of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        rows = np.sort(np.concatenate([each[seeded_order(len(each), 0)[kept]] for each in of_class]))
    if spec.limit is not None and spec.limit < len(rows):
        rows = np.sort(rows[seeded_order(len(rows), 0)[: spec.limit]])
    if len(rows) == 0:
        raise DataError(f"{title} has no images left of {len(images)}: no class has that many. Change per_class.")
    if len(rows) == len(images):
        return images, labels
    return images.select(rows), None if labels is None else labels[rows]
