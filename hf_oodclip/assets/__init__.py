"""What ships inside the package: the pocket CLIP, word lists, and a few real images."""

from __future__ import annotations

from pathlib import Path

__all__ = ["images_path", "pocket_path"]

_FOLDER = Path(__file__).parent


def pocket_path() -> str:
    """Return the folder of the pocket CLIP, a small real CLIP checkpoint that works offline.

    Example:
        >>> from transformers import CLIPModel
        >>> CLIPModel.from_pretrained(pocket_path()).config.projection_dim
        256
    """
    return str(_FOLDER / "pocket_clip")


def images_path(name: str) -> str:
    """Return the parquet file of an embedded image set: `id`, `near_heldout`, `far_textures`,
    `far_clothing` or `far_digits`."""
    return str(_FOLDER / "images" / f"{name}.parquet")
