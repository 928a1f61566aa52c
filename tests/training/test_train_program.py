"""The training program from outside: what it says, and that neither kill -9 nor a second process changes results."""

import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hf_oodclip.training.recipe import Recipe
from hf_oodclip.training.train import main
from safetensors.torch import load_file
from small_runs import CLASSES, words_file

PROGRAM = Path(__file__).parents[2] / "training" / "train.py"
MODULE = [sys.executable, "-m", "hf_oodclip.training.train"]
SMALL = {
    "classes": ",".join(CLASSES),
    "dataset": "embedded",
    "split": "calibration",
    "shots": 1,
    "num-crops": 4,
    "selected_crops": 2,
    "num-negatives": "none",
    "epochs": 1,
    "tracker": "none",
    "eval-limit": 8,
}


def arguments(recipe, output, base, **fields):
    given = {**SMALL, "base": base, **fields}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["--recipe", recipe, "--output-dir", str(output), *options]


def run(command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--recipe", "krntf"], r"Unknown recipe 'krntf'\. Did you mean 'krnft'\?"),
        (["--leraning-rate", "1"], r"'leraning_rate'\. Did you mean 'learning_rate'\?"),
        (["--leraning-rate=1"], r"'leraning_rate'\. Did you mean 'learning_rate'\?"),
        (["--adapter.init-sdt", "1"], r"Did you mean 'init_std'\?"),
        (["--losses.emb.weight", "1"], r"Did you mean 'ebm'\?"),
        (["--losses.ebm.weight"], r"--losses\.ebm\.weight needs a value"),
        (["--epochs", "many"], r"epochs must be int, got 'many'"),
        (["stray"], r"Unknown field of a recipe 'stray'"),
        (["--dataset", "no/such/folder"], r"'no/such/folder' does not exist"),
        (["--split", "calibrate"], r"Did you mean 'calibration'\?"),
        (["--base", "/no/such/base"], r"/no/such/base"),
        (["--mixed-precision", "bf61"], r"Did you mean 'bf16'\?"),
        (["--tracker", "tensorbored"], r"tensorbored"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(given, message, tmp_path, capsys):
    before = torch.get_rng_state()
    code = main([*arguments("ssf", tmp_path / "out", "pocket"), "--store", str(tmp_path / "store"), *given])
    captured = capsys.readouterr()
    assert code == 1
    errors = captured.err.strip()
    assert re.search(message, errors)
    assert errors.startswith("Error: ")
    assert "Traceback" not in errors
    assert not (tmp_path / "store").exists()
    assert torch.equal(torch.get_rng_state(), before)


def test_program_options_are_checked_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--output-dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--recipe" in capsys.readouterr().err


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for each in dataclasses.fields(Recipe):
        assert (f"--{each.name}" in shown) == (each.name not in ("name", "description")), each.name
    assert "krnft-pocket" in shown
    assert "--learning-rate" in shown


def test_a_run_says_what_it_does(tiny_clip, tmp_path, capsys):
    fields = {"adapter.hidden_size": 3, "losses.knowledge-regularization.weight": "1e1"}
    fields["negatives"] = words_file(tmp_path)
    assert main(arguments("krnft", tmp_path / "out", tiny_clip, **fields)) == 0
    captured = capsys.readouterr()
    assert "4 images of 4 classes from embedded, split calibration" in captured.out
    assert "8 negatives" in captured.out
    assert re.search(r"ID accuracy\D+\d+\.\d\D+\d+\.\d", captured.out)
    assert f'model="{tmp_path / "out"}"' in captured.out
    bars = captured.err.replace("\r", "\n")
    assert "training: 100%" in bars
    assert "4/4" in bars
    assert "Generating" not in bars
    assert "Loading" not in bars
    assert "Writing" not in bars
    saved = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "hidden_size: 3" in saved
    assert "weight: 10.0" in saved
    # The saved recipe is one to start from.
    command = ["--recipe", str(tmp_path / "out" / "recipe.yaml"), "--output-dir", str(tmp_path / "again"), "--quiet"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_from_a_shell(tmp_path):
    helped = run([*MODULE, "--help"])
    assert helped.returncode == 0
    assert "--learning-rate" in helped.stdout
    wrong = arguments("krnft", tmp_path / "out", "pocket", **{"leraning-rate": 1})
    for command in (MODULE, ["accelerate", "launch", "--quiet", "--cpu", PROGRAM]):
        done = run([*command, *wrong], cwd=tmp_path)
        assert done.returncode == 1
        assert "Did you mean 'learning_rate'?" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


# ---- kill -9, and two processes -----------------------------------------------------------------


def long_arguments(folder, base):
    """A run of some seconds: 80 images in 10 shards, 120 steps, a checkpoint every 5."""
    fields = {
        "classes": "none",
        "shots": 4,
        "num-crops": 96,
        "selected_crops": 8,
        "negatives": words_file(folder),
        "epochs": 3,
        "batch-size": 2,
        "learning-rate": 0.01,
        "eval-every": 1,
        "ood-datasets": "embedded:far_digits",
        "best-metric": "auroc",
        "calibration-dataset": "rest",
        "checkpoint-every": 5,
    }
    return [*arguments("krnft", folder / "out", base, **fields), "--store", str(folder / "store")]


def two_processes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--quiet --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    return ["accelerate", "launch", *options.split(), "--main_process_port", port, PROGRAM]


ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def shards(folder):
    """How many shards there are; those of the crops come first."""
    return len(list((folder / "store").glob("*/shard-*.safetensors")))


def last_step(folder):
    steps = [int(path.stem.partition("-")[2]) for path in (folder / "out" / "checkpoints").glob("step-*.safetensors")]
    return max(steps, default=0)


def has_shards(folder, count):
    return shards(folder) >= count


def has_step(folder, step):
    return last_step(folder) >= step


def kill_when(command, ready, delay):
    """Start a run and kill -9 it with all its processes a moment after `ready()`."""
    command = list(map(str, command))
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and not ready() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        errors = process.stderr.read() if process.stderr else ""
        assert process.wait() == -signal.SIGKILL, errors
    assert ready(), errors


def finish(command):
    done = run(command, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done


def metrics_of(folder):
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    for name in ("seconds", "training_seconds"):
        metrics.pop(name)
    metrics["environment"].pop("command")
    return metrics


def adapter_of(folder):
    return load_file(folder / "out" / "adapter_model.safetensors")


def features_of(folder):
    """All stored features, by shard."""
    return {str(path.relative_to(folder / "store")): path for path in (folder / "store").glob("*/shard-*.safetensors")}


@pytest.fixture(scope="module")
def uninterrupted(tiny_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish([*MODULE, *long_arguments(folder, tiny_clip)])
    assert metrics_of(folder)["num_steps"] == 120
    return folder


def kill_six_times(launcher, folder, base, seed):
    """Kill a run three times while it makes features, three times while it trains, and let it end."""
    moments = random.Random(seed)
    for count in sorted(moments.sample(range(1, 8), 3)):
        ready = partial(has_shards, folder, count)
        kill_when([*launcher(), *long_arguments(folder, base)], ready, moments.uniform(0, 0.1))
    assert shards(folder) < 10
    assert last_step(folder) == 0
    for count in sorted(moments.sample(range(1, 22), 3)):
        ready = partial(has_step, folder, 5 * count)
        kill_when([*launcher(), *long_arguments(folder, base), "--resume"], ready, moments.uniform(0, 0.03))
    assert 5 <= last_step(folder) < 120
    assert not (folder / "out" / "metrics.json").exists()
    return finish([*launcher(), *long_arguments(folder, base), "--resume"])


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(uninterrupted, tiny_clip, tmp_path):
    kill_six_times(lambda: MODULE, tmp_path, tiny_clip, seed=1)
    for name in ("adapter_model.safetensors", "ood_head.safetensors", "ood_head.json"):
        assert (tmp_path / "out" / name).read_bytes() == (uninterrupted / "out" / name).read_bytes(), name
    assert metrics_of(tmp_path) == metrics_of(uninterrupted)


@pytest.mark.slow
def test_a_finished_run_resumed_stays_as_it_is(uninterrupted, tiny_clip):
    before = (uninterrupted / "out" / "adapter_model.safetensors").read_bytes()
    metrics = metrics_of(uninterrupted)
    finish([*MODULE, *long_arguments(uninterrupted, tiny_clip), "--resume"])
    assert (uninterrupted / "out" / "adapter_model.safetensors").read_bytes() == before
    assert metrics_of(uninterrupted) == metrics


def close(found, expected, tolerance=1e-6):
    """Whether two structures of plain values are equal but for rounding."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(expected, float):
        # Measured on 8 images: a share of them is equal, or far off.
        return found == pytest.approx(expected, rel=1e-4, abs=tolerance)
    return found == expected


def same_run(found, expected):
    for name, value in adapter_of(expected).items():
        torch.testing.assert_close(adapter_of(found)[name], value, rtol=0, atol=1e-6)
    metrics, other = metrics_of(found), metrics_of(expected)
    metrics.pop("num_processes"), other.pop("num_processes")
    for name in other:
        assert close(metrics[name], other[name]), name


@pytest.mark.slow
def test_two_processes_do_what_one_does(uninterrupted, tiny_clip, tmp_path):
    finish([*two_processes(), *long_arguments(tmp_path, tiny_clip)])
    assert metrics_of(tmp_path)["num_processes"] == 2
    assert metrics_of(uninterrupted)["num_processes"] == 1
    mine, theirs = features_of(tmp_path), features_of(uninterrupted)
    # The same images under the same key, and the same bits of them.
    assert mine.keys() == theirs.keys()
    assert len(mine) >= 12
    for name, path in mine.items():
        assert path.read_bytes() == theirs[name].read_bytes(), name
    same_run(tmp_path, uninterrupted)


@pytest.mark.slow
def test_two_killed_processes_end_the_same(uninterrupted, tiny_clip, tmp_path):
    kill_six_times(two_processes, tmp_path, tiny_clip, seed=2)
    assert metrics_of(tmp_path)["num_processes"] == 2
    same_run(tmp_path, uninterrupted)
