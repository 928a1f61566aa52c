"""Tables keep their shape and say what they are given, whatever the names in them contain."""

from __future__ import annotations

import doctest
import html.parser
import re

import pytest
from fake_runs import HOSTILE
from hf_oodclip.evaluation import tables
from hf_oodclip.evaluation.tables import Cell, Table, one_line, shorten, to_html, to_latex, to_markdown

NAMES = [
    HOSTILE,
    "a|b\n# c",
    "\\",
    "[2pt] x",
    "*",
    "<img src=x onerror=alert(1)>",
    "&amp; 'x' \"y\"",
    "\u202eabc\x00\x1b[31m",
    "~^_^~",
    "`code`",
    "犬 é",
    "-- 100 %",
    "",
]


def table_of(names: list[str]) -> Table:
    rows = [[Cell(name), Cell("1.5", "[1.0, 2.0]", best=True), Cell("2.5")] for name in names]
    return Table("key", HOSTILE, ("score", names[0], "b"), rows, note=HOSTILE)


class _Reader(html.parser.HTMLParser):
    """Collects the text of every cell, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_html_shows_every_name_letter_by_letter_and_adds_no_tag():
    read = _Reader(to_html(table_of(NAMES)))
    assert set(read.tags) == {"div", "table", "thead", "tbody", "tr", "th", "td", "small", "strong", "p"}
    assert [row[0] for row in read.rows[1:]] == [one_line(name) for name in NAMES]
    assert [row[1:] for row in read.rows[1:]] == [["1.5[1.0, 2.0]", "2.5"]] * len(NAMES)


def test_markdown_has_as_many_cells_in_every_row_and_nothing_but_text_in_them():
    lines = to_markdown([table_of(NAMES)]).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(NAMES)
    # A bar, backtick, angle or bracket without a backslash before it would be Markdown.
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4 for row in rows)
    names = [re.split(r"(?<!\\)(?:\\\\)*\|", row)[1].strip() for row in rows[2:]]
    for name, written in zip(NAMES, names, strict=True):
        assert not re.search(r"(?<!\\)(?:\\\\)*([`*<>$]|\][(\[])", written)
        assert re.sub(r"\\([^\w\s])|\\(_)", r"\1\2", written) == one_line(name)
    assert rows[2].endswith("| **1.5** [1.0, 2.0] | 2.5 |")
    assert lines[0].startswith("## \\<script\\>")


def test_markdown_leaves_plain_names_readable():
    table = Table("key", "Scores", ("score",), [[Cell("far_textures_2 (k=5)")]])
    assert to_markdown([table]) == "## Scores\n\n| score |\n|---|\n| far_textures_2 (k=5) |\n"


def test_latex_has_as_many_cells_in_every_row_and_balanced_braces():
    text = to_latex([table_of(NAMES)])
    rows = text[text.index("\\midrule") : text.index("\\bottomrule")].splitlines()[1:]
    assert len(rows) == len(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        assert row.endswith(" \\\\")
        assert len(re.findall(r"(?<!\\)&", row)) == 2
        # What remains of a row without the escapes must be plain text.
        plain = re.sub(r"\\text\w+\{\}|\\[{}$&%#_]|\{[\[*]\}|\\textbf\{1\.5\}", "", row.removesuffix(" \\\\"))
        assert not re.search(r"[\\{}$%#_~^<>|\"]", plain), (name, row)
        # At the start of a row these would be options of the row before it.
        assert not row.startswith(("[", "*"))
    assert text.count("\\textbf{1.5}") == len(NAMES)
    without = re.sub(r"\\[{}]", "", text)
    assert without.count("{") == without.count("}")


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [("short", 5, "short"), ("abcdefgh", 5, "ab…gh"), ("abcdefgh", 4, "ab…h"), ("a\nb\t c", 9, "a b c")],
)
def test_shorten(text, length, expected):
    assert shorten(text, length) == expected


def test_docstring_examples_are_true():
    results = doctest.testmod(tables)
    assert results.failed == 0 and results.attempted
