"""Labelled images for training and evaluation, from wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.table import InMemoryTable, concat_tables
from datasets.utils.file_utils import xopen
from transformers.utils import logging

from hf_oodclip.errors import DataError, unknown_name

from .data_columns import check_labels, find_columns, known_label_names, number_labels
from .data_sources import open_source

__all__ = ["ImageSet", "dataset_of", "load_image_set", "with_labels"]

logger = logging.get_logger("hf_oodclip.training.data")


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels, ready to be embedded.

    Args:
        images: The dataset, with a column `image` that is not decoded (so a corrupt image does no harm
            until it is used) and, if labelled, `label`, an index into `label_names`. Its fingerprint is
            the same whenever the same images are loaded and selected in the same way.
        label_names: The name of each class, or None for unlabelled images.
        source: How the images were asked for, for files of results.

    Example:
        >>> images = load_image_set("embedded", split="test")
        >>> len(images), images.of_classes(["acorn", "desk"]).label_names
        (480, ['acorn', 'desk'])
    """

    images: datasets.Dataset
    label_names: list[str] | None
    source: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> list[int] | None:
        """The label of each image, or None for unlabelled images."""
        return None if self.label_names is None else list(self.images["label"][:])

    def select(self, rows: Sequence[int]) -> ImageSet:
        """Return the images of the given rows, in their order.

        Raises:
            DataError: There is no such row.
        """
        if outside := [row for row in rows if not 0 <= row < len(self)]:
            raise DataError(f"{self.source} has no row {outside[0]}: its rows are 0 to {len(self) - 1}.")
        return ImageSet(self.images.select(rows), self.label_names, self.source)

    def of_classes(self, names: Sequence[str]) -> ImageSet:
        """Return the images of these classes only, with labels that index `names`; images keep their order.

        Raises:
            DataError: The images have no labels, or `names` is empty, a string, or repeats a name.
            UnknownNameError: There is no class of that name.
        """
        label_names, labels = self.label_names, self.labels
        if label_names is None or labels is None:
            raise DataError(f"{self.source} has no labels, so its classes cannot be chosen.")
        names = list(names) if not isinstance(names, str) else []
        if not names or len(set(names)) < len(names):
            raise DataError(f"Class names must be a list of different names, got {names or 'none'}.")
        for name in names:
            if name not in label_names:
                raise unknown_name(f"class of {self.source}", name, label_names)
            if label_names.count(name) > 1:
                raise DataError(f"{self.source} has {label_names.count(name)} classes named {name!r}.")
        new_labels = {label_names.index(name): label for label, name in enumerate(names)}
        rows = [row for row, label in enumerate(labels) if label in new_labels]
        images = with_labels(self.images.select(rows), [new_labels[labels[row]] for row in rows])
        return ImageSet(images, names, f"{self.source}, {len(names)} of {len(label_names)} classes")


def load_image_set(
    source: str,
    *,
    split: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    rows: slice | None = None,
    limit: int | None = None,
    streaming: bool = False,
    token: str | bool | None = None,
    revision: str | None = None,
) -> ImageSet:
    """Return the images of a local or remote source, with their labels if it has some.

    Text labels become indices into their sorted names.

    Args:
        source: As in `open_source`: `embedded`, a folder of images, parquet files, a folder written by
            `save_to_disk`, or a dataset id on the Hub.
        split: As in `open_source`.
        config_name: As in `open_source`.
        image_column: The column of images; found by itself if only one can be meant.
        label_column: The column of labels; found likewise. `""` leaves the images unlabelled.
        label_names: The name of each class: needed if labels are bare numbers, else it renames them.
        rows: Which rows to take, such as `slice(0, 1000)`.
        limit: Take this many rows at most, the first ones.
        streaming: Read no more than the rows taken, which needs `limit` or an end of `rows`. The class
            names of text labels are then those of the rows taken.
        token: As in `open_source`.
        revision: As in `open_source`.

    Raises:
        DataError: The source cannot be loaded, has no images, its columns are ambiguous, or labels are
            missing or out of range.
        UnknownNameError: No split, column or embedded set of that name.

    Example:
        >>> images = load_image_set("embedded", split="calibration")
        >>> len(images), images.label_names[1]
        (320, 'American alligator')
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}.")
    described = [source, f"split {split}" if split else "", f"revision {revision}" if revision else ""]
    described += [f"rows {rows.start}:{rows.stop}:{rows.step}".replace("None", "").rstrip(":") if rows else ""]
    described += [f"first {limit}" if limit else ""]
    title = ", ".join(filter(None, map(str, described)))
    opened = open_source(
        source, split=split, config_name=config_name, streaming=streaming, token=token, revision=revision
    )
    chosen, label_feature = find_columns(opened, image_column, label_column, title)
    if label_feature is None and label_names is not None:
        raise DataError(f"{title} has no labels to which label_names could belong. Name their column: label_column=.")
    names = None if label_feature is None else known_label_names(label_feature, label_names, title)
    if isinstance(chosen, datasets.IterableDataset):
        taken = list(_first_rows(chosen, rows, limit, title))
        raw = [row["label"] for row in taken] if label_feature is not None else None
        labels, names = (None, None) if raw is None else number_labels(raw, names, label_names, title)
        images = dataset_of([row["image"] for row in taken], labels, token)
    else:
        kept = range(len(chosen))[rows or slice(None)][:limit]
        raw = chosen["label"][:] if label_feature is not None else None
        labels, names = (None, None) if raw is None else number_labels(raw, names, label_names, title)
        images = chosen.select_columns(["image"]).select(kept if kept else [])
        if raw is not None and labels is not None:
            raw, labels = [raw[row] for row in kept], [labels[row] for row in kept]
            images = with_labels(images, labels)
    if len(images) == 0:
        raise DataError(f"{title} has no images.")
    if raw is not None and labels is not None and names is not None:
        check_labels(raw, labels, names, title)
        present = set(labels)
        if empty := [name for label, name in enumerate(names) if label not in present]:
            logger.warning(f"{title}: {len(empty)} of {len(names)} classes have no image: {empty[:10]}.")
    return ImageSet(images, names, title)


def dataset_of(images: list[dict[str, Any]], labels: list[int] | None, token: str | bool | None) -> datasets.Dataset:
    """Return a dataset in memory, its fingerprint made of the images' content.

    Local files stay files, so that a missing one does no harm until it is used; remote ones are read.
    """
    features = datasets.Features({"image": datasets.Image(decode=False)})
    digest = blake2b(repr(labels).encode(), digest_size=16)
    kept = []
    for image in images:
        content, path = (image["bytes"], image["path"] or "") if image else (None, "")
        if content is None and "://" in path:
            try:
                with xopen(path, "rb", download_config=datasets.DownloadConfig(token=token)) as file:
                    content = file.read()
            except OSError as error:
                raise DataError(f"The image at {path!r} cannot be read: {error}.") from error
        key = (path, _size_and_time(path)) if content is None else len(content)
        digest.update(repr(key).encode() + (content or b""))
        kept.append({"bytes": content, "path": path or None})
    dataset = datasets.Dataset.from_dict({"image": kept}, features=features)
    dataset = dataset.select(range(len(dataset)), new_fingerprint=digest.hexdigest())
    return dataset if labels is None else with_labels(dataset, labels)


def _size_and_time(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # missing, or no path at all
        return None
    return found.st_size, found.st_mtime_ns


def _first_rows(stream: Any, rows: slice | None, limit: int | None, title: str) -> Any:
    start, stop = (rows.start or 0, rows.stop) if rows else (0, None)
    if start < 0 or (stop or 0) < 0 or (rows and rows.step not in (None, 1)):
        raise DataError(f"Rows of a stream must be counted from its start, one by one, got {rows}.")
    counts = [count for count in (limit, None if stop is None else max(0, stop - start)) if count is not None]
    if not counts:
        raise DataError(f"{title} as a stream has no end: give limit=, rows=slice(0, n), or use few_shot_from_stream.")
    return stream.skip(start).take(min(counts))


def with_labels(images: datasets.Dataset, labels: list[int]) -> datasets.Dataset:
    """Return the images with a new column `label`; `add_column` would copy every image of a selection."""
    table = images.select_columns(["image"]).data
    column = np.full(table.num_rows, -1, dtype=np.int64)
    column[... if images._indices is None else images._indices.column(0).to_numpy()] = labels
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    return datasets.Dataset(
        concat_tables([table, InMemoryTable.from_pydict({"label": column})], axis=1),
        info=datasets.DatasetInfo(features=features),
        indices_table=images._indices,
        fingerprint=blake2b(images._fingerprint.encode() + column.tobytes(), digest_size=16).hexdigest(),
    )
