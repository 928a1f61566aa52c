"""The images of a dataset: read one by one, a damaged one by its row, and a mark of them all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .errors import FeatureStoreError, ImageReadError, unknown_name
from .images import load_image

__all__ = ["dataset_fingerprint", "image_reader", "read_images"]


def image_reader(dataset: Any, image_column: str = "image") -> Callable[[int], Image.Image]:
    """Return a function that reads the image of a row, upright and RGB, whatever form the dataset keeps it in.

    Args:
        dataset: A `datasets.Dataset`, or a sequence of images in any form `load_image` takes but URLs, of encoded
            bytes, or of rows that hold one.
        image_column: Where a row holds its image.

    Raises:
        FeatureStoreError: The dataset cannot be read by row number.
        UnknownNameError: It has no such column.

    Example:
        >>> import numpy as np
        >>> image_reader([np.zeros((2, 3), dtype=np.uint8)])(0).size
        (3, 2)
    """
    cells = _Cells(dataset, image_column)
    return lambda row: _read(cells[row])


def read_images(
    read: Callable[[int], Image.Image], rows: list[int], skipped: dict[int, str]
) -> Iterator[tuple[int, Image.Image]]:
    """Yield each row with its image, and note in `skipped` the rows whose image is damaged.

    Raises:
        ImageReadError: An image could not be read for a reason that may pass, such as too many open files: kept
            as damage, it would stay left out.
    """
    for row in rows:
        try:
            yield row, read(row)
        except ImageReadError as error:
            if getattr(error.__cause__, "errno", None) is not None and not isinstance(
                error.__cause__, FileNotFoundError
            ):
                raise
            skipped[row] = str(error)


def dataset_fingerprint(dataset: Any, image_column: str = "image") -> str:
    """Return a hash that differs once the images of a dataset do.

    A `datasets.Dataset` has one of its own; images it or a sequence names by path count by path, size and time
    of change, images in memory by content.

    Raises:
        FeatureStoreError: The dataset cannot be read by row number, or holds URLs.
        UnknownNameError: It has no such column.

    Example:
        >>> dataset_fingerprint([b"one"]) == dataset_fingerprint([b"other"])
        False
    """
    cells = _Cells(dataset, image_column)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(dataset, datasets.Dataset):
        digest.update(dataset._fingerprint.encode())
        if not len(cells) or (cells[0] is not None and _path_of(cells[0]) is None):
            return digest.hexdigest()
    for row in range(len(cells)):
        cell = hashlib.blake2b(digest_size=16)
        _update(cell, cells[row])
        digest.update(cell.digest())
    return digest.hexdigest()


class _Cells:
    """What a dataset holds for the image of each row, undecoded where it can be had so."""

    def __init__(self, dataset: Any, image_column: str) -> None:
        if isinstance(dataset, datasets.IterableDataset | datasets.IterableDatasetDict):
            raise FeatureStoreError(
                "A streamed dataset has no row numbers to keep features by: take a sample into a Dataset first, such "
                "as Dataset.from_list(list(dataset.take(1000)), features=dataset.features)."
            )
        if isinstance(dataset, datasets.arrow_dataset.Column):
            raise FeatureStoreError(
                f"A column decodes its images as it goes, damaged ones too: give the dataset and image_column="
                f"{dataset.column_name!r} instead of its column."
            )
        if isinstance(dataset, Mapping):
            raise FeatureStoreError(f"Got {sorted(map(str, dataset))} at once: give one of them, as dataset['train'].")
        if isinstance(dataset, str | bytes) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise FeatureStoreError(
                f"A dataset must be a datasets.Dataset or a sequence of images, got {type(dataset).__name__}; "
                "wrap one image as [image]."
            )
        self.rows, self.column = dataset, image_column
        if isinstance(dataset, datasets.Dataset):
            if image_column not in dataset.column_names:
                raise unknown_name("image column", image_column, dataset.column_names)
            self.rows = dataset.with_format(None).select_columns([image_column])
            if isinstance(dataset.features[image_column], datasets.Image):
                # A damaged image would else end the run where the row is read.
                self.rows = self.rows.cast_column(image_column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        cell = self.rows[row]
        if isinstance(cell, Mapping) and set(cell) != {"bytes", "path"}:
            if self.column not in cell:
                raise unknown_name("image column", self.column, map(str, cell))
            cell = cell[self.column]
        return cell


def _path_of(cell: Any) -> str | None:
    if isinstance(cell, Mapping):
        return cell.get("path") if cell.get("bytes") is None else None
    return str(cell) if isinstance(cell, str | Path) else None


def _read(cell: Any) -> Image.Image:
    if isinstance(cell, Mapping):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if not isinstance(cell, bytes):
        return load_image(cell)
    try:
        image = Image.open(io.BytesIO(cell))
    except (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageReadError(f"{len(cell)} bytes are not an image Pillow can read: {error}.") from error
    return load_image(image)


def _update(digest: Any, cell: Any) -> None:
    path = _path_of(cell)
    if path is not None:
        if path.startswith(("http://", "https://")):
            raise FeatureStoreError(f"What lies at {path!r} may change, and its features not: download it first.")
        digest.update(path.encode(errors="surrogateescape"))
        try:
            found = Path(path).stat()
            digest.update(f"|{found.st_size} {found.st_mtime_ns}".encode())
        except (OSError, ValueError):  # missing, or base64
            digest.update(b"missing")
    elif isinstance(cell, Mapping):
        digest.update(cell["bytes"] or b"")
    elif isinstance(cell, bytes):
        digest.update(cell)
    elif isinstance(cell, np.ndarray):
        digest.update(f"{cell.dtype} {cell.shape}".encode())
        digest.update(np.ascontiguousarray(cell).tobytes())
    elif isinstance(cell, Image.Image):
        _update_with_image(digest, cell)
    else:
        digest.update(repr(cell).encode())


def _update_with_image(digest: Any, image: Image.Image) -> None:
    # Beside the pixels, what load_image looks at.
    how = (image.mode, image.size, image.getpalette(), image.info.get("transparency"), image.getexif().get(0x0112))
    digest.update(repr(how).encode())
    try:
        digest.update(image.tobytes())
    except (OSError, ValueError, SyntaxError) as error:
        digest.update(repr(error).encode())
