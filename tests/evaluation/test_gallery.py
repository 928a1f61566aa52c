"""The most confident mistakes: the right ones, in the right order, with what the model saw."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runs import HOSTILE, fake_run
from hf_oodclip.evaluation.gallery import draw_galleries, find_mistakes
from hf_oodclip.evaluation.sample_table import SampleTable
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
