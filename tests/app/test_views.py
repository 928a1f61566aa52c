"""What is shown says what was found, and texts from outside cannot become markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_oodclip import Calibration
from hf_oodclip.app.bank import ImageResult
from hf_oodclip.app.views import TABLE_HEADERS, decide, histogram, record, share_accepted, table_row, verdict

EVIL = "<script>alert(1)</script>\"onload='x"


@pytest.fixture
def calibration():
    return Calibration.fit(torch.linspace(0, 1, 99), "mcm")


def result(value=0.5, name="photo.jpg", label="acorn", negative="gravel"):
    return ImageResult(Path("/tmp") / name, [(label, 0.75), ("desk", 0.25)], negative, {"mcm": value})


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_decision_follows_threshold_and_calibration(calibration):
    # 99 scores, 30 of them >= 0.7: (1 + 30) / 100.
    decision = decide(result(0.7), "mcm", 0.6, calibration)
    assert decision.is_ood is True
    assert decision.p_value == pytest.approx((1 + int((calibration.ood_scores >= 0.7).sum())) / 100)
    assert decide(result(0.6), "mcm", 0.6, calibration).is_ood is False
    assert decide(result(0.6), "mcm", None, None) == decide(result(0.6), "mcm", None, None)
    assert decide(result(0.6), "mcm", None, None).is_ood is None
    assert decide(result(0.6), "mcm", None, None).p_value is None


def test_share_accepted_is_counted(calibration):
    assert share_accepted(calibration, calibration.threshold) == pytest.approx(95 / 99)
    assert share_accepted(calibration, -1) == 0
    assert share_accepted(calibration, 2) == 1


@pytest.mark.parametrize(
    ("threshold", "kind", "words"),
    [
        (0.4, "oc-ood", "Out of distributionNone of the labels. The nearest is acorn"),
        (0.6, "oc-id", "In distributionacorn, 75.0% among the labels"),
        (None, "oc-open", "Not decidedacorn, 75.0% among the labels"),
    ],
)
def test_the_verdict_is_said_in_words(threshold, kind, words, calibration):
    shown = Tags(verdict(result(), decide(result(), "mcm", threshold, calibration), Image.new("RGB", (9, 9))))
    assert kind in shown.tags[0][1]["class"]
    assert words in shown.text
    assert "nearest negative gravel" in shown.text
    assert "p-value 0.510: 51% of the calibration images" in shown.text
    assert [attributes["src"][:22] for tag, attributes in shown.tags if tag == "img"] == ["data:image/jpeg;base64"]


def test_without_calibration_there_is_no_p_value():
    shown = Tags(verdict(result(negative=None), decide(result(), "mcm", None, None), None)).text
    assert "No p-value" in shown
    assert "negative" not in shown


def test_texts_from_outside_stay_texts(calibration):
    evil = result(name="<img src=x onerror=alert(1)>.png", label=EVIL, negative=EVIL)
    for threshold in (0.4, 0.6, None):
        shown = Tags(verdict(evil, decide(evil, "mcm", threshold, calibration), None))
        assert {tag for tag, _ in shown.tags} == {"div", "b", "span"}
        assert all(set(attributes) <= {"class", "title", "style", "role"} for _, attributes in shown.tags)
        assert EVIL in shown.text


def test_the_histogram_counts_and_marks(calibration):
    decision = decide(result(0.5), "mcm", calibration.threshold, calibration)
    drawn = histogram(calibration, calibration.threshold, decision)
    heights = [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', drawn)]
    # 99 scores evenly over 0..1, drawn from -0.04 to 1.04 in 28 bins: three or four in each that is filled.
    assert max(heights) == 140
    assert sum(heights) == pytest.approx(99 * 140 / 4, abs=2)
    limit = float(re.search(r'oc-limit" x1="([\d.]+)"', drawn).group(1))
    mark = float(re.search(r'oc-mark" x1="([\d.]+)"', drawn).group(1))
    assert mark == pytest.approx(260, abs=0.1)
    assert limit == pytest.approx(20 + 480 * (calibration.threshold + 0.04) / 1.08, abs=0.1)
    assert "99 calibration images (ID) by mcm" in drawn


def test_a_far_image_is_inside_the_histogram(calibration):
    for value in (-50.0, 50.0):
        drawn = histogram(calibration, None, decide(result(value), "mcm", None, calibration))
        assert 20 <= float(re.search(r'oc-mark" x1="([\d.]+)"', drawn).group(1)) <= 500
        assert "oc-limit" not in drawn
    assert "Not calibrated" in histogram(None, None, decide(result(), "mcm", None, None))


def test_rows_and_records(calibration):
    decision = decide(result(), "mcm", 0.4, calibration)
    row = dict(zip(TABLE_HEADERS, table_row(3, result(), decision), strict=True))
    assert row == {
        "#": 3, "image": "photo.jpg", "verdict": "out of distribution", "p-value": 0.51, "OOD score": 0.5,
        "label": "acorn", "probability": 0.75, "negative": "gravel",
    }  # fmt: skip
    kept = record(result(), decision)
    assert (kept["image"], kept["is_ood"], kept["p_value"]) == ("photo.jpg", True, pytest.approx(0.51))
    assert [entry["label"] for entry in kept["labels"]] == ["acorn", "desk"]
