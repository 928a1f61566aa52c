"""The program that puts runs together: what it writes, and runs of stacked adapters end to end."""

import csv
import json
import math
import shutil

import pytest
import torch
import typer
from hf_oodclip.evaluation import evaluate, protocols
from hf_oodclip.evaluation.benchmark import Benchmark
from miniature_runs import METRICS, small_run
from typer.testing import CliRunner

from hf_oodclip import ContextPromptConfig, NFTConfig, OODCLIPForImageClassification

NAMES, WORDS = ("acorn", "desk", "police van", "tabby cat"), ("gravel", "fog", "tax law", "handwriting")


def call(main, *arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(part) for part in arguments])


def test_program_writes_every_figure(tmp_path):
    runs = [f"x_1={small_run(tmp_path, value, adapter=str(value))}" for value in (0.8, 0.9)]
    runs.append(small_run(tmp_path, 0.7, scores=["mcm", "energy"]))
    done = call(protocols.main, *runs, "--output-dir", tmp_path / "out", "--fpr", "fpr95_ood_pos", "--scores", "mcm")
    assert done.exit_code == 0, done
    summary = json.loads((tmp_path / "out" / "protocols.json").read_text())
    assert [run["method"] for run in summary["runs"]] == ["x_1", "x_1", "zero-shot"]
    assert summary["id_filter"] == "all" and summary["environment"]["versions"]["torch"]
    with (tmp_path / "out" / "protocols.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(summary["figures"]) == 2 * (1 + 6 * len(METRICS))
    wanted = {"method": "x_1", "score": "mcm", "set": "mean of far", "metric": "auroc"}
    row = next(row for row in rows if row.items() >= wanted.items())
    assert (float(row["mean"]), int(row["n"])) == (pytest.approx(0.85), 2)
    assert next(row for row in rows if row["method"] == "zero-shot")["std"] == ""
    markdown = (tmp_path / "out" / "protocols.md").read_text()
    assert "85.00 ± 7.07" in markdown and "FPR95, OOD positive" in markdown and markdown.strip() in done.stdout
    assert r"x\_1 & mcm" in (tmp_path / "out" / "protocols.tex").read_text()


@pytest.fixture(scope="module")
def adapters(tiny_clip, tmp_path_factory):
    """A context prompt and a feature map that both do something."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in {"prompt": ContextPromptConfig(num_context=2), "maps": NFTConfig(hidden_size=2)}.items():
        model = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS)
        model.add_adapter(config)
        for value in (value for key, value in model.named_parameters() if key.endswith(".default")):
            value.data += 0.3 * value.new_tensor([math.sin(7 * place) for place in range(value.numel())]).view_as(
                value
            )
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.slow
def test_real_runs_of_stacked_adapters_end_to_end(adapters, root, tmp_path):
    prompt, maps = adapters / "prompt", adapters / "maps"
    own = ["--id", root / "id", "--ood", root / "far", "--num-bootstrap", "0", "--store", tmp_path / "store"]
    own += ["--scores", "neglabel", "--output-dir"]
    sources = [part for each in (prompt, maps, f"{prompt}+{maps}") for part in ("--adapter", each)]
    done = call(evaluate.main, *own, tmp_path / "runs", *sources)
    assert done.exit_code == 0, done
    assert {each.name for each in (tmp_path / "runs").iterdir()} == {"prompt", "maps", "prompt+maps"}
    compare = ["--compare", "prompt", "prompt+maps", "--resamples", 9]
    done = call(protocols.main, *(tmp_path / "runs").iterdir(), "--output-dir", tmp_path / "out", *compare)
    assert done.exit_code == 0, done
    assert "prompt+maps less prompt" in done.stdout
    summary = json.loads((tmp_path / "out" / "protocols.json").read_text())
    table = next(each for each in summary["protocols"] if each["protocol"].endswith(":stacked"))
    by_method = {row["method"]: row["figures"]["AUROC"]["mean"] for row in table["rows"]}
    assert by_method["difference"] == pytest.approx(by_method["prompt+maps"] - by_method["prompt"])
    paired = next(each for each in summary["significance"] if each["metric"] == "auroc")
    assert paired["difference"] == pytest.approx(by_method["difference"]) and 0 < paired["p_value"] <= 1


def test_both_adapters_act(adapters, tiny_clip, root):
    """The scores of `a+b` are those of a model that was given both by hand, with or without naming the base."""
    prompt, maps, files = adapters / "prompt", adapters / "maps", sorted((root / "far").iterdir())
    model = OODCLIPForImageClassification.from_pretrained(prompt).eval()
    alone = model.ood_scores(files, ["neglabel"])["neglabel"]
    model.load_adapter(maps, "other")
    model.set_adapter(["default", "other"])
    expected = model.ood_scores(files, ["neglabel"])["neglabel"]
    assert not torch.allclose(expected, alone, atol=1e-4)
    benchmark = Benchmark("own", "", "", list(NAMES), None, ())
    for base in ("", str(tiny_clip)):
        loaded = evaluate._load(base, f"{prompt}+{maps}", list(NAMES), "none", "", benchmark)
        assert loaded.labels == list(NAMES) and loaded.negatives.texts == list(WORDS)
        torch.testing.assert_close(loaded.ood_scores(files, ["neglabel"])["neglabel"], expected)


def test_stacks_that_cannot_be_are_refused(adapters, root, tmp_path):
    own = ["--id", root / "id", "--ood", root / "far", "--output-dir"]
    maps = adapters / "maps"
    done = call(evaluate.main, *own, tmp_path / "x", "--adapter", f"{maps}+")
    assert done.exit_code == 1 and "two as in a+b" in done.stderr
    done = call(evaluate.main, *own, tmp_path / "y", "--adapter", f"{maps}+{shutil.copytree(maps, tmp_path / 'twin')}")
    assert done.exit_code == 1 and "active together" in done.stderr


def test_program_says_what_is_wrong_in_one_line(tmp_path):
    done = call(protocols.main, tmp_path, "--output-dir", tmp_path / "out")
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1
    assert "holds no finished run" in done.stderr and not (tmp_path / "out").exists()
