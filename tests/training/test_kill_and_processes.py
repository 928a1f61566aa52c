"""Neither kill -9 nor a second process changes what the training program leaves."""

import json
import os
import random
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest
import torch
from program_runs import MODULE, PROGRAM, arguments, run
from safetensors.torch import load_file
from small_runs import words_file


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
        "learning-rate": 0.001,
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
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 240
        while process.poll() is None and not ready() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is None:
            # Launcher and workers, which are in groups of their own.
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(signal.SIGKILL)
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
