"""Runs put together: figures computed by hand, and what may not be put together."""

import functools
import math
from pathlib import Path

import pyarrow as pa
import pytest
from fake_runs import fake_run, write_run
from hf_oodclip.evaluation import protocols
from hf_oodclip.evaluation.compare import compare_runs
from hf_oodclip.evaluation.protocol_runs import Collection, harmonic_mean, read_runs
from hf_oodclip.evaluation.protocol_tables import make_protocols
from miniature_runs import small_run

from hf_oodclip.errors import RunError, UnknownNameError


@pytest.fixture
def write(tmp_path):
    """Writes runs whose figures the test chooses, see `small_run`; returns the folder."""
    return functools.partial(small_run, tmp_path)


def collect(*arguments, scores=()):
    return Collection(read_runs(arguments), scores)


def protocol(collection, key, **options):
    return next(each for each in make_protocols(collection, **options) if each.key == key)


def figures(found, method="zero-shot", score="mcm"):
    """The figures of one row by heading."""
    row = next(row for row in found.to_dict()["rows"] if (row["method"], row["score"]) == (method, score))
    return row["figures"]


def cells(found):
    """The table as text, by method and score."""
    table = found.to_table()
    return {
        (row[0].text, row[1].text): dict(zip(table.columns, row, strict=True)) for row in table.rows
    }  # fmt: skip


def test_repeats_give_mean_and_sample_deviation(write):
    runs = collect(*(f"krnft={write(value, adapter=str(value))}" for value in (0.90, 0.92, 0.97)), write(0.5))
    found = protocol(runs, "bench:auroc")
    assert figures(found, "krnft")["dots"] == pytest.approx({"mean": 0.93, "std": math.sqrt(0.0026 / 2), "n": 3})
    assert figures(found)["dots"] == {"mean": 0.5, "std": None, "n": 1}
    dots = cells(found)["krnft", "mcm"]["dots"]
    assert (dots.text, dots.detail, dots.best) == ("93.00 ± 3.61", "(3)", True)
    dots = cells(found)["zero-shot", "mcm"]["dots"]
    assert (dots.text, dots.detail, dots.best) == ("50.00", "", False)
    # Of FPR95 the lower is the better.
    wrong = cells(protocol(runs, "bench:fpr95_id_pos"))
    assert wrong["krnft", "mcm"]["dots"].best and not wrong["zero-shot", "mcm"]["dots"].best


def test_means_weigh_sets_alike_and_are_taken_in_each_repeat(write):
    # What one far set gains with a seed the other loses: the sets spread, their mean does not.
    first = write({"flowers": 0.6, "dots": 0.8, "lines": 0.9}, adapter="a")
    second = write({"flowers": 0.6, "dots": 0.9, "lines": 0.8}, adapter="b")
    found = figures(protocol(collect(f"x={first}", f"x={second}"), "bench:auroc"), "x")
    assert found["mean of far"] == pytest.approx({"mean": 0.85, "std": 0.0, "n": 2})
    assert found["mean of all"]["mean"] == pytest.approx((0.6 + 0.8 + 0.9) / 3)
    assert found["dots"]["std"] == pytest.approx(0.1 / math.sqrt(2))
    # One near set: its mean would be itself.
    assert "mean of near" not in found and "flowers" in found


def test_base_and_new_classes_have_a_harmonic_mean_in_each_repeat(write):
    assert harmonic_mean(0.8, 0.4) == pytest.approx(8 / 15) and harmonic_mean(0.0, 0.5) == 0
    arguments = [
        write(auroc, accuracy, adapter=adapter, benchmark=benchmark)
        for auroc, accuracy, adapter, benchmark in [
            (0.9, 0.8, "s0", "imagenet1k-four"),
            (0.9, 0.5, "s1", "imagenet1k-four"),
            # Not in the order of the base runs, and two benchmarks of new classes, whose mean counts.
            (0.8, 0.6, "s1", "cub-half-first"),
            (0.8, 0.3, "s0", "cub-half-first"),
            (0.6, 0.5, "s0", "pet-half-random"),
            (0.6, 0.4, "s1", "pet-half-random"),
        ]
    ]
    found = figures(protocol(collect(*(f"x={each}" for each in arguments)), "base-new"), "x")
    # Seed 0: 0.8 and (0.3 + 0.5) / 2; seed 1: 0.5 and (0.6 + 0.4) / 2.
    assert found["new, accuracy"] == pytest.approx({"mean": 0.45, "std": 0.1 / math.sqrt(2), "n": 2})
    expected = {"mean": (8 / 15 + 0.5) / 2, "std": (8 / 15 - 0.5) / math.sqrt(2), "n": 2}
    assert found["H, accuracy"] == pytest.approx(expected)
    assert found["H, AUROC"]["mean"] == pytest.approx(2 * 0.9 * 0.7 / 1.6)
    assert found["new, FPR95"]["mean"] == pytest.approx(0.3) and "H, FPR95" not in found


def test_repeats_of_other_adapters_have_no_common_deviation(write):
    arguments = [write(0.9, value, adapter=f"a{value}") for value in (0.8, 0.5)]
    arguments += [write(0.9, value, adapter=f"b{value}", benchmark="other") for value in (0.3, 0.6)]
    found = protocol(collect(*(f"x={each}" for each in arguments)), "base-new", base="bench", new=["other"])
    assert figures(found, "x")["H, accuracy"] == pytest.approx({"mean": 2 * 0.65 * 0.45 / 1.1, "std": None, "n": None})
    assert cells(found)["x", "mcm"]["H, accuracy"].text == f"{100 * 2 * 0.65 * 0.45 / 1.1:.2f}"
    # A method that lacks the new classes has no mean over base and new.
    lone = collect(*(f"x={each}" for each in arguments), f"y={write(0.9, 0.8)}")
    found = figures(protocol(lone, "base-new", base="bench", new=["other"]), "y")
    assert found["H, accuracy"] is None and found["base, accuracy"]["mean"] == 0.8


def test_base_and_new_are_asked_for_together(write):
    runs = collect(write(0.9), write(0.8, benchmark="other"))
    assert "base-new" not in {each.key for each in make_protocols(runs)}
    with pytest.raises(RunError, match="give both benchmarks"):
        make_protocols(runs, base="bench")
    with pytest.raises(UnknownNameError, match=r"'othr'\. Did you mean 'other'"):
        make_protocols(runs, base="bench", new=["othr"])
    with pytest.raises(UnknownNameError, match="fpr95_id_pos"):
        make_protocols(runs, fpr="fpr95")


def test_styles_and_left_out_domains_have_means(write):
    aurocs = {"a": 0.6, "sketch": 0.7, "v2": 0.95}
    styles = [write(value, value / 2, benchmark=f"imagenet-styles-{name}") for name, value in aurocs.items()]
    found = figures(protocol(collect(*styles), "imagenet-styles"))
    assert found["sketch, AUROC"]["mean"] == pytest.approx(0.7) and found["sketch, FPR95"]["mean"] == pytest.approx(
        0.3
    )
    assert found["mean of 3, AUROC"] == pytest.approx({"mean": 0.75, "std": None, "n": 1})
    assert found["mean of 3, accuracy"]["mean"] == pytest.approx(0.375)
    domains = {"sets": {"own": "id", "held out": "shifted", "dots": "far"}}
    setups = [
        write(0.8, {"own": 0.9, "held out": value}, benchmark=f"setup2-vlcs-{name}", **domains)
        for name, value in (("sun", 0.2), ("voc", 0.4))
    ]
    found = figures(protocol(collect(*setups), "setup2-vlcs"))
    assert found["mean of 2, robust accuracy"]["mean"] == pytest.approx(0.3)


def test_detection_and_robust_accuracy_are_in_one_row_that_names_the_filter(write):
    sets = {"own": "id", "drawn": "shifted", "photos": "shifted", "sewn": "shifted", "flowers": "near", "dots": "far"}
    accuracy = {"own": 0.9, "drawn": 0.4, "photos": 0.7, "sewn": 0.0}
    aurocs = {"flowers": 0.6, "dots": 0.8}
    run = write(aurocs, accuracy, sets=sets, missing=["sewn"], id_filter="correct", benchmark="setup1-imagenet46")
    found = protocol(collect(run), "setup1-imagenet46:robust")
    shown = {name: figure["mean"] for name, figure in figures(found).items()}
    assert shown == pytest.approx(
        {
            "ID accuracy": 0.9, "drawn, accuracy": 0.4, "photos, accuracy": 0.7, "robust accuracy (2 of 3 sets)": 0.55,
            "mean of all, AUROC": 0.7, "mean of all, FPR95, ID positive": 0.3,
        }
    )  # fmt: skip
    assert "id_filter correct" in found.title and "sewn of setup1-imagenet46" in found.note


def test_sets_that_all_runs_lack_are_named(write):
    runs = collect(write(0.9, missing=["lines"]), f"x={write(0.8, missing=['lines'])}")
    found = protocol(runs, "bench:auroc")
    assert figures(found)["mean of far (1 of 2 sets)"]["mean"] == 0.9 and "lines of bench" in found.note
    assert figures(found)["mean of all (2 of 3 sets)"]["mean"] == pytest.approx(0.9)
    only_accuracy = collect(write(0.9, 0.25, missing=["flowers", "dots", "lines"]))
    assert figures(protocol(only_accuracy, "bench:auroc"), score="–")["ID accuracy"]["mean"] == 0.25


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"labels": ["cat", "owl"]}, r"differ in the labels of benchmark 'bench': \['dog'\] and \['owl'\]"),
        ({}, {"labels": ["dog", "cat"]}, r"the labels of .*\['cat', 'dog'\] and \['dog', 'cat'\]"),
        ({}, {"id_filter": "correct"}, "id_filter, full_spectrum"),
        ({}, {"full_spectrum": True}, "id_filter, full_spectrum"),
        ({}, {"id_filter": "correct", "benchmark": "other"}, "id_filter, full_spectrum"),
        ({}, {"missing": ["lines"]}, r"the sets of benchmark 'bench': {'lines': 10} and {'lines': 'missing'}"),
        ({}, {"sets": {"own": "id", "dots": "far"}}, "the sets of benchmark 'bench'"),
        ({"adapter": "x"}, {"adapter": "x", "model": "large"}, "the base model of method 'x': base and large"),
        ({"adapter": "x"}, {"adapter": "x", "benchmark": "b", "model": "large"}, "the base model of method 'x'"),
        ({}, {"scores": ["mcm", "energy"]}, r"the scores of 'zero-shot' on 'bench'.*--scores"),
        ({"mark": "same"}, {"mark": "same"}, "are no repeats of 'zero-shot' on 'bench'"),
    ],
)
def test_what_cannot_be_compared_is_refused(write, one, other, message):
    first, second = write(0.9, **one), write(0.8, **other)
    with pytest.raises(RunError, match=message) as caught:
        collect(first, second)
    assert first in str(caught.value) and second in str(caught.value)
    collect(first)
    collect(second)


def test_a_method_may_lack_a_score_that_another_has(write):
    runs = collect(write(0.9, scores=["mcm"]), f"x={write(0.8, scores=['neglabel', 'mcm'])}")
    rows = [(row.method, row.score) for row in protocol(runs, "bench:auroc").rows]
    assert rows == [("zero-shot", "mcm"), ("x", "mcm"), ("x", "neglabel")]
    with pytest.raises(UnknownNameError, match="Did you mean 'neglabel'"):
        collect(write(0.9, scores=["neglabel"]), scores=["neglabl"])
    assert collect(write(0.9, scores=["mcm", "energy"]), scores=["energy"]).scores == ["energy"]


def test_methods_are_called_by_name_adapter_or_zero_shot(write, tmp_path):
    odd = write(0.9, folder="a=b")
    (tmp_path / "plus+sign").mkdir()
    stacked = [write(0.9, adapter=adapter) for adapter in ("runs/negpt/+hub/krnft", str(tmp_path / "plus+sign"))]
    runs = read_runs([odd, f"my name={write(0.8)}", write(0.7, adapter="runs/krnft/"), *stacked])
    assert [run.method for run in runs] == ["zero-shot", "my name", "krnft", "negpt+krnft", "plus+sign"]
    for wrong in ("=folder", "name="):
        with pytest.raises(RunError, match="name=folder"):
            read_runs([wrong])
    with pytest.raises(RunError, match="holds no finished run"):
        read_runs([f"x={tmp_path / 'nothing'}"])
    with pytest.raises(RunError, match="no runs"):
        Collection([])


def test_an_adapter_on_top_of_another_is_set_beside_it(write):
    runs = [write(0.7, 0.5, adapter="negpt"), write(0.75, 0.4, adapter="negpt+krnft"), write(0.9, adapter="krnft")]
    found = protocol(collect(*runs), "bench:stacked")
    assert [row.method for row in found.rows] == ["negpt", "negpt+krnft", "difference"]
    gains = {name: figure["mean"] for name, figure in figures(found, "difference").items()}
    assert gains == pytest.approx({"ID accuracy": -0.1, "AUROC": 0.05, "FPR95, ID positive": -0.05})
    shown = cells(found)["difference", "mcm"]
    assert (shown["AUROC"].text, shown["AUROC"].best) == ("+5.00", False) and shown["ID accuracy"].text == "-10.00"
    assert not [each for each in make_protocols(collect(*runs[1:])) if each.key.endswith("stacked")]


def test_two_methods_are_compared_image_by_image(tmp_path):
    results, samples = fake_run(calibrated=False)
    runs = []
    for method, seed in (("a", 0), ("b", 1), ("b", 2), ("a", 3), ("b", 4)):
        other, found = fake_run(calibrated=False, seed=seed)
        # The same images with other scores.
        scored = [name for name in found.column_names if name.startswith("score:")]
        mixed = pa.table({name: (found if name in scored else samples)[name] for name in samples.column_names})
        folder = write_run(tmp_path / f"{method}{seed}", {**results, "detection": other["detection"]}, mixed)
        runs.append(f"{method}={folder}")
    first, *others = (Path(each.partition("=")[2]) for each in runs[:3])
    found = protocols.compare_methods(collect(*runs[:3]), ("a", "b"), num_resamples=20)
    expected = [each for folder in others for each in compare_runs(first, folder, num_resamples=20)]
    assert [each["p_value"] for each in found] == [each.p_value for each in expected]
    assert {tuple(each["folders"]) for each in found} == {(str(first), str(folder)) for folder in others}
    # Two and two belong together in their order.
    pairs = {tuple(each["folders"]) for each in protocols.compare_methods(collect(*runs[:4]), ("a", "b"), 20)}
    assert pairs == {(str(tmp_path / "a0"), str(tmp_path / "b1")), (str(tmp_path / "a3"), str(tmp_path / "b2"))}
    with pytest.raises(RunError, match="'a' has 2 runs on 'fake' and 'b' has 3"):
        protocols.compare_methods(collect(*runs), ("a", "b"))
    with pytest.raises(UnknownNameError, match="method"):
        protocols.compare_methods(collect(*runs), ("a", "c"))
