"""The training program from outside: what it says, and how it ends."""

import dataclasses
import re

import pytest
import torch
from hf_oodclip.training.recipe import Recipe
from hf_oodclip.training.train import main
from program_runs import MODULE, PROGRAM, arguments, run
from small_runs import words_file


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
    assert "1/1" in bars
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
