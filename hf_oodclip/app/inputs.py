"""What strangers may send: limits, and labels and uploads read within them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import LabelError, OODCLIPError
from ..images import load_image

__all__ = ["AppError", "Limits", "open_upload", "parse_labels"]


class AppError(OODCLIPError, ValueError):
    """The demo was asked for something it cannot do or does not allow."""


@dataclass(frozen=True)
class Limits:
    """How much one visitor of the demo may ask for.

    Args:
        file_megabytes: Size of one upload, in 10^6 bytes.
        files: Images at once.
        pixels: Pixels of one image.
        labels: Labels at once.
        seconds: Time for one analysis; what is not done by then is left out, and said so.
        wait_seconds: Time to wait for the model while others use it.
        waiting: Requests in the queue; further ones are turned away.
    """

    file_megabytes: int = 20
    files: int = 500
    pixels: int = 50_000_000
    labels: int = 1000
    seconds: float = 120.0
    wait_seconds: float = 180.0
    waiting: int = 32

    def check_count(self, paths: Sequence[Path]) -> None:
        """Raise `AppError` for more images than allowed."""
        if len(paths) > self.files:
            raise AppError(f"{len(paths)} images are more than the {self.files} this demo takes at once; send fewer.")


def parse_labels(text: str, limits: Limits | None = None) -> tuple[str, ...]:
    """Return the labels in a text, one a line or separated by commas, without repetitions.

    Raises:
        LabelError: There are none.
        AppError: There are too many.

    Example:
        >>> parse_labels("tabby cat, acorn\\nacorn")
        ('tabby cat', 'acorn')
    """
    allowed = (limits or Limits()).labels
    labels = tuple(dict.fromkeys(filter(None, (part.strip() for part in re.split(r"[,\n]", text)))))
    if not labels:
        raise LabelError("There are no labels: type at least one, one a line or separated by commas.")
    if len(labels) > allowed:
        raise AppError(f"{len(labels)} labels are more than the {allowed} this demo takes; use fewer.")
    return labels


def open_upload(path: Path, limits: Limits) -> Image.Image:
    """Return an uploaded image as RGB; errors name the file alone, not where the server keeps it.

    Raises:
        AppError: It has more bytes or pixels than allowed, or is no readable image.
    """
    try:
        num_bytes = path.stat().st_size
        with Image.open(path) as image:
            width, height = image.size
    except FileNotFoundError as error:
        raise AppError(f"{path.name!r} is no longer here; upload it again.") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise AppError(f"{path.name!r} is not an image, or of a kind this demo cannot read.") from error
    if num_bytes > limits.file_megabytes * 10**6:
        raise AppError(f"{path.name!r} is larger than {limits.file_megabytes} MB; send a smaller file.")
    if width * height > limits.pixels:
        raise AppError(f"{path.name!r} has {width} x {height} pixels, more than this demo takes; send a smaller one.")
    try:
        return load_image(path)
    except OODCLIPError as error:
        raise AppError(str(error).replace(str(path), path.name)) from error
