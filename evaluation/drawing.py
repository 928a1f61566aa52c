"""What all pictures share: one width, colours that everyone can tell apart, names shown letter by letter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_oodclip.errors import RunError

from .tables import shorten

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    # Said when a run starts: one that took hours should not end in it.
    raise RunError(f'Pictures need matplotlib ({error}): pip install "hf_oodclip[eval]".') from error

__all__ = ["DARK", "ID_COLOUR", "OOD_COLOUR", "SHIFTED_COLOUR", "Picture", "legend", "line", "panels", "plain", "save"]

ID_COLOUR, OOD_COLOUR, SHIFTED_COLOUR, DARK = "#0072b2", "#d55e00", "#009e73", "#222222"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
# One style after the other, with narrow gaps: scores that rank alike lie on each other, and both are to be seen.
_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.2, 1.5, 1.2)))
_WIDTH = 8.0


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn: where, what it shows in words, and whether a reader needs it at first sight."""

    path: Path
    title: str
    text: str
    prominent: bool = True


def plain(text: object, length: int = 32) -> str:
    """Return a name as matplotlib shows it letter by letter, shortened in the middle."""
    # A leading underscore would keep a name out of a legend, dollars would set it as a formula.
    line = shorten(text, length).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def panels(count: int, height: float, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure of one width with `count` axes in a grid."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    figure.savefig(path, dpi=130)
    return path


def line(position: int) -> dict[str, Any]:
    """Return how the line of a score looks, by the score's place; the first 28 differ."""
    style = position % len(_STYLES)
    # Solid lines below: they would hide the others.
    look = {"linestyle": _STYLES[style], "linewidth": 1.5, "zorder": 2 + style / 10}
    return {"color": _COLOURS[position % len(_COLOURS)], **look}


def legend(figure: Figure, axis: Axes) -> None:
    """Put the names of an axis' lines below all axes."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 4 if len(labels) > 3 and max(map(len, labels)) < 22 else 3
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False, handlelength=3.5
    )
