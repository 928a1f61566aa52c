"""The evaluation program: what it writes, what it refuses, and that neither kill -9 nor a second process matters."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import datasets
import psutil
import pyarrow.parquet as pq
import pytest
import typer
from hf_oodclip.evaluation.evaluate import main
from hf_oodclip.evaluation.sample_table import read_run
from peft import LoraConfig
from typer.testing import CliRunner

from hf_oodclip import OODCLIPForImageClassification

PROGRAM = Path(__file__).parents[2] / "evaluation" / "evaluate.py"
NAMES = ("acorn", "desk", "police van", "tabby cat")
WORDS = ("gravel", "fog", "tax law", "handwriting")
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
FILES = {"accuracy.csv", "detection.csv", "report.html", "results.json", "samples.parquet", "tables.md", "tables.tex"}


def run(*arguments, launcher=(sys.executable, PROGRAM)):
    command = [str(part) for part in (*launcher, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT)


def two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--quiet --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    return ["accelerate", "launch", *options.split(), "--main_process_port", port, PROGRAM]


def call(*arguments):
    """The same within this process, which has imported everything already."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(part) for part in arguments])


def status(done):
    return done.returncode if hasattr(done, "returncode") else done.exit_code


def finished(done):
    assert status(done) == 0, (done, done.stderr)
    return done


def refused(done):
    """The one sentence a run ends with."""
    assert status(done) == 1 and "Traceback" not in done.stderr, (done, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory, id_dataset):
    """ID images of four classes in folders, and OOD images in one folder."""
    root = tmp_path_factory.mktemp("data")
    images = iter(id_dataset.cast_column("image", datasets.Image(decode=False))["image"][:60])
    for folder in (*(f"id/{name}" for name in NAMES), "ood"):
        (root / folder).mkdir(parents=True)
        for number in range(12):
            (root / folder / f"{number:02}.jpg").write_bytes(next(images)["bytes"])
    return root


@pytest.fixture(scope="module")
def checkpoint(tiny_clip, tmp_path_factory):
    """A full checkpoint with labels and negatives, so that nothing needs mining."""
    folder = tmp_path_factory.mktemp("checkpoint")
    OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS).save_pretrained(folder)
    return folder


@pytest.fixture
def own(checkpoint, data, tmp_path):
    """Arguments of a run of a few seconds, but for the output folder."""
    return [
        "--model", checkpoint, "--id", data / "id", "--ood", data / "ood", "--scores", "neglabel,mcm",
        "--num-bootstrap", "0", "--batch-size", "4", "--store", tmp_path / "store",
    ]  # fmt: skip


@pytest.fixture
def shards(own):
    """The same with 480 ID images, whose features lie in two shards."""
    return ["embedded#test" if str(part).endswith("/id") else part for part in own]


def test_own_images_give_a_report(own, data, tmp_path):
    done = finished(call(*own, "--output-dir", tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*FILES, "pictures"}
    results, samples = read_run(tmp_path / "run")
    assert results["labels"] == list(NAMES) and results["num_negatives"] == 4 and results["adapter"] is None
    assert [(report["name"], report["count"]) for report in results["sets"]] == [
        (str(data / "id"), 48),
        (str(data / "ood"), 12),
    ]
    assert {row["score"] for row in results["detection"]} == {"neglabel", "mcm"} and samples.num_rows == 60
    assert results["environment"]["num_processes"] == 1
    assert "report.html" in done.stdout and "AUROC" in done.stdout
    # What is there is not written over unasked.
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert "holds an earlier run: give --overwrite" in refused(call(*own, "--output-dir", tmp_path / "run"))
    assert (tmp_path / "run" / "results.json").read_bytes() == before


@pytest.mark.slow
def test_each_adapter_has_a_run_of_its_own(own, checkpoint, tmp_path):
    for number, name in enumerate(("one", "two")):
        model = OODCLIPForImageClassification.from_pretrained(checkpoint)
        target = f"vision_model.encoder.layers.{number}.self_attn.q_proj"
        model.add_adapter(LoraConfig(target_modules=[target], init_lora_weights=False))
        model.save_pretrained(tmp_path / name)
    adapters = ["--adapter", tmp_path / "one", "--adapter", tmp_path / "two"]
    finished(call(*own[2:], *adapters, "--output-dir", tmp_path / "runs"))
    runs = [read_run(tmp_path / "runs" / name) for name in ("one", "two")]
    assert [results["adapter"] for results, _ in runs] == [str(tmp_path / name) for name in ("one", "two")]
    assert not runs[0][1]["score:mcm"].equals(runs[1][1]["score:mcm"])
    # The same base, named; in place of the other adapter's run.
    finished(call(*own, *adapters[:2], "--scores", "mcm", "--output-dir", tmp_path / "runs" / "two", "--overwrite"))
    results, samples = read_run(tmp_path / "runs" / "two")
    assert {row["score"] for row in results["detection"]} == {"mcm"}
    assert samples["score:mcm"].equals(runs[0][1]["score:mcm"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "pockt"], "Did you mean 'pocket'"),
        (["--benchmark", "pocket", "--id", "embedded"], "one of the two"),
        ([], "one of the two"),
        (["--id", "embedded#test"], "nothing to compare"),
        (["--id", "nowhere/at/all", "--ood", "embedded:far_digits"], "nowhere/at/all"),
        (["--benchmark", "cifar10", "--root", "nowhere"], "nowhere"),
        (["--benchmark", "pocket", "--scores", "mcn"], "Did you mean 'mcm'"),
        (["--benchmark", "pocket", "--scores", ","], "at least one score"),
        (["--benchmark", "pocket", "--id-filter", "right"], "ID filter"),
        (["--benchmark", "pocket", "--target-tpr", "95"], "between 0 and 1"),
        (["--benchmark", "pocket", "--model", "/nowhere"], "/nowhere is neither a folder here nor a name"),
        (["--benchmark", "pocket", "--adapter", "/nowhere"], "/nowhere is neither a folder here nor a name"),
        (["--benchmark", "pocket", "--adapter", "a/best", "--adapter", "b/best"], "called 'best'"),
        (["--benchmark", "pocket", "--output-dir", PROGRAM], "cannot be made"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, message, tmp_path):
    given = ["--negatives", "none", "--output-dir", tmp_path / "run", *arguments]
    assert message in refused(call(*given))
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_a_program_that_is_refused_ends_with_one_line(tmp_path):
    assert "Unknown benchmark" in refused(run("--benchmark", "nope", "--output-dir", tmp_path))
    assert run("--no-such-option").returncode == 2


def contents(folder):
    """What a run found, less what differs from run to run."""
    results, samples = read_run(folder)
    for name in ("seconds", "environment"):
        results.pop(name)
    return results, samples


@pytest.mark.slow
def test_two_processes_find_what_one_finds(shards, tmp_path):
    alone = finished(run(*shards, "--output-dir", tmp_path / "one"))
    split = [*shards[:-1], tmp_path / "other_store"]
    done = finished(run(*split, "--output-dir", tmp_path / "two", launcher=two_processes()))
    assert json.loads((tmp_path / "two" / "results.json").read_text())["environment"]["num_processes"] == 2
    (one, one_samples), (two, two_samples) = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two and one_samples.equals(two_samples) and len(one_samples) == 492
    # One of them speaks.
    assert done.stdout.count("AUROC") == alone.stdout.count("AUROC") > 0
    for name in ("tables.md", "detection.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_fail_together(tmp_path):
    arguments = ["--benchmark", "cifar10", "--root", tmp_path, "--output-dir", tmp_path / "run"]
    done = run(*arguments, launcher=two_processes())
    assert done.returncode != 0 and done.stderr.count("Error: The images of set") == 1


@pytest.mark.slow
def test_a_killed_run_ends_the_same(shards, tmp_path):
    finished(run(*shards, "--output-dir", tmp_path / "whole"))
    again = [*shards[:-1], tmp_path / "store_of_killed", "--output-dir", tmp_path / "killed"]
    command = [str(part) for part in (sys.executable, PROGRAM, *again)]

    def has_features():
        return any((tmp_path / "store_of_killed").glob("*/shard-*.safetensors"))

    def has_samples():
        return (tmp_path / "killed" / "samples.parquet").exists()

    for ready in (has_features, has_samples):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as process:
            deadline = time.monotonic() + 120
            while process.poll() is None and not ready() and time.monotonic() < deadline:
                time.sleep(0.001)
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process.pid).send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL and ready()
        # A run counts once its results are there, and they come last.
        (tmp_path / "killed" / "results.json").unlink(missing_ok=True)
    finished(run(*again))
    (whole, whole_samples), (killed, killed_samples) = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole == killed and whole_samples.equals(killed_samples)
    assert pq.read_table(tmp_path / "killed" / "samples.parquet").num_rows == 492
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {*FILES, "pictures"}
