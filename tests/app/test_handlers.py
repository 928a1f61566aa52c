"""What the controls do to a visitor's session, without a browser."""

import csv
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from hf_oodclip.app.handlers import Handlers, polite
from hf_oodclip.app.interface import build_interface
from hf_oodclip.errors import OODCLIPError

SESSION, VERDICT, HISTOGRAM, EXPECTATION, TABLE, CSV, RESET, HEAT, SLIDER, SCORE, LABELS = range(11)


@pytest.fixture(scope="module")
def handlers(engine, tmp_path_factory):
    return Handlers(engine, tmp_path_factory.mktemp("app"))


@pytest.fixture
def toasts(monkeypatch):
    """The messages shown in the test so far."""
    shown = []
    monkeypatch.setattr(gr, "Warning", lambda message, **_: shown.append(message))
    monkeypatch.setattr(gr, "Info", lambda message, **_: shown.append(message))
    return shown


@pytest.fixture
def uploaded(handlers, photos):
    """A session that looks at one image."""
    return handlers.upload(handlers.new_session(), [str(photos["id"][0])])[SESSION]


def test_somebody_who_comes_sees_an_example_at_the_calibrated_threshold(handlers, engine):
    shown = handlers.arrive()
    session = shown[SESSION]
    assert session.setup == engine.start
    assert session.threshold == engine.bank(engine.start).calibrations["neglabel"].threshold
    assert "acorn.png" in shown[VERDICT]
    assert "**95." in shown[EXPECTATION]
    assert "Calibrated for 95%" in shown[EXPECTATION]
    assert shown[HEAT].size == (384, 384)
    assert shown[SLIDER].minimum < session.threshold < shown[SLIDER].maximum
    assert shown[SLIDER].value == pytest.approx(session.threshold, abs=0.01)
    assert not shown[TABLE].visible
    assert not shown[RESET].visible


def test_sessions_have_names_of_their_own(handlers):
    assert handlers.arrive()[SESSION].name != handlers.arrive()[SESSION].name


def test_moving_the_threshold_changes_the_verdict_and_what_is_accepted(handlers, uploaded):
    value = uploaded.results[0].ood_scores["neglabel"]
    low = handlers.move_threshold(uploaded, value - 0.001)
    high = handlers.move_threshold(uploaded, value + 0.001)
    assert "Out of distribution" in low[VERDICT]
    assert "In distribution" in high[VERDICT]
    assert low[RESET].visible
    assert low[EXPECTATION] != high[EXPECTATION]
    assert handlers.calibrated_threshold(low[SESSION])[SESSION].threshold == uploaded.threshold


def test_another_score_brings_its_own_threshold(handlers, engine, uploaded):
    shown = handlers.change_score(handlers.move_threshold(uploaded, 0.3)[SESSION], "energy")
    assert shown[SESSION].score == "energy"
    assert shown[SESSION].threshold == engine.bank(engine.start).calibrations["energy"].threshold
    assert "energy =" in shown[VERDICT]


def test_other_labels_are_not_decided_until_the_threshold_moves(handlers, uploaded):
    shown = handlers.change_setup(uploaded, "goldfish\nschool bus", "none", "none")
    session = shown[SESSION]
    assert session.setup.labels == ("goldfish", "school bus")
    assert session.score == "mcm"
    assert session.threshold is None
    assert "Not decided" in shown[VERDICT]
    assert "No p-value" in shown[VERDICT]
    assert "nothing is decided" in shown[EXPECTATION]
    moved = handlers.move_threshold(session, session.results[0].ood_scores["mcm"] - 1)
    assert "Out of distribution" in moved[VERDICT]
    assert "nobody can say" in moved[EXPECTATION]
    back = handlers.change_setup(session, "\n".join(uploaded.setup.labels), uploaded.setup.negatives, "none")
    assert back[SESSION].threshold is not None


def test_own_images_calibrate_and_only_for_this_visitor(handlers, engine, photos, toasts):
    labels = ", ".join(engine.start.labels[:19])
    session = handlers.change_setup(handlers.new_session(), labels, "none", "none")[SESSION]
    session = handlers.upload(session, [str(photos["far"][0])])[SESSION]
    shown = handlers.calibrate(session, [str(path) for path in photos["id"]], 0.9)
    assert shown[SESSION].threshold is not None
    assert "of the 40 calibration images" in shown[EXPECTATION]
    assert "p-value" in shown[VERDICT]
    assert toasts == ["Calibrated on 40 images."]
    # Another score, and other negatives and back, keep it.
    assert handlers.change_score(shown[SESSION], "energy")[SESSION].threshold is not None
    away = handlers.change_setup(shown[SESSION], labels, engine.start.negatives, "none")[SESSION]
    assert away.threshold is None
    assert handlers.change_setup(away, labels, "none", "none")[SESSION].threshold is not None
    other = handlers.change_setup(handlers.new_session(), labels, "none", "none")[SESSION]
    assert other.threshold is None


def test_several_images_come_as_a_table_and_csv(handlers, photos, toasts):
    paths = [*photos["id"][:3], *photos["broken"], *photos["far"][:2]]
    shown = handlers.upload(handlers.new_session(), [str(path) for path in paths])
    rows = shown[TABLE].value["data"]
    assert [row[:2] for row in rows] == [[1, "id 00.png"], [2, "id 01.png"], [3, "id 02.png"],
                                        [4, "far 00.png"], [5, "far 01.png"]]  # fmt: skip
    assert len(toasts) == 1
    assert "1 of 6 left out." in toasts[0]
    assert "broken.png" in toasts[0]
    with Path(shown[CSV].value["path"]).open(encoding="utf-8", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [row["image"] for row in kept] == [row[1] for row in rows]
    verdicts = {"True": "out of distribution", "False": "in distribution"}
    assert [verdicts[row["is_ood"]] for row in kept] == [row[2] for row in rows]
    # As the browser has sorted it, the fifth image may stand in any row.
    chosen = handlers.choose(shown[SESSION], SimpleNamespace(row_value=rows[4]))
    assert "far 01.png" in chosen[VERDICT]
    assert chosen[SESSION].threshold == shown[SESSION].threshold


def test_examples_are_looked_at_by_number(handlers):
    shown = handlers.example(handlers.new_session(), SimpleNamespace(index=6))
    assert "digit 0.png" in shown[VERDICT]


def test_of_a_folder_the_images_are_taken(handlers, photos, toasts, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    shown = handlers.upload_folder(handlers.new_session(), [str(tmp_path / "notes.txt"), str(photos["id"][0])])
    assert "id 00.png" in shown[VERDICT]
    assert toasts == []
    with pytest.raises(OODCLIPError, match="no images in this folder"):
        handlers.upload_folder(handlers.new_session(), [str(tmp_path / "notes.txt")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h, s, p: h.upload(s, [str(p["broken"][0])]), "broken.png"),
        (lambda h, s, p: h.upload(s, None), "no image"),
        (lambda h, s, p: h.change_setup(s, " , ", "none", "none"), "no labels"),
        (lambda h, s, p: h.change_setup(s, "cat " * 60, "none", "none"), "longer than the 32 tokens"),
        (lambda h, s, p: h.calibrate(s, [str(path) for path in p["id"][:3]], 0.95), "at least 20 images"),
        (lambda h, s, p: h.calibrate(s, [str(path) for path in p["id"][:20]], 0.99), "at least 99 ID images"),
    ],
)
def test_mistakes_are_answered_politely_and_change_nothing(handlers, photos, uploaded, toasts, call, message):
    answered = polite(lambda: call(handlers, uploaded, photos))()
    assert answered == gr.skip()
    assert len(toasts) == 1
    assert message in toasts[0]


def test_messages_are_escaped(toasts):
    def fails():
        raise OODCLIPError("<img src=x onerror=alert(1)>")

    polite(fails)()
    assert toasts == ["&lt;img src=x onerror=alert(1)&gt;"]


def test_an_image_gone_from_the_server_is_said(handlers, uploaded, photos, toasts, tmp_path):
    path = tmp_path / "soon gone.png"
    path.write_bytes(photos["id"][0].read_bytes())
    session = handlers.upload(uploaded, [str(path)])[SESSION]
    path.unlink()
    assert "In distribution" in handlers.move_threshold(session, 10.0)[VERDICT]
    assert polite(handlers.change_score)(session, "mcm") == gr.skip()
    assert toasts == ["&#x27;soon gone.png&#x27; is no longer here; upload it again."]


def test_the_page_offers_no_public_endpoint_and_no_analytics(engine, tmp_path):
    page = build_interface(engine, tmp_path)
    assert not page.analytics_enabled
    config = page.get_config_file()
    assert {dependency["api_visibility"] for dependency in config["dependencies"]} == {"private"}
