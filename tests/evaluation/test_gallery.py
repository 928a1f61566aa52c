"""Verdicts drawn at random and the most confident mistakes: the right images, with what the model saw."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runs import HOSTILE, fake_run
from hf_oodclip.evaluation import gallery
from hf_oodclip.evaluation.gallery import draw_galleries, draw_verdicts, find_mistakes
from hf_oodclip.evaluation.sample_table import SampleTable
from matplotlib.colors import to_hex
from PIL import Image

from hf_oodclip.errors import ImageReadError

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def test_mistakes_are_those_a_search_through_all_images_finds():
    results, table = fake_run()
    rows = table.to_pylist()
    threshold = next(each["threshold"] for each in results["calibration"] if each["score"] == "neglabel")
    expected = {
        "accepted_ood": sorted(
            (row for row in rows if row["role"] in ("near", "far") and row["score:neglabel"] <= threshold),
            key=lambda row: row["score:neglabel"],
        ),
        "rejected_id": sorted(
            (row for row in rows if row["role"] == "id" and row["score:neglabel"] > threshold),
            key=lambda row: -row["score:neglabel"],
        ),
        "wrong_label": sorted(
            (row for row in rows if row["role"] == "id" and row["label"] != row["prediction"]),
            key=lambda row: -row["confidence"],
        ),
    }
    found = find_mistakes(results, SampleTable(table), limit=60)
    # So many that OOD images of both sets are among them.
    assert {mistake.set for mistake in found[0].mistakes} == {"flowers", "textures"}
    assert [each.key for each in found] == list(expected)
    for each in found:
        assert each.total == len(expected[each.key])
        assert len(each.mistakes) == min(60, each.total)
        for mistake, row in zip(each.mistakes, expected[each.key], strict=False):
            assert (mistake.set, mistake.row, mistake.file) == (row["set"], row["row"], row["file"])
            assert mistake.truth == (results["labels"][row["label"]] if row["role"] == "id" else None)
            assert mistake.prediction == results["labels"][row["prediction"]]
            assert mistake.nearest_negative == row["nearest_negative"]
            assert (mistake.ood_score, mistake.confidence) == (row["score:neglabel"], row["confidence"])


def test_no_mistakes_at_all(tmp_path):
    results, table = fake_run(perfect=True)
    found = find_mistakes(results, SampleTable(table))
    assert [(each.key, each.total, list(each.mistakes)) for each in found] == [
        ("accepted_ood", 0, []),
        ("rejected_id", 0, []),
        ("wrong_label", 0, []),
    ]
    assert draw_galleries(tmp_path, found, pytest.fail) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("absent", ["ID images", "OOD images", "labels"])
def test_kinds_the_run_has_no_images_for_are_left_out(absent):
    results, table = fake_run()
    roles = {"ID images": {"id"}, "OOD images": {"near", "far"}, "labels": set()}[absent]
    table = table.filter([role not in roles for role in table["role"].to_pylist()])
    if absent == "labels":
        table = table.set_column(table.column_names.index("label"), "label", [[-1] * table.num_rows])
    kinds = {
        "ID images": [],
        "OOD images": ["rejected_id", "wrong_label"],
        "labels": ["accepted_ood", "rejected_id"],
    }
    assert [each.key for each in find_mistakes(results, SampleTable(table))] == kinds[absent]


def test_gallery_asks_for_each_image_and_survives_those_it_cannot_read(tmp_path):
    results, table = fake_run(labels=(HOSTILE, "犬", "_c", "d" * 90), negatives=(HOSTILE, "é"))
    found = find_mistakes(results, SampleTable(table))
    asked, errors = [], [ImageReadError("damaged"), FileNotFoundError("gone"), ValueError("no image")]
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"]

    def read(name, row):
        asked.append((name, row))
        if errors:
            raise errors.pop()
        return Image.new(modes[len(asked) % len(modes)], (40 + row, 300))

    drawn = draw_galleries(tmp_path, found, read)
    assert asked == [(mistake.set, mistake.row) for each in found for mistake in each.mistakes]
    assert list(drawn) == ["accepted_ood", "rejected_id", "wrong_label"]
    for picture in drawn.values():
        with Image.open(picture.path) as image:
            assert image.width == 1040


def test_gallery_shows_the_image_itself(tmp_path):
    results, table = fake_run()
    kept = find_mistakes(results, SampleTable(table), limit=4)[:1]
    drawn = draw_galleries(tmp_path, kept, lambda name, row: Image.new("RGB", (50, 50), (10, 200, 30)))
    with Image.open(drawn["accepted_ood"].path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == (10, 200, 30)).all(axis=1).mean() > 0.5


def verdicts(tmp_path, results, table):
    """The picture, and which images were read for it."""
    read = []

    def read_image(name, row):
        read.append((name, row))
        return Image.new("RGB", (30, 30))

    return draw_verdicts(tmp_path, results, SampleTable(table), read_image), read


def test_verdicts_are_drawn_at_random_from_every_side(tmp_path):
    results, table = fake_run()
    before = np.random.get_state()[1].tolist()
    (picture,), read = verdicts(tmp_path, results, table)
    assert np.random.get_state()[1].tolist() == before
    assert len(set(read)) == len(read) == 24
    # Twelve ID images, and four of each other set, in their order.
    sets = [name for name, _ in read]
    assert sets == ["id"] * 12 + [name for name in table["set"].unique().to_pylist()[1:4] for _ in range(4)]
    rows = [row for name, row in read if name == "id"]
    assert rows == sorted(rows) and rows[-1] - rows[0] > 100
    # The same again; and the same whatever the model said of them.
    assert verdicts(tmp_path, results, table)[1] == read
    assert verdicts(tmp_path, *fake_run(seed=1))[1] == read
    assert "at random, not chosen" in picture.text and picture.path.name == "verdicts.png"


def test_a_verdict_says_what_the_image_is_and_what_the_model_says(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(gallery, "save", lambda figure, path: figures.append(figure) or path)
    results, table = fake_run()
    _, read = verdicts(tmp_path, results, table)
    threshold = next(each["threshold"] for each in results["calibration"] if each["score"] == "neglabel")
    rows = {(row["set"], row["row"]): row for row in table.to_pylist()}
    remarks = set()
    for axis, place in zip(figures[0].axes, read, strict=True):
        row, labels = rows[place], results["labels"]
        ood = row["score:neglabel"] > threshold
        known = row["role"] in ("id", "shifted")
        truth = labels[row["label"]] if known else row["set"]
        assert axis.get_title() == f"{'ID' if known else 'OOD'}: {truth}"
        right_label = row["label"] == row["prediction"]
        remark = "wrong verdict" if ood == known else "wrong label" if known and not ood and not right_label else ""
        verdict = "OOD" if ood else labels[row["prediction"]]
        assert axis.get_xlabel().split("\n") == [verdict, f"p = {row['p_value:neglabel']:.3f}", remark]
        colours = {to_hex(spine.get_edgecolor()) for spine in axis.spines.values()}
        assert colours == {"#d55e00" if ood else "#0072b2"}
        # The p-value and the frame agree.
        assert ood == (row["p_value:neglabel"] <= 0.05 + 1e-9)
        remarks.add(remark)
    assert remarks == {"wrong verdict", "wrong label", ""}


def test_verdicts_of_runs_with_few_or_many_sets(tmp_path):
    assert verdicts(tmp_path, *fake_run(calibrated=False)) == ([], [])
    results, table = fake_run()
    without_id = table.filter([role != "id" for role in table["role"].to_pylist()])
    assert verdicts(tmp_path, results, without_id) == ([], [])
    for sets, counts in (
        ({"id": ("id", 60)}, {"id": 12}),
        ({"id": ("id", 5), "a": ("near", 3), "b": ("far", 30)}, {"id": 5, "a": 3, "b": 6}),
    ):
        _, read = verdicts(tmp_path, *fake_run(sets=sets))
        assert {name: [each for each, _ in read].count(name) for name in sets} == counts
    many = {"id": ("id", 60), **{f"set {number}": ("far", 2) for number in range(15)}}
    _, read = verdicts(tmp_path, *fake_run(sets=many, scores=["mcm"]))
    assert len(read) == 24 and len({name for name, _ in read}) == 13


def test_verdicts_survive_images_that_cannot_be_read_and_letters_the_font_lacks(tmp_path):
    results, table = fake_run(labels=(HOSTILE, "犬", "_c", "d" * 90))

    def read_image(name, row):
        raise OSError("gone")

    (picture,) = draw_verdicts(tmp_path, results, SampleTable(table), read_image)
    with Image.open(picture.path) as image:
        assert image.width == 1040
