"""Names and texts of users, made safe for Markdown, HTML and readers who know nothing of the machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_oodclip.evaluation.tables import one_line

__all__ = ["command_of", "fence", "last_name", "one_line", "percent", "table", "text", "without_paths"]

# References stand for the letter and nothing else: no Markdown, no HTML, no formula starts with one.
_SPECIAL = re.compile(r"[&<>\\`*|~$#!\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=://)|(?<=www)(?=\.)")
_FOLDERS = re.compile(r"(?<![\w.~/\\-])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"'`,;:()<>|]+[/\\])+")
_PROGRAMS = {"train.py": "hf_oodclip.training.train", "evaluate.py": "hf_oodclip.evaluation.evaluate"}


def text(value: object, length: int | None = None) -> str:
    """Return a text as one line of Markdown that shows it letter by letter.

    Args:
        value: Anything that prints.
        length: Cut off after so many letters.

    Example:
        >>> text("<b>*7* | a_b</b>")
        '&lt;b&gt;&#42;7&#42; &#124; a_b&lt;/b&gt;'
    """
    line = one_line(value)
    if length is not None and len(line) > length:
        line = line[: length - 1] + "…"
    names = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "": "&#8203;"}
    return _SPECIAL.sub(lambda found: names.get(found[0]) or f"&#{ord(found[0])};", line)


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a share in percent, with its interval where there is one."""
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{interval}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_names: int = 1) -> str:
    """Return a Markdown table of cells that are Markdown already; figures stand to the right."""
    marks = ["---" if place < num_names else "---:" for place in range(len(headings))]
    lines = [headings, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fence(code: str, language: str = "") -> str:
    """Return a code block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{code}\n{marks}"


def last_name(value: str) -> str:
    """Return an absolute path's last name, and anything else as it is.

    Example:
        >>> last_name("/home/someone/photos"), last_name("org/photos")
        ('photos', 'org/photos')
    """
    if value.startswith("~") or PurePosixPath(value).is_absolute():
        return PurePosixPath(value).name or "folder"
    if PureWindowsPath(value).is_absolute():
        return PureWindowsPath(value).name or "folder"
    return value


def without_paths(value: str) -> str:
    """Return a text whose paths have lost their folders.

    Example:
        >>> without_paths("cannot read '/home/someone/photos/1.png'")
        "cannot read '1.png'"
    """
    return _FOLDERS.sub("", value)


def command_of(environment: Mapping[str, Any], num_processes: int = 1) -> str | None:
    """Return the command that started a run of this package's programs, None for any other start.

    Folders outside the working folder are shortened to their last names.
    """
    words = shlex.split(environment.get("command", ""))
    if not words or words[0] not in _PROGRAMS:
        return None
    start = "python -m" if num_processes == 1 else f"accelerate launch --num_processes {num_processes} -m"
    options = []
    for word in words[1:]:
        name, sign, value = word.partition("=") if word.startswith("--") else ("", "", word)
        options.append(shlex.quote(one_line(name + sign + last_name(value))))
    return " ".join([start, _PROGRAMS[words[0]], *options])
