"""Where images come from: a source written as a string becomes an opened 🤗 dataset."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from hf_oodclip.assets import images_path
from hf_oodclip.errors import DataError, OODCLIPError, unknown_name
from hf_oodclip.images import IMAGE_SUFFIXES

__all__ = ["open_source", "source_and_split"]

logger = logging.get_logger("hf_oodclip.training.data_sources")

# Sub-folders of these names are splits; of any others, classes.
SPLIT_FOLDERS = frozenset(
    ["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"]
)
LISTINGS = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def open_source(
    source: str,
    *,
    split: str | None = None,
    config_name: str | None = None,
    streaming: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Return the dataset behind a source, or with `streaming` a stream of its rows.

    Args:
        source: `embedded` (the package's own ID images, with the splits `calibration` and `test`) or
            `embedded:<name>`; a folder of images, with a sub-folder a class, and above those a
            sub-folder a split if there are several; a folder written by `save_to_disk`; a parquet file
            or a pattern of them; any other local folder 🤗 Datasets can load; or a dataset id on the Hub.
        split: Its name, or for what `load_dataset` loads an expression such as `train[:10%]`. Without
            it `train`, or the only split there is.
        config_name: The configuration of a Hub dataset that has several.
        streaming: Read rows as they are asked for instead of preparing all of them on disk.
        token: Access token for the Hub.
        revision: Branch, tag or commit of a Hub dataset.

    Raises:
        DataError: The source does not exist, cannot be read, or needs a split to be chosen.
        UnknownNameError: No split or embedded set of that name.

    Example:
        >>> len(open_source("embedded:far_digits"))
        160
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise DataError(f"A source of images must be a non-empty string, got {source!r}. Give a folder or a Hub id.")
    source = str(source)
    if source == "embedded" or source.startswith("embedded:"):
        return _as_asked(_embedded(source, split), streaming)
    path = Path(source).expanduser()
    if path.is_dir():
        if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            return _as_asked(_saved(path, split), streaming)
        return _folder(source, path, split, streaming)
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if files:
        if other := [str(file) for file in files if file.suffix != ".parquet"]:
            raise DataError(
                f"{source!r} is or matches {other[0]!r}, which is no parquet file. Give parquet files, a folder "
                "of images, a folder written by save_to_disk, or a dataset id on the Hub."
            )
        if sum(_rows_of(file) for file in files) == 0:
            raise DataError(f"{source!r} has no images: it is a table without rows.")
        escaped = {"train": [glob.escape(str(file.resolve())) for file in files]}
        return _load(source, split, "parquet", {"data_files": escaped}, streaming)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) or source.endswith(".parquet"):
        raise DataError(
            f"{source!r} does not exist: no file or folder of that name, and no file matches it as a pattern."
        )
    options = {"name": config_name, "token": token, "revision": revision}
    return _load(source, split, source, {k: v for k, v in options.items() if v is not None}, streaming)


def source_and_split(text: str) -> tuple[str, str | None]:
    """Return the two parts of `source#split`, the split None without it; what exists as it stands has none.

    Example:
        >>> source_and_split("embedded#test"), source_and_split("me/images")
        (('embedded', 'test'), ('me/images', None))
    """
    try:
        whole = "#" not in text or Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # can be no path
        whole = False
    source, _, split = (text, "", "") if whole else text.rpartition("#")
    return source, split or None


def _as_asked(dataset: datasets.Dataset, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    return dataset.to_iterable_dataset() if streaming else dataset


def _embedded(source: str, split: str | None) -> datasets.Dataset:
    name = source.partition(":")[2] or "id"
    available = [path.stem for path in Path(images_path("id")).parent.glob("*.parquet")]
    if name not in available:
        raise unknown_name("embedded image set", name, available)
    # In memory: needs no cache folder that can be written.
    dataset = datasets.Dataset(pq.read_table(images_path(name)))
    if "split" not in dataset.column_names:
        if split not in (None, "train", "all"):
            raise DataError(f"{source!r} has no splits, got split={split!r}. Leave it out.")
        return dataset
    row_splits = dataset["split"][:]
    names = [*sorted(set(row_splits)), "all"]
    if split is None:
        raise _split_needed(source, names)
    if split not in names:
        raise unknown_name(f"split of {source!r}", split, names)
    return dataset.select([row for row, name in enumerate(row_splits) if split in ("all", name)])


def _rows_of(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(file)!r} cannot be loaded: it is no whole parquet file ({error}).") from error


def _saved(folder: Path, split: str | None) -> datasets.Dataset:
    try:
        loaded = datasets.load_from_disk(folder)
    except Exception as error:  # damaged files can make it raise anything
        raise DataError(
            f"{str(folder)!r}, written by save_to_disk, cannot be loaded ({type(error).__name__}: "
            f"{str(error).strip().rstrip('.')}). It is damaged, or a split of it is empty: write it again."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        if not loaded:
            raise DataError(f"{str(folder)!r}, written by save_to_disk, has no splits: write it again.")
        return _choose_split(str(folder), loaded, split)
    if split is not None and split != str(loaded.split):
        raise DataError(f"{str(folder)!r} holds one dataset without splits, got split={split!r}. Leave it out.")
    return loaded


def _folder(source: str, folder: Path, split: str | None, streaming: bool) -> Any:
    try:
        files = list(_files_below(folder))
        subfolders = _subfolders(folder)
    except OSError as error:
        raise DataError(f"{source!r} cannot be looked into: {error}.") from error
    images = [entry for entry in files if _is_image(entry.name)]
    if not images:
        return _load(source, split, str(folder), {}, streaming)
    if odd := [entry.path for entry in images if re.search("[\ud800-\udfff]|::", entry.path)]:
        raise DataError(f"{odd[0]!r} has a name that Datasets cannot open (no UTF-8 text, or with '::'): rename it.")
    if absent := [entry.path for entry in images if not _holds(entry.is_file)]:
        logger.warning(
            f"{source!r}: {len(absent)} of {len(images)} images are left out, for they are links to nothing or no "
            f"files: {absent[:3]}."
        )
    folders = [entry.name for entry in subfolders]
    splits = folders and all(name.lower() in SPLIT_FOLDERS for name in folders)
    if splits and not any(_is_image(path.name) for path in folder.iterdir()):
        patterns = {name: _files_in(folder, f"{name}/") for name in sorted(folders)}
        # Else Datasets would take the splits for classes.
        drop_labels = None if any(_subfolders(folder / name) for name in folders) else True
    else:
        # Said outright, because Datasets would take a class folder "freight train car" for the split "train".
        patterns = {"train": _files_in(folder, "")}
        drop_labels = None
    options = {"data_dir": glob.escape(str(folder.resolve())), "data_files": patterns, "drop_labels": drop_labels}
    dataset = _load(source, split, "imagefolder", options, streaming)
    if listings := [entry.path for entry in files if entry.name in LISTINGS]:
        logger.warning(f"{source!r}: of the images beside and below {listings[0]} only those that it lists are used.")
    if list(dataset.features) == ["image"] and folders and not drop_labels:
        logger.warning(
            f"No labels in {source!r}: they are read only if there are at least two class folders, all equally deep."
        )
    return dataset


def _files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that is no folder, also below linked folders, but below none twice."""
    seen, waiting = set(), [str(folder)]
    while waiting:
        here = waiting.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if _holds(entry.is_dir):
                    waiting.append(entry.path)
                else:
                    yield entry


def _holds(question: Callable[[], bool]) -> bool:
    """Return what an entry says of itself; of a link that leads to itself nothing is true."""
    try:
        return question()
    except OSError:
        return False


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _subfolders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        found = (entry for entry in entries if _holds(entry.is_dir) and not entry.name.startswith("."))
        return sorted(found, key=lambda entry: entry.name)


def _files_in(folder: Path, below: str) -> list[str]:
    """Return the patterns of all files below a sub-folder; linked folders must be named, `**` leaves them out."""
    linked = [entry.name for entry in _subfolders(folder / below) if entry.is_symlink()]
    return [f"{below}**", *(f"{below}{glob.escape(name)}/**" for name in linked)]


def _load(source: str, split: str | None, path: str, options: dict[str, Any], streaming: bool) -> Any:
    def load(**split_option: str) -> Any:
        return datasets.load_dataset(path, streaming=streaming, **split_option, **options)

    try:
        if split is None:
            return _choose_split(source, load(), None)
        try:
            return load(split=split)
        except ValueError as error:
            if not str(error).startswith(("Unknown split", "Bad split")):
                raise
            return _choose_split(source, load(), split)
    except OODCLIPError:
        raise
    except Exception as error:  # of a damaged or odd source Datasets can raise anything
        reason = f"{error.__cause__ or error}".strip().rstrip(".!")
        where = "" if path != source or Path(source).exists() else " It is no local file or folder either."
        raise DataError(f"{source!r} cannot be loaded ({type(error).__name__}): {reason}.{where}") from error


def _choose_split(source: str, splits: Any, split: str | None) -> Any:
    names = list(splits)
    if split is not None:
        if split not in names:
            raise unknown_name(f"split of {source!r}", split, names)
        return splits[split]
    if "train" not in names and len(names) != 1:
        raise _split_needed(source, names)
    return splits["train" if "train" in names else names[0]]


def _split_needed(source: str, names: list[str]) -> DataError:
    return DataError(f"{source!r} has several splits and none is named 'train'. Choose one with split=: {names}.")
