"""Small tables that come out as Markdown, LaTeX or HTML, whatever the names in them contain."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Table", "one_line", "shorten", "to_html", "to_latex", "to_markdown"]

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&%#_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After the end of a row these two would be taken for its options.
    "[": "{[}",
    "*": "{*}",
    "–": "--",
}


@dataclass(frozen=True)
class Cell:
    """One figure or name; `detail` is a smaller remark such as an interval, `best` sets it in bold."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A title, column headings, rows of cells, and a note; columns after the first `num_names` hold figures."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    num_names: int = 1


def one_line(text: object) -> str:
    """Return a text without line breaks and characters that cannot be seen."""
    return " ".join("".join(character if character.isprintable() else " " for character in str(text)).split())


def shorten(text: object, length: int = 32) -> str:
    """Return a text of at most `length` characters, with the middle left out where it is longer.

    Example:
        >>> shorten("imagenet-1k validation", 11)
        'image…ation'
    """
    line = one_line(text)
    if len(line) <= length:
        return line
    head = length // 2
    return f"{line[:head]}…{line[len(line) - (length - head - 1) :]}"


def _markdown_text(text: str) -> str:
    # A bracket alone is text; a link needs another one right after it.
    escaped = re.sub(r"([\\`*<>|~&$#]|\](?=[(\[]))", r"\\\1", one_line(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def to_markdown(tables: Sequence[Table]) -> str:
    """Return tables as Markdown, one section each."""
    sections = []
    for table in tables:
        marks = ["---" if place < table.num_names else "---:" for place in range(len(table.columns))]
        lines = [f"## {_markdown_text(table.title)}", ""]
        lines += [f"| {' | '.join(_markdown_text(column) for column in table.columns)} |", f"|{'|'.join(marks)}|"]
        for row in table.rows:
            cells = []
            for cell in row:
                text = _markdown_text(cell.text)
                text = f"**{text}**" if cell.best else text
                cells.append(f"{text} {_markdown_text(cell.detail)}" if cell.detail else text)
            lines.append(f"| {' | '.join(cells)} |")
        sections.append("\n".join([*lines, *(["", _markdown_text(table.note)] if table.note else [])]))
    return "\n\n".join(sections) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    """Return tables for a LaTeX document that loads `booktabs`; intervals are left to the other formats."""
    parts = ["% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}."]
    for table in tables:
        names = min(table.num_names, len(table.columns))
        rows = [
            " & ".join(
                f"\\textbf{{{_latex_text(cell.text)}}}" if cell.best else _latex_text(cell.text) for cell in row
            )
            for row in table.rows
        ]
        parts.append(
            "\n".join(
                [
                    "\\begin{table}[t]",
                    "\\centering",
                    f"\\caption{{{_latex_text(table.title)}. {_latex_text(table.note)}}}",
                    f"\\begin{{tabular}}{{{'l' * names}{'r' * (len(table.columns) - names)}}}",
                    "\\toprule",
                    " & ".join(_latex_text(column) for column in table.columns) + " \\\\",
                    "\\midrule",
                    *(row + " \\\\" for row in rows),
                    "\\bottomrule",
                    "\\end{tabular}",
                    "\\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def to_html(table: Table) -> str:
    """Return one table as HTML that scrolls sideways by itself on a narrow screen."""
    kinds = ["name" if place < table.num_names else "figure" for place in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{kind}">{html.escape(one_line(column))}</th>'
        for kind, column in zip(kinds, table.columns, strict=True)
    )
    body = []
    for row in table.rows:
        cells = []
        for place, (kind, cell) in enumerate(zip(kinds, row, strict=True)):
            text = html.escape(one_line(cell.text))
            text = f"<strong>{text}</strong>" if cell.best else text
            text += f"<small>{html.escape(one_line(cell.detail))}</small>" if cell.detail else ""
            tag = 'th scope="row"' if place == 0 else "td"
            cells.append(f'<{tag} class="{kind}">{text}</{tag.split()[0]}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    note = f"<p class='note'>{html.escape(one_line(table.note))}</p>" if table.note else ""
    return (
        f"<div class='scroll' tabindex='0'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )
