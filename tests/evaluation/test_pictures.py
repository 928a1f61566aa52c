"""What the pictures draw, read back from the figures, against the metrics and slow counts."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pyarrow.compute as pc
import pytest
from fake_runs import HOSTILE, fake_run
from hf_oodclip.evaluation import curves, drawing, pictures
from hf_oodclip.evaluation.drawing import plain
from hf_oodclip.evaluation.pictures import draw_pictures, threshold_of
from hf_oodclip.evaluation.sample_table import SampleTable
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from hf_oodclip.metrics import aupr_in, aupr_out, auroc

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture
def figures(monkeypatch) -> dict[str, Figure]:
    """Every figure drawn in the test, by the name of its file; the files are not written."""
    drawn = {}

    def keep(figure, path):
        drawn[path.stem] = figure
        return path

    for module in (curves, pictures):
        monkeypatch.setattr(module, "save", keep)
    return drawn


def draw(tmp_path, figures, **options):
    results, table = fake_run(**options)
    samples = SampleTable(table)
    drawn = draw_pictures(tmp_path, results, samples)
    assert {picture.path.stem for picture in drawn} == set(figures)
    return results, samples


def lines_of(axis, scores):
    by_label = {line.get_label(): line.get_xydata() for line in axis.get_lines()}
    return {score: by_label[score] for score in scores}


def test_curves_enclose_the_areas_that_are_measured(tmp_path, figures):
    _, samples = draw(tmp_path, figures)
    for place, name in enumerate(samples.ood_sets):
        for score in samples.scores:
            known, unknown = samples.of("id", f"score:{score}"), samples.of(name, f"score:{score}")
            roc, found_in, found_out = (
                lines_of(figures[stem].axes[place], samples.scores)[score] for stem in ("roc", "pr_in", "pr_out")
            )
            assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(auroc(known, unknown), abs=1e-9)
            for line, measure in ((found_in, aupr_in), (found_out, aupr_out)):
                average = (np.diff(line[:, 0], prepend=0) * line[:, 1]).sum()
                assert average == pytest.approx(measure(known, unknown), abs=1e-9)
        assert figures["roc"].axes[place].get_title() == name
    assert figures["fpr_zoom"].axes[0].get_ylim() == (0.8, 1.002)


def test_thinned_curves_stay_on_the_curve(tmp_path, figures):
    sets = {"id": ("id", 9000), "a": ("near", 8000)}
    _, samples = draw(tmp_path, figures, scores=["mcm"], sets=sets)
    for stem in ("roc", "pr_in", "pr_out"):
        assert len(lines_of(figures[stem].axes[0], ["mcm"])["mcm"]) < 2000
    roc = lines_of(figures["roc"].axes[0], ["mcm"])["mcm"]
    expected = auroc(samples.of("id", "score:mcm"), samples.of("a", "score:mcm"))
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(expected, abs=1e-3)
    assert roc[0].tolist() == [0, 0] and roc[-1].tolist() == [1, 1]


def test_selective_risk_counts_errors_among_the_accepted(tmp_path, figures):
    _, samples = draw(tmp_path, figures)
    wrong = (samples.of("id", "label") != samples.of("id", "prediction")).tolist()
    values = samples.of("id", "score:mcm").tolist()
    for coverage, risk in lines_of(figures["selective_risk"].axes[0], ["mcm"])["mcm"][::20]:
        accepted = sorted(zip(values, wrong, strict=True))[: round(coverage * len(values))]
        assert risk == pytest.approx(sum(error for _, error in accepted) / len(accepted))
    # At full coverage with OOD images: all of these and the wrong labels are errors.
    last = lines_of(figures["selective_risk"].axes[1], ["mcm"])["mcm"][-1]
    assert last.tolist() == pytest.approx([1, (sum(wrong) + 90 + 60) / (240 + 90 + 60)])


def test_selective_risk_takes_tied_images_together(tmp_path, figures):
    draw(tmp_path, figures, perfect=True, scores=["mcm"])
    # All ID images have one score, all OOD images another: two operating points.
    line = lines_of(figures["selective_risk"].axes[1], ["mcm"])["mcm"]
    assert line.tolist() == [pytest.approx([240 / 390, 0]), pytest.approx([1, 150 / 390])]


def test_reliability_is_the_share_of_small_p_values(tmp_path, figures):
    _, samples = draw(tmp_path, figures)
    for axis, sets in zip(figures["reliability"].axes, (["id"], samples.ood_sets), strict=True):
        p_values = np.concatenate([samples.of(name, "p_value:energy") for name in sets])
        for level, share in lines_of(axis, ["energy"])["energy"][::25]:
            assert share == pytest.approx((p_values <= level + 1e-6).mean())


def test_heat_map_holds_the_figures_and_leaves_missing_sets_empty(tmp_path, figures):
    sets = {"id": ("id", 60), "a": ("near", 30), "b": ("far", 30), "c": ("far", 30)}
    results, _ = draw(tmp_path, figures, sets=sets, missing=["c"])
    found = {(each["score"], each["set"]): each for each in results["detection"]}
    columns = ["a", "b", "c", "mean of near", "mean of far", "mean of all"]
    cells = [(score, name) for score in ("neglabel", "mcm", "energy") for name in columns]
    for axis, metric in zip(figures["heat_map"].axes, ("auroc", "fpr95_id_pos"), strict=True):
        values = [found.get(cell, {}).get(metric) for cell in cells]
        expected = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        assert [text.get_text() for text in axis.texts] == expected
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["a", "b", "c", "mean of near", "mean of far (1 of 2 sets)", "mean of all (2 of 3 sets)"]


def test_histograms_hold_every_image_and_say_what_is_caught(tmp_path, figures):
    results, samples = draw(tmp_path, figures)
    threshold, _ = threshold_of(results, samples, "mcm")
    axes = figures["histogram_01"].axes
    assert [axis.get_title() for axis in axes[:3]] == ["flowers", "textures", "sketches"]
    for axis, (name, word) in zip(
        axes, (("flowers", "caught"), ("textures", "caught"), ("sketches", "rejected")), strict=False
    ):
        for bars in axis.patches:
            assert bars.get_data().values.sum() == pytest.approx(1)
        share = (samples.of(name, "score:mcm") > threshold).mean()
        assert axis.get_legend_handles_labels()[1][1] == f"{samples.roles[name]} ({share:.0%} {word})"


def test_threshold_comes_from_the_calibration_else_accepts_95_percent_of_these_id_images():
    results, table = fake_run()
    samples = SampleTable(table)
    calibrated = next(each for each in results["calibration"] if each["score"] == "mcm")
    assert threshold_of(results, samples, "mcm")[0] == calibrated["threshold"]
    threshold, origin = threshold_of({**results, "calibration": []}, samples, "mcm")
    values = samples.of("id", "score:mcm")
    # The smallest threshold that accepts so many: 228 of 240 is exactly 95 %.
    assert (values <= threshold).sum() == 228
    assert "not calibrated" in origin


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"calibrated": False}, {"reliability"}),
        ({"sets": {"id": ("id", 60)}}, {"roc", "fpr_zoom", "pr_in", "pr_out", "heat_map"}),
        ({"sets": {"a": ("near", 60), "b": ("far", 30)}, "missing": ["id"]}, None),
    ],
)
def test_what_the_run_lacks_is_not_drawn(tmp_path, figures, options, absent):
    if absent is None:
        # Without ID images there is nothing to compare with; the tables of other sets remain.
        results, table = fake_run()
        kept = [each for each in results["sets"] if each["name"] != "id"]
        rest = table.filter([name != "id" for name in table["set"].to_pylist()])
        assert draw_pictures(tmp_path, {**results, "sets": kept, "detection": []}, SampleTable(rest)) == []
        return
    draw(tmp_path, figures, **options)
    assert not absent & set(figures)
    assert "selective_risk" in figures


def test_unlabelled_id_images_are_no_errors(tmp_path, figures):
    results, table = fake_run()
    labels = table.set_column(table.column_names.index("label"), "label", [[-1] * table.num_rows])
    draw_pictures(tmp_path, results, SampleTable(labels))
    (axis,) = figures["selective_risk"].axes
    assert axis.get_title() == "ID and OOD images: OOD"
    assert axis.get_lines()[0].get_xydata()[-1].tolist() == pytest.approx([1, 150 / 390])


@pytest.mark.parametrize(
    "options",
    [
        {
            "scores": [HOSTILE, "_x", "$a$", "x" * 90],
            "sets": {"id": ("id", 60), HOSTILE: ("near", 30), "$": ("far", 9)},
        },
        {"scores": ["mcm"], "sets": {"id": ("id", 1), "a": ("near", 1)}},
        {"perfect": True, "calibrated": False, "negatives": None},
    ],
    ids=["hostile names", "one image a set", "constant scores"],
)
def test_files_can_be_opened_and_nothing_warns(tmp_path, options):
    results, table = fake_run(**options)
    drawn = draw_pictures(tmp_path, results, SampleTable(table))
    assert {picture.path for picture in drawn} == set(tmp_path.iterdir())
    for picture in drawn:
        with Image.open(picture.path) as image:
            assert image.width == 1040
            assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 20


def test_no_text_lies_on_other_text(tmp_path, figures):
    scores = ("mcm", "msp", "max_logit", "energy", "entropy", "gen", "neglabel", "delta_energy")
    results, table = fake_run(scores=(*scores, "delta_energy(temperature=1.0)"))
    # MCM of twenty labels lies between -0.065 and -0.05: long numbers at its axis.
    values = pc.subtract(pc.multiply(table["score:mcm"], 0.002), 0.055)
    table = table.set_column(table.column_names.index("score:mcm"), "score:mcm", values)
    results["calibration"][0]["threshold"] = -0.052
    draw_pictures(tmp_path, results, SampleTable(table))
    for stem, figure in figures.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for axis in figure.axes:
            legends = [axis.get_legend()] if axis.get_legend() else []
            groups = [axis.get_yticklabels(), *([] if stem == "heat_map" else [axis.get_xticklabels()])]
            groups += [each.get_texts() for each in [*figure.legends, *legends]]
            for texts in groups:
                boxes = [text.get_window_extent() for text in texts if text.get_text()]
                assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), stem
        names = [text.get_window_extent() for each in figure.legends for text in each.get_texts()]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in names), stem


def test_lines_of_scores_that_rank_alike_are_all_seen():
    looks = [drawing.line(place) for place in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    for one, other in pairwise(looks):
        assert one["linestyle"] != other["linestyle"] and one["color"] != other["color"]
    # A line without gaps has those with gaps above it.
    solid = {look["zorder"] for look in looks if look["linestyle"] == "-"}
    assert max(solid) < min(look["zorder"] for look in looks if look["linestyle"] != "-")


def test_names_of_scores_with_an_option_are_shown_whole():
    assert plain("delta_energy(temperature=1.0)") == "delta_energy(temperature=1.0)"


@pytest.mark.slow
def test_twenty_scores(tmp_path):
    results, table = fake_run(scores=[f"score(option={number})" for number in range(20)])
    drawn = draw_pictures(tmp_path, results, SampleTable(table))
    assert len(drawn) == 7 + 20
    assert sum(picture.prominent for picture in drawn) == 5
