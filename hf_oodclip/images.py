"""Reading images: whatever a user has becomes an RGB picture, or an error that names the file."""

from __future__ import annotations

import base64
import io
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


def load_image(source: Any, timeout: float | None = None) -> Image.Image:
    """Return the image behind a path, URL, base64 string, array or PIL image, as upright RGB.

    Grey, palette and CMYK images are converted, transparent ones laid on white (as the CLIP processors
    of transformers do); 16-bit grey is scaled to 8 bits; EXIF rotation is applied.

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
    name = _name_of(source)
    try:
        image = _open(source, timeout)
        image.load()
        if 0 in image.size:
            raise ImageReadError(f"Image {name!r} has no pixels: its size is {image.size}.")
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


def _name_of(source: Any) -> str:
    if isinstance(source, str | Path):
        text = str(source)
        return text if len(text) < 300 else f"{text[:60]}..."
    if isinstance(source, np.ndarray):
        return f"array of shape {source.shape}"
    return str(getattr(source, "filename", "") or type(source).__name__)


def _existing_path(source: Any) -> Path | None:
    if not isinstance(source, str | Path):
        return None
    try:
        return Path(source) if Path(source).exists() else None
    except (OSError, ValueError):  # too long for a path, or with a null character
        return None


def _open(source: Any, timeout: float | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8:
            raise ImageReadError(f"An image array must have dtype uint8, got {source.dtype}.")
        if source.ndim not in (2, 3):
            raise ImageReadError(f"An image array must be [H, W] or [H, W, C], got shape {source.shape}.")
        return Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
    path = _existing_path(source)
    if path is not None and source != "":
        if path.is_dir():
            raise ImageReadError(f"{str(path)!r} is a folder; give its images, as find_images([...]) lists them.")
        if path.stat().st_size == 0:
            raise ImageReadError(f"Image {str(path)!r} is empty (0 bytes).")
        return Image.open(path)
    if isinstance(source, Path):
        raise FileNotFoundError(source)
    if not isinstance(source, str):
        raise ImageReadError(
            f"An image must be a path, URL, base64 string, uint8 array or PIL image, got {type(source).__name__}."
        )
    if source.startswith(("http://", "https://")):
        return Image.open(io.BytesIO(_fetch(source, timeout)))
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        content = b""
    if len(content) < 20:  # no image is that small
        if source.startswith("data:image/") or len(source) >= 300:
            raise ImageReadError(f"{_name_of(source)!r} is neither a path nor an image in base64.")
        raise FileNotFoundError(source)
    return Image.open(io.BytesIO(content))


def _fetch(url: str, timeout: float | None) -> bytes:
    import urllib.request

    try:
        # Some sites refuse Python's own name.
        request = urllib.request.Request(url, headers={"User-Agent": "hf_oodclip"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()
    except (OSError, ValueError) as error:
        raise ImageReadError(f"Image {url!r} cannot be fetched: {error}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageReadError("Float images have no fixed range; convert to 8 bits first.")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # "I;16" says how deep it is; plain "I" holds 8 or 16 bits in 32.
        deep = image.mode.startswith("I;16") or values.max(initial=0) > 255
        image = Image.fromarray(np.clip(values >> 8 if deep else values, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        # On white, as the CLIP processors of transformers lay it.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
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
