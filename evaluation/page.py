"""One HTML page with everything a run says: no scripts, no requests, readable on a phone and on paper."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .drawing import Picture
from .gallery import MistakeList
from .sample_table import detection_columns
from .tables import Cell, Table, one_line, to_html

__all__ = ["write_page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5a5a5a; --line: #d8d8d8; --back: #fff; --tint: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #a8a8a8; --line: #3c3c3c; --back: #161719; --tint: #212327; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; color: var(--ink); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .4rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
a { color: inherit; }
.soft, .note { color: var(--soft); font-size: .875rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.tile { background: var(--tint); border-radius: .5rem; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; }
.warning { border-left: .3rem solid #d55e00; background: var(--tint); padding: .5rem 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-weight: normal; }
thead th { color: var(--soft); vertical-align: bottom; }
td.name, th.name { text-align: left; min-width: 5rem; max-width: 18rem; overflow-wrap: break-word; }
.figure { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead th.figure { white-space: normal; max-width: 9rem; }
td small { display: block; color: var(--soft); }
figure { margin: 0; }
img { width: 100%; min-width: 40rem; display: block; background: #fff; }
summary { cursor: pointer; padding: .4rem 0; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; }
@media print { details::details-content { content-visibility: visible; } }
"""


def write_page(
    path: Path,
    results: Mapping[str, Any],
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    mistakes: Sequence[MistakeList],
    galleries: Mapping[str, Picture],
) -> None:
    """Write the page, with all pictures inside it.

    Args:
        path: The HTML file.
        results: What `results.json` holds.
        tables: What `build_tables` made of them.
        pictures: What `draw_pictures` drew.
        mistakes: What `find_mistakes` found.
        galleries: What `draw_galleries` drew.
    """
    by_key = {table.key: table for table in tables}
    first = ("images", "accuracy", "auroc", "fpr95_id_pos", "published", "calibration", "skipped_scores")
    sections = {
        "Results": [_table(by_key[key]) for key in first if key in by_key]
        + [_folded(table.title, to_html(table)) for table in tables if table.key not in first],
        "Pictures": [_picture(each) for each in pictures],
        "Most confident mistakes": [_mistakes(each, galleries.get(each.key)) for each in mistakes],
        "How it was made": [_origin(results)],
    }
    sections = {title: parts for title, parts in sections.items() if parts}
    links = "".join(f'<a href="#part{number}">{title}</a>' for number, title in enumerate(sections))
    body = "".join(
        f'<section id="part{number}"><h2>{title}</h2>{"".join(parts)}</section>'
        for number, (title, parts) in enumerate(sections.items())
    )
    title = _escape(results["title"] or results["benchmark"])
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing in a name, however it got past the escaping, could load or run anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f"<header><h1>{title}</h1>{_summary(results)}</header><nav>{links}</nav><main>{body}</main></body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _escape(text: object) -> str:
    return html.escape(one_line(text))


def _summary(results: Mapping[str, Any]) -> str:
    adapter = f", adapter {_escape(results['adapter'])}" if results.get("adapter") else ""
    lines = [
        f'<p class="soft">Benchmark {_escape(results["benchmark"])}; model {_escape(results["model"])}{adapter}</p>'
    ]
    tiles = [(f"{100 * each['value']:.1f} %", f"accuracy on {each['set']}") for each in results["accuracy"][:1]]
    name, heading = (detection_columns(results) or [("", "")])[-1]
    if known := [each for each in results["detection"] if each["set"] == name and each["auroc"] is not None]:
        best = max(known, key=lambda each: each["auroc"])
        tiles.append((f"{100 * best['auroc']:.1f} %", f"AUROC, {heading}, of the best score here, {best['score']}"))
    tiles.append((str(len(results["labels"])), "labels"))
    tiles.append((f"{results['num_negatives'] or 0:,}", "negatives"))
    shown = "".join(f'<div class="tile"><b>{_escape(figure)}</b>{_escape(text)}</div>' for figure, text in tiles)
    lines.append(f'<div class="tiles">{shown}</div>')
    for each in results["sets"]:
        if each["status"] != "ok":
            reason = f": {_escape(each['reason'])}" if each.get("reason") else ""
            told = f"<b>{_escape(each['name'])}</b> ({_escape(each['role'])}) is {_escape(each['status'])}{reason}"
            lines.append(f'<p class="warning">{told}</p>')
    return "".join(lines)


def _table(table: Table) -> str:
    return f"<h3>{_escape(table.title)}</h3>{to_html(table)}"


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{_escape(title)}</summary>{inside}</details>"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    shown = (
        f'<figure><div class="scroll" tabindex="0"><img alt="{_escape(picture.text)}" '
        f'src="data:image/png;base64,{data}"></div>'
        f'<figcaption class="note">{_escape(picture.text)}</figcaption></figure>'
    )
    return f"<h3>{_escape(picture.title)}</h3>{shown}" if picture.prominent else _folded(picture.title, shown)


def _mistakes(each: MistakeList, gallery: Picture | None) -> str:
    if not each.mistakes:
        return f"<h3>{_escape(each.title)}</h3><p class='note'>There are none. {_escape(each.text)}</p>"
    told = f"{len(each.mistakes)} of {each.total:,} are shown."
    rows = [
        [
            Cell(mistake.set),
            Cell(mistake.file or f"row {mistake.row}"),
            Cell("–" if mistake.truth is None else mistake.truth),
            Cell(mistake.prediction),
            Cell("–" if mistake.nearest_negative is None else mistake.nearest_negative),
            Cell(f"{100 * mistake.confidence:.1f} %"),
            Cell(f"{mistake.ood_score:.4g}"),
        ]
        for mistake in each.mistakes
    ]
    headings = ("set", "image", "label", "nearest label", "nearest negative", "confidence", "ood_score")
    listed = to_html(Table(each.key, each.title, headings, rows, num_names=5))
    if gallery is None:
        return f"<h3>{_escape(each.title)}</h3><p class='note'>{_escape(each.text)} {told}</p>{listed}"
    return f"{_picture(gallery)}<p class='note'>{told}</p>{_folded('The same as a table', listed)}"


def _origin(results: Mapping[str, Any]) -> str:
    lines: list[tuple[str, object]] = []

    def flatten(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                flatten(f"{prefix} {key}".strip(), inner)
        else:
            lines.append((prefix, "–" if value is None else value))

    for key in ("environment", "seconds", "checksums"):
        flatten("" if key == "environment" else key, results.get(key) or {})
    shown = "".join(f"<dt>{_escape(key)}</dt><dd>{_escape(value)}</dd>" for key, value in lines)
    labels = _folded(f"{len(results['labels'])} labels", f"<p>{_escape(', '.join(results['labels']))}</p>")
    skipped = "".join(
        _folded(
            f"{len(each['skipped'])} images of {each['name']} left out",
            to_html(
                Table(
                    "skipped",
                    "",
                    ("row", "reason"),
                    [[Cell(row), Cell(why)] for row, why in each["skipped"].items()],
                    num_names=2,
                )
            ),
        )
        for each in results["sets"]
        if each.get("skipped")
    )
    return f"<dl>{shown}</dl>{labels}{skipped}"
