"""Setting small checkpoints side by side: means over seeds, the table, and what it is put into."""

import json
from pathlib import Path

import pytest
import typer
from hf_oodclip.evaluation.compare_pocket import (
    END,
    START,
    main,
    markdown,
    mean_auroc,
    measure_speed,
    put_into,
    section,
)

from hf_oodclip import pocket_path

ROOT = Path(__file__).parents[2]


def record(shift: float = 0.0) -> dict:
    aurocs = {("base", "near"): 60.0, ("base", "far"): 80.0, ("new", "near"): 70.0, ("new", "far"): 94.0}
    return {
        "accuracy": dict.fromkeys(
            ("seen_top1", "seen_top5", "held_out_top1", "held_out_top5", "all_top1", "cifar10_top1"), 12.345
        ),
        "detection": [
            {"seed": 0, "group": group, "score": score, "ood": ood, "auroc": auroc + shift + (score == "energy")}
            for (group, ood), auroc in aurocs.items()
            for score in ("mcm", "energy", "neglabel")
        ],
        "images_per_second": {"float32": 512.4},
        "weight_bytes": 9_876_543,
        "tokenizer_bytes": 400_000,
    }


def test_auroc_is_averaged_within_a_draw_first():
    # Base: 70, new: 82, of both OOD sets; deviation by hand: 12 / sqrt(2).
    assert mean_auroc(record(), "mcm") == (pytest.approx(76.0), pytest.approx(8.4852814))
    assert mean_auroc(record(), "mcm", "near") == (pytest.approx(65.0), pytest.approx(7.0710678))
    # Energy is 1 higher, so the mean of three scores is a third higher.
    assert mean_auroc(record())[0] == pytest.approx(76.0 + 1 / 3)
    one_draw = {"detection": record()["detection"][:6]}
    assert mean_auroc(one_draw, "neglabel")[1] == 0.0
    other_seed = [{**each, "seed": 1, "auroc": each["auroc"] + 3} for each in one_draw["detection"]]
    assert mean_auroc({"detection": [*record()["detection"], *other_seed]}, "mcm")[0] == pytest.approx(
        (70 + 82 + 73) / 3
    )


def test_table_has_a_column_for_each_checkpoint():
    lines = markdown({"first": record(), "second": record(1.0)}).splitlines()
    assert lines[0] == "| | first | second |"
    assert "| 170 seen classes, top-1 | 12.3 | 12.3 |" in lines
    assert "| AUROC, `mcm`, near | 65.0 ± 7.1 | 66.0 ± 7.1 |" in lines
    assert "| **mean OOD AUROC** | 76.3 ± 8.5 | 77.3 ± 8.5 |" in lines
    assert "| images/s, float32 | 512 | 512 |" in lines
    assert "| weights, MB | 9.88 | 9.88 |" in lines


def test_table_replaces_what_stood_between_the_lines(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    put_into(path, "new\n")
    put_into(path, "newer\n")
    assert path.read_text(encoding="utf-8") == f"before\n{START}\nnewer\n{END}\nafter\n"
    path.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(typer.BadParameter, match="has no lines"):
        put_into(path, "new\n")
    assert path.read_text(encoding="utf-8") == "nothing\n"


def test_a_folder_without_a_checkpoint_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(typer.BadParameter, match="no checkpoint"):
        main(tmp_path, [f"one={tmp_path}"], tmp_path / "out.json")
    with pytest.raises(typer.BadParameter, match="no checkpoint"):
        main(tmp_path, ["folder"], tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_speed_is_that_of_the_image_tower():
    found = measure_speed(Path(pocket_path()), batch_size=4, rounds=1)
    assert set(found) == {"float32", "bfloat16"}
    assert all(value > 0 for value in found.values())


def test_the_table_of_readme_is_the_recorded_one():
    results = json.loads((Path(pocket_path()) / "evaluation.json").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.partition(START)[2].partition(END)[0].strip() == section(results["checkpoints"]).strip()


def test_the_other_runs_are_those_of_their_logs():
    results = json.loads((Path(pocket_path()) / "evaluation.json").read_text(encoding="utf-8"))
    for name, log in (("cpu-2h", "cpu-2h"), ("cpu-2h without shuffled images", "without-shuffled")):
        training = json.loads((ROOT / f"evaluation/results/pocket_training_{log}.json").read_text(encoding="utf-8"))
        found = results["checkpoints"][name]
        assert found["sha256"] == training["checkpoint"]["sha256"]
        assert found["accuracy"]["seen_top1"] == pytest.approx(100 * training["figures"]["seen_top1"], abs=1e-3)
