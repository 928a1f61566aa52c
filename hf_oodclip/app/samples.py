"""The embedded images as the demo uses them: for calibration, and as examples to click on."""

from __future__ import annotations

import io
import json
from functools import lru_cache
from typing import Any

from PIL import Image

from ..assets import images_path

__all__ = ["calibration_images", "example_images", "sample_labels"]

# The first test image of each; what is OOD is of no class the pocket CLIP was trained on.
_EXAMPLES = (
    ("id", "acorn"),
    ("id", "police van"),
    ("id", "tabby cat"),
    ("id", "triumphal arch"),
    ("near_heldout", "koala"),
    ("far_textures", None),
    ("far_digits", None),
    ("far_clothing", None),
)
_CAPTIONS = {"far_textures": "{} texture", "far_digits": "digit {}"}


@lru_cache
def _table(name: str) -> tuple[Any, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(images_path(name))
    # As `datasets` has written it; importing that takes seconds.
    described = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    return table, described["label"]["names"]


def _open(cell: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")


def sample_labels() -> list[str]:
    """Return the 20 labels of the embedded ID images."""
    return list(_table("id")[1])


def calibration_images() -> list[Image.Image]:
    """Return the embedded ID images that are set aside for calibration."""
    table, _ = _table("id")
    rows = table.select(["image", "split"]).to_pylist()
    return [_open(row["image"]) for row in rows if row["split"] == "calibration"]


def example_images() -> list[tuple[Image.Image, str]]:
    """Return some embedded images with their true class, half of them OOD for the embedded labels."""
    found = []
    for name, wanted in _EXAMPLES:
        table, names = _table(name)
        row = next(
            row
            for row in table.to_pylist()
            if row.get("split", "test") == "test" and wanted in (None, names[row["label"]])
        )
        found.append((_open(row["image"]), _CAPTIONS.get(name, "{}").format(names[row["label"]])))
    return found
