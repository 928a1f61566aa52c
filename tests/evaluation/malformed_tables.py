"""Tables of images that are wrong in one way each: what to write, and what must come of it as an ID and an OOD set."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from small_benchmarks import NAMES


@dataclass(frozen=True)
class Used:
    """The set is evaluated with `count` images, the rows `skipped` reported as damaged, and `warning` is given."""

    count: int = 4
    skipped: tuple[int, ...] = ()
    warning: str = ""


@dataclass(frozen=True)
class Case:
    """Data that `make` writes to `data` in a folder; each outcome is `Used` or what the message says."""

    name: str
    make: Callable[[Path, list[bytes]], Any]
    as_id: Used | str
    as_far: Used | str
    source: str = "data.parquet"
    options: dict[str, Any] = field(default_factory=dict)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cells(images: list[bytes | None]) -> pa.Array:
    return pa.array([None if each is None else {"bytes": each, "path": None} for each in images], IMAGE)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is of some size, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture(mode: str) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32))
    return Image.fromarray(values).convert(mode)


# What is in one of four cells instead of an image.
DAMAGED: dict[str, Callable[[list[bytes]], bytes | None]] = {
    "nothing": lambda images: None,
    "no bytes": lambda images: b"",
    "one byte": lambda images: b"\xff",
    "text": lambda images: b"this is no image, however long the text may be",
    "page": lambda images: b"<html><body>404 Not Found</body></html>",
    "drawing": lambda images: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "document": lambda images: b"%PDF-1.7\n%%EOF\n",
    "archive": lambda images: b"PK\x03\x04" + b"\0" * 60,
    "pickle": lambda images: b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.",
    "half a JPEG": lambda images: images[1][: len(images[1]) // 2],
    "JPEG header": lambda images: images[1][:20],
    "JPEG without its start": lambda images: images[1][10:],
    "zeros": lambda images: b"\0" * 500,
    "half a PNG": lambda images: saved(_picture("RGB"), "PNG")[:200],
    "PNG with a wrong checksum": lambda images: saved(_picture("RGB"), "PNG").replace(b"IDAT", b"IDAX"),
    "PNG without pixels": lambda images: png_of(0, 5),
    "PNG of 10,000 megapixels": lambda images: png_of(100_000, 100_000),
    "PNG of more than there can be": lambda images: png_of(2**31 - 1, 2**31 - 1),
    "half a WebP": lambda images: saved(_picture("RGB"), "WEBP")[:60],
    "half a TIFF": lambda images: saved(_picture("RGB"), "TIFF")[:100],
    "half a GIF": lambda images: saved(_picture("P"), "GIF")[:100],
    "half a BMP": lambda images: saved(_picture("RGB"), "BMP")[:30],
    "floats": lambda images: saved(_picture("F"), "TIFF"),
    "half a PPM": lambda images: b"P6 40 30 255\n" + b"\0" * 9,
}
# Unusual images that are none the less images.
UNUSUAL: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: saved(_picture("CMYK"), "JPEG"),
    "16 bits": lambda: saved(_picture("I;16"), "PNG"),
    "one bit": lambda: saved(_picture("1"), "PNG"),
    "grey": lambda: saved(_picture("L"), "JPEG"),
    "grey and alpha": lambda: saved(_picture("LA"), "PNG"),
    "alpha": lambda: saved(_picture("RGBA"), "PNG"),
    "palette": lambda: saved(_picture("P"), "PNG"),
    "transparent palette": lambda: saved(_picture("P"), "PNG", transparency=3),
    "animated": lambda: saved(_picture("P"), "GIF", save_all=True, append_images=[_picture("P")]),
    "turned": lambda: saved(
        _picture("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "one pixel": lambda: saved(Image.new("RGB", (1, 1)), "PNG"),
    "strip": lambda: saved(Image.new("RGB", (4000, 1)), "PNG"),
    "LAB": lambda: saved(_picture("LAB"), "TIFF"),
    "WebP": lambda: saved(_picture("RGBA"), "WEBP"),
}

NO_IMAGES, UNREADABLE = "has no column of images", "None of its 4 images can be read, the first for this: "
NO_LABELS = "has no labels, and needs them. Its columns: .*'label' "
# Instead of the images: a whole column.
IMAGE_COLUMNS: dict[str, tuple[Any, str]] = {
    "numbers": (pa.array([1, 2, 3, 4]), NO_IMAGES),
    "fractions": (pa.array([0.5] * 4), NO_IMAGES),
    "truth values": (pa.array([True] * 4), NO_IMAGES),
    "nulls": (pa.nulls(4), r"'image' \(null\)"),
    "null bytes": (pa.nulls(4, pa.binary()), UNREADABLE),
    "null cells": (cells([None] * 4), UNREADABLE),
    "lists of numbers": (pa.array([[1, 2]] * 4), NO_IMAGES),
    "arrays": (pa.array([[[0, 1], [1, 0]]] * 4), NO_IMAGES),
    "dates": (pa.array([date(2020, 1, 1)] * 4), NO_IMAGES),
    "decimals": (pa.array([Decimal("1.5")] * 4), NO_IMAGES),
    "paths of nothing": (pa.array(["nowhere/0.jpg"] * 4), UNREADABLE),
    "empty texts": (pa.array([""] * 4), UNREADABLE),
    "texts with a null character": (pa.array(["a\0b"] * 4), UNREADABLE),
    "texts too long for a path": (pa.array(["x" * 5000] * 4), UNREADABLE),
    "addresses": (pa.array(["https://localhost:9/0.jpg"] * 4), "download it first"),
    "struct of other fields": (pa.array([{"data": b"", "name": ""}] * 4), NO_IMAGES),
    "struct with numbers for bytes": (pa.array([{"bytes": 1, "path": "a"}] * 4), NO_IMAGES),
    "struct with a list for bytes": (pa.array([{"bytes": [1, 2], "path": "a"}] * 4), NO_IMAGES),
    "struct with numbers for paths": (pa.array([{"bytes": b"", "path": 3}] * 4), NO_IMAGES),
    "struct of neither": (cells([b""] * 4), UNREADABLE),
    "lists of images": (pa.array([[{"bytes": b"", "path": ""}]] * 4), NO_IMAGES),
    "map": (pa.array([[("bytes", b"a")]] * 4, pa.map_(pa.string(), pa.binary())), "cannot be loaded"),
}
# Instead of the labels, which an OOD set does not look at.
LABEL_COLUMNS: dict[str, tuple[Any, str]] = {
    "too large": (pa.array([0, 1, 2, 4]), r"1 of 4 labels .* cannot be used: 4 in row 3"),
    "far too large": (pa.array([0, 1, 2, 2**62]), r"1 of 4 labels"),
    "beyond signed": (pa.array([0, 1, 2, 2**64 - 1], pa.uint64()), r"1 of 4 labels"),
    "negative": (pa.array([0, -1, 2, 3]), r"-1 in row 1"),
    "all negative": (pa.array([-1] * 4), r"4 of 4 labels"),
    "one missing": (pa.array([0, None, 2, 3]), "None in row 1"),
    "all missing": (pa.nulls(4, pa.int64()), "4 of 4 labels"),
    "null type": (pa.nulls(4), NO_LABELS),
    "fractions": (pa.array([0.0, 1.0, 2.0, 3.0]), NO_LABELS),
    "NaN": (pa.array([0.0, float("nan"), 2.0, 3.0]), NO_LABELS),
    "truth values": (pa.array([True, False, True, False]), NO_LABELS),
    "lists": (pa.array([[0], [1], [2], [3]]), NO_LABELS),
    "mappings": (pa.array([{"id": 0}] * 4), NO_LABELS),
    "dates": (pa.array([date(2020, 1, 1)] * 4), NO_LABELS),
    "decimals": (pa.array([Decimal("1.0")] * 4), NO_LABELS),
    "bytes": (pa.array([name.encode() for name in NAMES]), NO_LABELS),
    "other names": (pa.array(["a", "b", "c", "d"]), "has no class 'acorn'"),
    "a class missing": (pa.array([*NAMES[:3], NAMES[0]]), "has no class 'tabby cat'"),
    "a name missing": (pa.array([*NAMES[:3], None]), "None in row 3"),
    "empty names": (pa.array([""] * 4), "has no class"),
    "numbers as texts": (pa.array(["0", "1", "2", "7"]), "has no class 'acorn'"),
    "fractions as texts": (pa.array(["0.0", "1.0", "2.0", "3.0"]), "has no class"),
    "names with a null character": (pa.array([f"{name}\0" for name in NAMES]), Used()),
}


def table_cases() -> list[Case]:
    """Parquet files whose columns are wrong."""
    cases = []

    def add(name: str, make: Any, as_id: Any, as_far: Any = None, **more: Any) -> None:
        def write(folder: Path, images: list[bytes]) -> None:
            pq.write_table(make(images), folder / "data.parquet")

        cases.append(Case(name, write, as_id, as_id if as_far is None else as_far, **more))

    for name, damage in DAMAGED.items():
        add(
            f"damaged: {name}",
            lambda images, damage=damage: pa.table(
                {"image": cells([images[0], damage(images), *images[2:4]]), "label": NAMES}
            ),
            Used(3, (1,)),
        )
        add(
            f"all damaged: {name}",
            lambda images, damage=damage: pa.table({"image": cells([damage(images)] * 4), "label": NAMES}),
            UNREADABLE,
        )
    for name, make in UNUSUAL.items():
        add(
            f"unusual: {name}",
            lambda images, make=make: pa.table({"image": cells([make(), *images[1:4]]), "label": NAMES}),
            Used(),
        )
    for name, (column, message) in IMAGE_COLUMNS.items():
        add(f"images are {name}", lambda images, column=column: pa.table({"image": column, "label": NAMES}), message)
    for name, (column, message) in LABEL_COLUMNS.items():
        add(
            f"labels are {name}",
            lambda images, column=column: pa.table({"image": cells(images[:4]), "label": column}),
            message,
            Used(),
        )
    return cases
