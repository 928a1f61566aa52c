"""What a run folder holds after the report: tables that agree with the results, one page, the right pictures."""

from __future__ import annotations

import base64
import csv
import html.parser
import math
import re

import pytest
from fake_runs import HOSTILE, METRICS, fake_run
from hf_oodclip.evaluation.report import build_tables, write_report
from PIL import Image

from hf_oodclip.errors import RunError


def read_image(name: str, row: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (row % 256, 90, 90))


def table(results, key):
    return next(each for each in build_tables(results) if each.key == key)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


class Page(html.parser.HTMLParser):
    """Tags, their attributes and the visible text of a page; complains about tags that do not match."""

    EMPTY = frozenset({"meta", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    results, samples = fake_run()
    write_report(folder, results, samples, read_image)
    return folder, results


def test_csv_files_hold_the_results_to_the_last_digit(written):
    folder, results = written
    with (folder / "detection.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["detection"])
    for row, record in zip(rows, results["detection"], strict=True):
        assert (row["score"], row["set"], row["role"]) == (record["score"], record["set"], record["role"])
        for metric in METRICS:
            for column in (metric, f"{metric}_low", f"{metric}_high"):
                assert row[column] == ("" if column not in record else repr(record[column]))
    with (folder / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        found = [(row["set"], float(row["value"]), int(row["count"])) for row in csv.DictReader(file)]
    assert found == [(each["set"], each["value"], each["count"]) for each in results["accuracy"]]


def test_detection_table_shows_figures_intervals_and_the_best():
    results, _ = fake_run()
    shown = table(results, "fpr95_id_pos")
    assert list(shown.columns) == ["score", "flowers", "textures", "mean of near", "mean of far", "mean of all"]
    found = {(each["score"], each["set"]): each for each in results["detection"]}
    for row in shown.rows:
        for cell, name in zip(row[1:], shown.columns[1:], strict=True):
            record = found[row[0].text, name]
            assert cell.text == f"{100 * record['fpr95_id_pos']:.1f}"
            low, high = (record.get(f"fpr95_id_pos_{bound}") for bound in ("low", "high"))
            assert cell.detail == ("" if low is None else f"[{100 * low:.1f}, {100 * high:.1f}]")
            column = [found[score, name]["fpr95_id_pos"] for score in ("neglabel", "mcm", "energy")]
            assert cell.best == (round(record["fpr95_id_pos"], 3) == round(min(column), 3))
    # Larger is better for the others.
    for row in table(results, "auroc").rows:
        column = [found[score, "flowers"]["auroc"] for score in ("neglabel", "mcm", "energy")]
        assert row[1].best == (round(found[row[0].text, "flowers"]["auroc"], 3) == round(max(column), 3))


def test_nothing_is_best_where_all_are_equal_or_alone():
    for scores in (["mcm"], ["mcm", "energy"]):
        results, _ = fake_run(scores=scores, perfect=True)
        assert not any(cell.best for row in table(results, "auroc").rows for cell in row)


def test_missing_and_failed_sets_are_shown_as_such(tmp_path):
    sets = {"id": ("id", 60), "a": ("near", 30), "b": ("far", 30), "c": ("far", 30)}
    results, samples = fake_run(sets=sets, missing=["c"])
    shown = table(results, "auroc")
    assert list(shown.columns)[3:] == ["c", "mean of near", "mean of far (1 of 2 sets)", "mean of all (2 of 3 sets)"]
    assert [row[3].text for row in shown.rows] == ["missing"] * 3
    assert texts(table(results, "images"))[3] == ["c", "far", "missing", "–", "30", "0"]
    assert table(results, "images").note == "Not evaluated, and in no mean: c."
    write_report(tmp_path, results, samples)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "c (far) is missing: put it in data/c" in page.text
    assert "AUROC, mean of all (2 of 3 sets), of the best score here" in page.text
    assert "c | far | missing put it in data/c" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_counts_other_than_expected_are_marked():
    results, _ = fake_run()
    for each, (count, skipped) in zip(results["sets"], [(239, {"3": "damaged"}), (89, {}), (60, {})], strict=False):
        each |= {"count": count, "skipped": skipped}
    rows = table(results, "images").rows
    assert [row[4].detail for row in rows[:3]] == ["", "other than expected", ""]
    assert rows[0][5].text == "1"


def test_calibration_and_published_tables():
    results, _ = fake_run()
    first = results["calibration"][0]
    row = texts(table(results, "calibration"))[0]
    assert row[:4] == ["neglabel", "95.0", f"{first['threshold']:.6g}", "200"]
    assert row[5:] == [f"{100 * share:.1f}" for share in first["accepted"].values()]
    assert [row[-3:] for row in texts(table(results, "published"))] == [
        ["66.70", "not run", "–"],
        ["90.00", "88.50", "-1.50"],
    ]


def test_what_counts_as_id_and_what_was_left_out_is_said(tmp_path):
    results, samples = fake_run(scores=["mcm"])
    results |= {"id_filter": "correct", "full_spectrum": True, "skipped_scores": {"gl_mcm": "needs patches"}}
    note = table(results, "auroc").note
    assert "wrong first label are left out" in note and "count as ID (full spectrum)" in note
    write_report(tmp_path, results, samples)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Scores this model cannot give" in page.text and "gl_mcmneeds patches" in page.text


def test_tables_without_content_are_left_out():
    results, _ = fake_run(calibrated=False, sets={"id": ("id", 60)})
    assert [each.key for each in build_tables({**results, "published": []})] == ["images", "accuracy"]


def test_page_stands_alone(written):
    folder, _ = written
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/png;base64,", "data:,", "#")), tag
    assert not re.search(r"url\(|@import", text)
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    # Every link leads somewhere, and every picture of the folder is in the page as it is.
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= ids
    shown = [attributes["src"].partition(",")[2] for tag, attributes in page.tags if tag == "img"]
    files = sorted((folder / "pictures").iterdir())
    assert sorted(shown) == sorted(base64.b64encode(file.read_bytes()).decode() for file in files)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert [file.stem for file in files] == [
        "fpr_zoom", "gallery_accepted_ood", "gallery_rejected_id", "gallery_wrong_label", "heat_map", "histogram_00",
        "histogram_01", "histogram_02", "pr_in", "pr_out", "reliability", "roc", "selective_risk", "verdicts",
    ]  # fmt: skip


def test_page_says_what_the_run_says(written):
    folder, results = written
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    expected = ["A fake run", "some/model", "evaluate.py --model x", "0" * 32, "cat, dog, owl, bee", "3negatives"]
    expected += [f"{100 * results['accuracy'][0]['value']:.1f} %accuracy on id", "Published figures and ours"]
    for part in expected:
        assert part in page.text


def test_hostile_names_are_text_everywhere(tmp_path):
    sets = {"id": ("id", 60), HOSTILE: ("near", 30)}
    results, samples = fake_run(scores=[HOSTILE], sets=sets, labels=[HOSTILE, "b"], negatives=[HOSTILE])
    results |= {"title": HOSTILE, "model": HOSTILE, "adapter": HOSTILE, "benchmark": HOSTILE}
    results["environment"] = {HOSTILE: HOSTILE}
    results["sets"][0] |= {"reason": HOSTILE, "skipped": {"3": HOSTILE}}
    write_report(tmp_path, results, samples, read_image)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) > 20
    for name in ("tables.md", "tables.tex"):
        assert "<script>" not in (tmp_path / name).read_text(encoding="utf-8")
    with (tmp_path / "detection.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["score"] == HOSTILE


@pytest.mark.parametrize(
    "options",
    [
        {"calibrated": False, "negatives": None},
        {"sets": {"id": ("id", 60), "a": ("far", 30)}, "scores": ["energy"]},
        {"sets": {"id": ("id", 60)}},
        {"perfect": True},
    ],
    ids=["no calibration, no negatives", "one OOD set, one score", "no OOD set", "no mistakes"],
)
def test_small_runs_have_a_report_without_a_word_of_nan(tmp_path, options):
    results, samples = fake_run(**options)
    results["environment"]["image_backend"] = None
    write_report(tmp_path, results, samples, read_image)
    for name in ("detection.csv", "accuracy.csv", "tables.md", "tables.tex", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"base64,[^\"]*", "", text)), name
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    if options.get("perfect"):
        assert page.text.count("There are none. ") == 3
        assert not list((tmp_path / "pictures").glob("gallery_*"))
        assert "OOD images accepted by neglabel" in page.text


def test_without_images_the_mistakes_are_listed(tmp_path):
    results, samples = fake_run()
    write_report(tmp_path, results, samples)
    assert not list((tmp_path / "pictures").glob("gallery_*")) + list((tmp_path / "pictures").glob("verdicts*"))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    first = min(
        (row for row in samples.to_pylist() if row["role"] in ("near", "far")), key=lambda row: row["score:neglabel"]
    )
    assert first["file"] in page.text


def test_a_second_report_leaves_no_pictures_of_the_first(tmp_path):
    write_report(tmp_path, *fake_run())
    write_report(tmp_path, *fake_run(scores=["mcm"], calibrated=False))
    names = {file.stem for file in (tmp_path / "pictures").iterdir()}
    assert "histogram_00" in names and not {"histogram_01", "reliability"} & names


def test_results_and_samples_of_different_runs(tmp_path):
    results, _ = fake_run()
    _, samples = fake_run(sets={"id": ("id", 60), "a": ("far", 30)})
    with pytest.raises(RunError, match="'flowers' is ok in the results but has no samples; the samples have id, a"):
        write_report(tmp_path, results, samples)


def test_nan_is_refused_before_anything_is_written(tmp_path):
    results, samples = fake_run()
    results["detection"][1]["auroc"] = math.nan
    with pytest.raises(RunError, match=r"results\['detection'\]\[1\]\['auroc'\] is nan"):
        write_report(tmp_path / "run", results, samples)
    assert not (tmp_path / "run").exists()
