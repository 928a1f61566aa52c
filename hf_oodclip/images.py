"""Reading images: whatever a user has becomes an RGB picture, or an error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageReadError

__all__ = ["IMAGE_SUFFIXES", "find_images", "load_image"]

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"]
)

# The processors resize the short side and crop the centre square, so what lies farther out is never
# seen; cutting it off first keeps a 1 x 10,000 strip from growing to gigabytes.
MAX_ASPECT_RATIO = 16
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def load_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Return the image behind a path, URL, base64 string, array or PIL image, as upright RGB.

    Grey, palette, CMYK and transparent images are converted as CLIP's own processing does
    (transparency is dropped); 16-bit grey is scaled to 8 bits; EXIF rotation is applied.

    Args:
        source: A path (`str` or `Path`), an http(s) URL, a base64 or data URL string, a numpy array
            `[H, W]` or `[H, W, C]` of dtype uint8, or a PIL image.
        timeout: Seconds to wait for a URL.

    Raises:
        ImageReadError: It does not exist, is empty, truncated, too large, or is no image.

    Example:
        >>> import numpy as np
        >>> load_image(np.zeros((2, 3), dtype=np.uint8)).size
        (3, 2)
    """
    name = source if isinstance(source, str) and len(source) < 300 else type(source).__name__
    if isinstance(source, Path):
        name = str(source)
    try:
        image = _open(source, timeout)
        image.load()
        image = ImageOps.exif_transpose(image)
        return _cut_strip(_to_rgb(image))
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError(f"Image {name!r} does not exist.") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name!r} is not an image, or of a kind Pillow cannot read.") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"Image {name!r} is too large to open safely: {error}.") from error
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise ImageReadError(f"Image {name!r} cannot be read: {error}.") from error


def _open(source: Any, timeout: float | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise ImageReadError(f"An image array must have dtype uint8, got {source.dtype}.")
        return Image.fromarray(source)
    if isinstance(source, Path) or (isinstance(source, str) and Path(source).is_file()):
        if Path(source).stat().st_size == 0:
            raise ImageReadError(f"Image {str(source)!r} is empty (0 bytes).")
        return Image.open(source)
    if not isinstance(source, str):
        raise ImageReadError(
            f"An image must be a path, URL, base64 string, uint8 array or PIL image, got {type(source).__name__}."
        )
    if not source.startswith(("http://", "https://", "data:image/")) and len(source) < 300:
        raise FileNotFoundError(source)
    from transformers.image_utils import load_image as load_remote_image

    try:
        return load_remote_image(source, timeout=timeout)
    except ImportError:
        raise
    except Exception as error:  # the HTTP client is transformers' choice, and so are its exceptions
        raise ImageReadError(f"Image {source[:200]!r} cannot be fetched or decoded: {error}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.int64)
        scaled = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ImageReadError("Float images have no fixed range; convert to 8 bits first.")
    return image.convert("RGB")


def _cut_strip(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, (width - limit) // 2), max(0, (height - limit) // 2)
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def find_images(patterns: list[str]) -> list[Path]:
    """Return the image files behind files, folders (searched recursively) and glob patterns, in order.

    Folders and patterns yield known image suffixes only; a file named outright is kept whatever it is.

    Raises:
        ImageReadError: A pattern that matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        else:
            base = Path(path.anchor) if path.is_absolute() else Path()
            relative = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            globbed = sorted(base.glob(relative)) if any(c in pattern for c in "*?[") else []
            matches = [p for p in globbed if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if not matches:
            raise ImageReadError(
                f"No image found for {pattern!r}: it is no image file, folder with images, or pattern."
            )
        found.update(dict.fromkeys(matches))
    return list(found)
