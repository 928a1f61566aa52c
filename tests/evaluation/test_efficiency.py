"""What adapters cost: operations by formula, parameters and training time from their folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from hf_oodclip.evaluation.efficiency import describe_adapter, main, measure
from torch import nn
from typer.testing import CliRunner

from hf_oodclip import NFTConfig, OODCLIPForImageClassification, TaskResidualConfig
from hf_oodclip.errors import AdapterError, LabelError, OODCLIPError, RunError

PROGRAM = Path(__file__).parents[2] / "evaluation" / "efficiency.py"
NAMES, WORDS = ("acorn", "desk", "police van", "tabby cat"), ("gravel", "fog", "tax law", "handwriting", "number")
# The tiny CLIP's.
WIDTH, MLP, LAYERS, IMAGE, PATCH, DIM = 32, 64, 2, 32, 8, 24
HIDDEN = 6


@pytest.fixture(scope="module")
def folder(tiny_clip, tmp_path_factory):
    """Folders of adapters, one of them with the record of its training."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in {"maps": NFTConfig(hidden_size=HIDDEN), "residual": TaskResidualConfig()}.items():
        model = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES, negatives=WORDS)
        model.add_adapter(config)
        model.save_pretrained(folder / name)
    metrics = {"training_seconds": 12.5, "num_images": 16, "num_steps": 8, "environment": {"machine": {"threads": 2}}}
    (folder / "maps" / "metrics.json").write_text(json.dumps(metrics))
    return folder


def tower_flops():
    """Two a multiplication, of a vision transformer's matrix products, by hand."""
    patches = (IMAGE // PATCH) ** 2
    tokens = patches + 1
    layer = 4 * 2 * tokens * WIDTH * WIDTH + 2 * 2 * tokens * tokens * WIDTH + 2 * 2 * tokens * WIDTH * MLP
    return 2 * patches * (3 * PATCH * PATCH) * WIDTH + LAYERS * layer + 2 * WIDTH * DIM


def test_operations_are_those_of_the_formula(tiny_clip, folder):
    plain = measure(tiny_clip, None, str(folder / "maps"), batch_size=3, rounds=1)
    tuned = measure(None, str(folder / "maps"), batch_size=3, rounds=1)
    classes = len(NAMES) + len(WORDS)
    assert (plain["num_labels"], plain["num_negatives"]) == (tuned["num_labels"], tuned["num_negatives"]) == (4, 5)
    assert plain["tower_flops"] == tuned["tower_flops"] == tower_flops()
    assert plain["head_flops"] == 2 * classes * DIM
    # Four small networks of two layers, and three products with the texts: cosines and two for the norms.
    assert tuned["head_flops"] == 4 * 2 * 2 * DIM * HIDDEN + 3 * 2 * classes * DIM
    for found in (plain, tuned):
        assert found["tower_seconds"] > 0 and found["head_seconds"] > 0
        assert found["score"] == "neglabel" and found["peak_memory_bytes"] > 1e7


def test_attention_and_convolution_are_counted_whatever_their_kernel(tiny_clip):
    """The counter against hooks on every layer, so that the formula above does not share its mistakes."""
    model = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=NAMES).eval()
    counted = []

    def count(module, inputs, output):
        shape = module.weight.shape
        # Each output element takes as many products as there are weights an output channel.
        counted.append(2 * output.numel() * shape[1:].numel())

    vision = [*model.clip.vision_model.modules(), model.clip.visual_projection]
    for module in vision:
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.encode(torch.zeros(1, 3, IMAGE, IMAGE), [model.score])
    tokens = (IMAGE // PATCH) ** 2 + 1
    assert sum(counted) + LAYERS * 4 * tokens * tokens * WIDTH == tower_flops()


def test_an_adapter_is_described_by_its_folder(folder, tmp_path):
    found = describe_adapter(str(folder / "maps"))
    # Vectors and networks, for labels and for negatives: of scale and of shift.
    networks = DIM * HIDDEN + HIDDEN + HIDDEN * DIM + DIM
    assert found["parameters"] == 2 * 2 * (DIM + networks)
    assert found["file_bytes"] == (folder / "maps" / "adapter_model.safetensors").stat().st_size
    assert (found["training_seconds"], found["num_images"], found["training_machine"]) == (12.5, 16, {"threads": 2})
    assert describe_adapter(str(folder / "residual"))["training_seconds"] is None
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError, match="is damaged"):
        describe_adapter(str(tmp_path))


def test_words_take_the_place_of_classes(tiny_clip, folder):
    found = measure(tiny_clip, str(folder / "maps"), None, 7, 3, batch_size=2, rounds=1)
    assert (found["num_labels"], found["num_negatives"]) == (7, 3)
    with pytest.raises(AdapterError, match="class-specific"):
        measure(tiny_clip, str(folder / "residual"), None, 7, 3, rounds=1)
    with pytest.raises(RunError, match="English nouns"):
        measure(tiny_clip, None, None, 10**6, rounds=1)
    with pytest.raises(OODCLIPError, match="nothing"):
        measure(str(folder / "nothing"), None, None, 7, rounds=1)
    with pytest.raises(LabelError):
        measure(tiny_clip, None, rounds=1)


@pytest.mark.slow
def test_program_writes_a_row_without_adapter_and_one_each(folder, tmp_path):
    output = tmp_path / "out" / "efficiency.json"
    arguments = ["--adapter", folder / "maps", "--adapter", folder / "residual", "--batch-size", 2, "--rounds", 1]
    command = [sys.executable, PROGRAM, *(str(part) for part in arguments), "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert [row["name"] for row in result["rows"]] == ["no adapter", "maps", "residual"]
    assert [row["num_labels"] for row in result["rows"]] == [4, 4, 4]
    assert result["rows"][0]["parameters"] == 0 and result["environment"]["versions"]["torch"]
    table = output.with_suffix(".md").read_text()
    assert table.strip() in done.stdout and "12.5" in table and "not recorded" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "pocket"], "Give --adapter, or --base with --num-labels"),
        (["--adapter", "x", "--num-negatives", "5"], "goes with --num-labels"),
        (["--base", "pocket", "--num-labels", "3", "--device", "cuda:99"], "cuda"),
    ],
)
def test_program_asks_for_what_it_lacks(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and message in done.stderr
