"""Checkpoints: bit for bit, whole or not at all, and never of another run."""

import copy
import subprocess
import sys

import pytest
import torch
from hf_oodclip.training.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint, seeded
from safetensors.torch import load_file, save_file

from hf_oodclip.errors import CheckpointError

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.3),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.7, 0.9)),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def checkpoint_at(step, value=1.0, optimizer=None, best=None):
    parameters = {"a.weight": torch.full((2, 3), value), "b": torch.tensor(value)}
    optimizer = {"state": {}, "param_groups": []} if optimizer is None else optimizer
    return Checkpoint(step, parameters, optimizer, {"history": [{"loss": 0.1 + value}]}, best or {})


def steps(parameters, optimizer, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for each in parameters:
            each.grad = torch.randn(each.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_go_on_bit_for_bit(name, tmp_path):
    parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.zeros(()))]
    optimizer = OPTIMIZERS[name](parameters)
    steps(parameters, optimizer, seed=1)
    named = {f"p{index}": each for index, each in enumerate(parameters)}
    path = save_checkpoint(tmp_path, Checkpoint(3, named, optimizer.state_dict(), {}, {}), "d")
    before = copy.deepcopy(optimizer.state_dict())

    loaded = load_checkpoint(path, "d")
    again = [torch.nn.Parameter(loaded.parameters[f"p{index}"]) for index in range(2)]
    other = OPTIMIZERS[name](again)
    other.load_state_dict(loaded.optimizer)
    after = other.state_dict()
    assert after["state"].keys() == before["state"].keys()
    for index, state in before["state"].items():
        assert state.keys() == after["state"][index].keys()
        for key, value in state.items():
            found = after["state"][index][key]
            if torch.is_tensor(value):
                assert found.dtype == value.dtype
                assert torch.equal(found, value)
            else:
                assert found == value
    steps(parameters, optimizer, seed=2)
    steps(again, other, seed=2)
    assert all(torch.equal(one, two) for one, two in zip(parameters, again, strict=True))


def test_everything_comes_back(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3).T
    written = Checkpoint(
        7,
        {"x": shared, "half": torch.tensor([1.5], dtype=torch.bfloat16)},
        {"state": {}, "param_groups": [{"lr": 0.1 + 0.2, "params": [0]}]},
        {"history": [{"loss": 1 / 3}], "best_value": None},
        {"x": shared},
    )
    loaded = load_checkpoint(save_checkpoint(tmp_path, written, "d"), "d")
    assert (loaded.step, loaded.progress) == (7, written.progress)
    assert loaded.optimizer["param_groups"] == [{"lr": 0.1 + 0.2, "params": [0]}]
    assert torch.equal(loaded.parameters["x"], shared)
    assert torch.equal(loaded.best["x"], shared)
    assert loaded.parameters["half"].dtype == torch.bfloat16


def test_only_the_latest_two_are_kept(tmp_path):
    (tmp_path / ".step-00000001.safetensors.1.partial").write_bytes(b"left by a kill")
    (tmp_path / "notes.txt").write_text("mine")
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, checkpoint_at(step), "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "step-00000010.safetensors",
        "step-00000011.safetensors",
    ]
    assert latest_checkpoint(tmp_path, "d").step == 11


def test_there_is_none(tmp_path, warned):
    assert latest_checkpoint(tmp_path, "d") is None
    assert latest_checkpoint(tmp_path / "missing", "d") is None
    assert warned == []


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(b"\xff" * 500),
    "one bit": flip_a_bit,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another file": lambda path: save_file({"x": torch.ones(1)}, path),
    "no record": lambda path: save_file(load_file(path), path, metadata={"checksum": "x"}),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_newest_is_passed_over_with_a_warning(damage, tmp_path, warned):
    save_checkpoint(tmp_path, checkpoint_at(1, 1.0), "d")
    DAMAGES[damage](save_checkpoint(tmp_path, checkpoint_at(2, 2.0), "d"))
    found = latest_checkpoint(tmp_path, "d")
    assert (found.step, found.parameters["b"].item()) == (1, 1.0)
    assert len(warned) == 1
    assert "step-00000002.safetensors cannot be read" in warned[0]


def test_another_recipe_is_refused(tmp_path):
    save_checkpoint(tmp_path, checkpoint_at(1), "d")
    with pytest.raises(CheckpointError, match=r"step-00000001.*another recipe.*--overwrite"):
        latest_checkpoint(tmp_path, "e")


def test_a_kill_while_writing_leaves_the_one_before(tmp_path):
    save_checkpoint(tmp_path, checkpoint_at(1), "d")
    code = f"""
import os, pathlib, torch
from hf_oodclip.training import checkpoints
os.fsync = lambda file: os.kill(os.getpid(), 9)
plain = {{"state": {{}}, "param_groups": []}}
point = checkpoints.Checkpoint(2, {{"b": torch.ones(1000)}}, plain, {{}}, {{}})
checkpoints.save_checkpoint(pathlib.Path({str(tmp_path)!r}), point, "d")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert [path.suffix for path in tmp_path.iterdir()].count(".partial") == 1
    assert latest_checkpoint(tmp_path, "d").step == 1
    save_checkpoint(tmp_path, checkpoint_at(2), "d")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".safetensors"] * 2


def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_at(1), "d")

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_oodclip.training.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        save_checkpoint(tmp_path, checkpoint_at(2), "d")
    assert latest_checkpoint(tmp_path, "d").step == 1


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with seeded(5):
        first = torch.rand(3)
    with pytest.raises(KeyError), seeded(5):
        assert torch.equal(torch.rand(3), first)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
