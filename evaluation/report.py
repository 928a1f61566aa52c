"""Everything a reader gets of a run: tables as CSV, Markdown and LaTeX, pictures, and one HTML page."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from .gallery import draw_galleries, draw_verdicts, find_mistakes
from .page import write_page
from .pictures import draw_pictures
from .run_checks import check_results, check_together
from .sample_table import SampleTable, check_numbers, detection_columns, read_run
from .tables import Cell, Table, to_latex, to_markdown

__all__ = ["METRICS", "ReadImage", "build_tables", "read_run", "write_report"]

ReadImage = Callable[[str, int], Image.Image]

METRICS = {
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID positive",
    "fpr95_ood_pos": "FPR95, OOD positive",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
}
NOTES = {
    "auroc": "Chance that an OOD image scores above an ID image; larger is better.",
    "fpr95_id_pos": "OOD images accepted where 95 % of ID images are accepted; smaller is better.",
    "fpr95_ood_pos": "ID images rejected where 95 % of OOD images are caught (OpenOOD); smaller is better.",
    "aupr_in": "Average precision of finding ID images; larger is better. It depends on the sizes of the sets.",
    "aupr_out": "Average precision of finding OOD images; larger is better. It depends on the sizes of the sets.",
}


def write_report(
    folder: str | Path, results: Mapping[str, Any], samples: pa.Table, read_image: ReadImage | None = None
) -> None:
    """Write `detection.csv`, `accuracy.csv`, `tables.md`, `tables.tex`, `pictures/*.png` and `report.html`.

    Args:
        folder: The run folder.
        results: What `results.json` holds.
        samples: What `samples.parquet` holds.
        read_image: Returns the image of a set and row, for the photos of verdicts and mistakes; without it
            the mistakes are listed but not shown. An image it cannot read is drawn as an empty tile.

    Raises:
        RunError: A figure is NaN, or results and samples do not belong together.
    """
    folder = Path(folder)
    check_numbers(results)
    check_results(results)
    check_together(results, samples)
    table = SampleTable(samples, results.get("id_filter", "all"), results.get("full_spectrum", False))
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "detection.csv", ["score", "set", "role", "num_id", "num_ood"], list(METRICS), results)
    _write_csv(folder / "accuracy.csv", ["set", "role", "count"], ["value"], results)
    tables = build_tables(results)
    (folder / "tables.md").write_text(to_markdown(tables), encoding="utf-8")
    (folder / "tables.tex").write_text(to_latex(tables), encoding="utf-8")
    pictures_folder = folder / "pictures"
    pictures_folder.mkdir(exist_ok=True)
    # Pictures of an earlier report with other scores or sets would pass for this one's.
    for old in pictures_folder.glob("*.png"):
        old.unlink()
    pictures = draw_pictures(pictures_folder, results, table)
    mistakes = find_mistakes(results, table)
    galleries = {}
    if read_image is not None:
        pictures = [*draw_verdicts(pictures_folder, results, table, read_image), *pictures]
        galleries = draw_galleries(pictures_folder, mistakes, read_image)
    write_page(folder / "report.html", results, tables, pictures, mistakes, galleries)


def build_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a run: images, accuracy, one a detection metric, calibration, published figures."""
    tables = [_images(results)]
    if results["accuracy"]:
        tables.append(_accuracy(results))
    if results["detection"]:
        tables += [_detection(results, metric) for metric in METRICS]
    if skipped := results.get("skipped_scores"):
        rows = [[Cell(score), Cell(reason)] for score, reason in skipped.items()]
        tables.append(Table("skipped_scores", "Scores this model cannot give", ("score", "reason"), rows, num_names=2))
    if results["calibration"]:
        tables.append(_calibration(results))
    if results["published"]:
        tables.append(_published(results))
    return tables


def _write_csv(path: Path, names: list[str], metrics: list[str], results: Mapping[str, Any]) -> None:
    bounds = ("low", "high") if metrics == ["value"] else None
    columns = [*names]
    for metric in metrics:
        columns += [metric, *(bounds or (f"{metric}_low", f"{metric}_high"))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(results[path.stem])


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{_percent(low)}, {_percent(high)}]"


def _images(results: Mapping[str, Any]) -> Table:
    rows, missing = [], [each["name"] for each in results["sets"] if each["status"] != "ok"]
    for each in results["sets"]:
        count, expected, skipped = each.get("count"), each.get("expected"), len(each.get("skipped") or {})
        wrong = expected is not None and each["status"] == "ok" and (count or 0) + skipped != expected
        rows.append(
            [
                Cell(each["name"]),
                Cell(each["role"]),
                Cell(each["status"], each.get("reason") or ""),
                Cell("–" if count is None else f"{count:,}"),
                Cell("–" if expected is None else f"{expected:,}", "other than expected" if wrong else ""),
                Cell(f"{skipped:,}"),
            ]
        )
    note = f"Not evaluated, and in no mean: {', '.join(missing)}." if missing else "All sets were evaluated."
    return Table("images", "Images", ("set", "role", "status", "images", "expected", "skipped"), rows, note, 3)


def _accuracy(results: Mapping[str, Any]) -> Table:
    rows = [
        [
            Cell(each["set"]),
            Cell(each["role"]),
            Cell(_percent(each["value"]), _interval(each.get("low"), each.get("high"))),
            Cell(f"{each['count']:,}"),
        ]
        for each in results["accuracy"]
    ]
    note = "Share of images whose label is the first choice, with 95 % intervals."
    return Table("accuracy", "Accuracy in %", ("set", "role", "accuracy", "images"), rows, note, 2)


def _detection(results: Mapping[str, Any], metric: str) -> Table:
    scores = list(dict.fromkeys(each["score"] for each in results["detection"]))
    found = {(each["score"], each["set"]): each for each in results["detection"]}
    status = {each["name"]: each["status"] for each in results["sets"]}
    better = min if metric.startswith("fpr") else max
    columns = detection_columns(results)
    rows = [[Cell(score)] for score in scores]
    for name, _ in columns:
        values = [found.get((score, name), {}).get(metric) for score in scores]
        # Figures that look alike are equally good.
        known = [round(value, 3) for value in values if value is not None]
        best = better(known) if len(known) > 1 and len(set(known)) > 1 else None
        for row, score, value in zip(rows, scores, values, strict=True):
            record = found.get((score, name), {})
            detail = _interval(record.get(f"{metric}_low"), record.get(f"{metric}_high"))
            text = _percent(value) if value is not None or status.get(name, "ok") == "ok" else status[name]
            row.append(Cell(text, detail, value is not None and best is not None and round(value, 3) == best))
    headings = ("score", *(heading for _, heading in columns))
    intervals = any(cell.detail for row in rows for cell in row)
    note = NOTES[metric] + (" 95 % bootstrap intervals." if intervals else "")
    if results.get("id_filter", "all") == "correct":
        note += " ID images with a wrong first label are left out."
    if results.get("full_spectrum"):
        note += " Covariate-shifted images count as ID (full spectrum)."
    return Table(metric, f"{METRICS[metric]} in %", headings, rows, note)


def _calibration(results: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(name for each in results["calibration"] for name in each["accepted"]))
    rows = [
        [
            Cell(each["score"]),
            Cell(_percent(each["target_tpr"])),
            Cell(f"{each['threshold']:.6g}"),
            Cell(f"{each['num_images']:,}"),
            Cell(_interval(*each["tpr_interval"])),
            *(Cell(_percent(each["accepted"].get(name))) for name in names),
        ]
        for each in results["calibration"]
    ]
    headings = (
        "score",
        "target",
        "threshold",
        "calibrated on",
        "to be expected",
        *(f"{name} taken" for name in names),
    )
    note = (
        "Share of each set accepted as ID at the calibrated threshold, in %; of ID images it should lie in the "
        "interval to be expected, of OOD images it should be small."
    )
    return Table("calibration", "Accepted at the calibrated threshold", headings, rows, note)


def _published(results: Mapping[str, Any]) -> Table:
    def figure(value: float | None, sign: str = "") -> Cell:
        return Cell("not run" if value is None and not sign else "–" if value is None else f"{value:{sign}.2f}")

    rows: list[Sequence[Cell]] = [
        [
            Cell(each["method"]),
            Cell(each["backbone"]),
            Cell(each["score"]),
            Cell(each["set"]),
            Cell(METRICS.get(each["metric"], each["metric"].replace("_", " "))),
            Cell(each["source"]),
            figure(each["published"]),
            figure(each["ours"]),
            figure(each["difference"], "+"),
        ]
        for each in results["published"]
    ]
    headings = ("method", "backbone", "score", "set", "metric", "source", "published", "ours", "difference")
    return Table(
        "published", "Published figures and ours, in %", headings, rows, "Difference: ours less published.", 5
    )
