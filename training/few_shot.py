"""A few images of each class, the same ones for everybody who asks with the same seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any

import datasets
from transformers.utils import logging

from hf_oodclip.errors import DataError

from .data import ImageSet, dataset_of
from .data_columns import find_columns, known_label_names

__all__ = ["few_shot", "few_shot_from_stream"]

logger = logging.get_logger("hf_oodclip.training.few_shot")


class _Shots:
    """Draws `count` of the items of one class, seen one by one, holding no more than that.

    Each item gets a random number; those with the smallest are drawn.
    """

    def __init__(self, count: int, seed: int, class_name: str) -> None:
        digest = blake2b(f"{seed}\n{class_name}".encode(), digest_size=16).digest()
        self._generator = random.Random(int.from_bytes(digest, "big"))
        self._count = count
        self._seen = 0
        self._drawn: list[tuple[float, int, Any]] = []  # a heap with the largest number, negated, on top

    def offer(self, item: Any) -> None:
        number = self._generator.random()
        self._seen += 1
        if len(self._drawn) < self._count:
            heapq.heappush(self._drawn, (-number, self._seen, item))
        elif number < -self._drawn[0][0]:
            heapq.heapreplace(self._drawn, (-number, self._seen, item))

    @property
    def items(self) -> list[Any]:
        """What was drawn, in the order seen."""
        return [item for _, _, item in sorted(self._drawn, key=lambda drawn: drawn[1])]


def few_shot(images: ImageSet, shots: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return `shots` images of each class, class by class, and all the other images.

    Every image gets a random number from a generator private to the seed and the name of its class, in row
    order, and the images with the smallest numbers are drawn. So the choice in a class depends neither on
    the other classes nor on their order, 4 shots are among the 8 of the same seed, and every process draws
    the same; but the order of the rows matters.

    Raises:
        DataError: `shots` is below 1, the images have no labels, or a class has no images.

    Example:
        >>> from hf_oodclip.training.data import load_image_set
        >>> shots, rest = few_shot(load_image_set("embedded", split="calibration"), shots=4, seed=1)
        >>> len(shots), len(rest), shots.labels[:6]
        (80, 240, [0, 0, 0, 0, 1, 1])
    """
    _check_shots(shots)
    labels = images.labels
    if labels is None or images.label_names is None:
        raise DataError(f"{images.source} has no labels, so shots cannot be drawn by class.")
    draws = [_Shots(shots, seed, name) for name in images.label_names]
    for row, label in enumerate(labels):
        draws[label].offer(row)
    _check_classes([len(draw.items) for draw in draws], images.label_names, shots, images.source)
    rows = [row for draw in draws for row in draw.items]
    drawn = set(rows)
    rest = [row for row in range(len(images)) if row not in drawn]
    chosen = images.select(rows)
    return ImageSet(chosen.images, images.label_names, _title(images.source, shots, seed)), images.select(rest)


def few_shot_from_stream(
    stream: datasets.IterableDataset,
    shots: int,
    seed: int,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    limit: int | None = None,
    source: str = "stream",
    token: str | bool | None = None,
) -> ImageSet:
    """Return the images `few_shot` would draw, in one pass that holds no more than these in memory.

    Args:
        stream: Rows to draw from, as `open_source(..., streaming=True)` returns them.
        shots: Images of each class.
        seed: As in `few_shot`.
        image_column: As in `load_image_set`.
        label_column: As in `load_image_set`.
        label_names: As in `load_image_set`, but text labels cannot be renamed.
        limit: Read this many rows at most.
        source: What to call the stream in messages and results.
        token: Access token for images that the stream names by address.

    Raises:
        DataError: As `few_shot`, and if columns or labels cannot be used.

    Example:
        >>> from hf_oodclip.training.data_sources import open_source
        >>> stream = open_source("embedded", split="calibration", streaming=True)
        >>> len(few_shot_from_stream(stream, shots=4, seed=1))
        80
    """
    _check_shots(shots)
    if limit is not None and limit < 1:
        raise DataError(f"limit must be at least 1, got {limit}.")
    chosen, feature = find_columns(stream, image_column, label_column, source)
    if feature is None:
        raise DataError(f"{source} has no labels, so shots cannot be drawn by class. Name a column: label_column=.")
    names = known_label_names(feature, label_names, source)
    if names is None and label_names is not None:
        raise DataError(f"The text labels of {source} cannot be renamed before all are seen. Leave label_names out.")
    draws: dict[Any, _Shots] = {label: _Shots(shots, seed, name) for label, name in enumerate(names or [])}
    for row, content in enumerate(islice(chosen, limit)):
        label = content["label"]
        if names is None and isinstance(label, str) and label not in draws:
            draws[label] = _Shots(shots, seed, label)
        if label not in draws:
            allowed = "a text" if names is None else f"0 to {len(names) - 1}"
            raise DataError(f"Row {row} of {source} has the label {label!r}; it must be {allowed}.")
        draws[label].offer(content["image"])
    if not draws:
        raise DataError(f"{source} has no images.")
    names = names or sorted(draws)
    items = [draws[label].items for label in sorted(draws)]
    _check_classes([len(drawn) for drawn in items], names, shots, source)
    labels = [label for label, drawn in enumerate(items) for _ in drawn]
    images = dataset_of([image for drawn in items for image in drawn], labels, token)
    return ImageSet(images, names, _title(source, shots, seed))


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise DataError(f"shots must be at least 1 image of each class, got {shots}.")


def _check_classes(counts: Iterable[int], names: Sequence[str], shots: int, source: str) -> None:
    found = list(zip(names, counts, strict=True))
    if empty := [name for name, count in found if count == 0]:
        raise DataError(
            f"{len(empty)} of {len(names)} classes of {source} have no image to draw: {empty[:10]}. "
            "Leave them out with of_classes, or take more rows."
        )
    if few := [f"{name} ({count})" for name, count in found if count < shots]:
        logger.warning(f"{source}: {len(few)} classes have fewer than {shots} images, all taken: {', '.join(few)}.")


def _title(source: str, shots: int, seed: int) -> str:
    return f"{source}, {shots} shots a class, seed {seed}"
