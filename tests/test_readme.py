"""Every code block of the README runs as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import hf_oodclip

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
LABELS = ("acorn", "tabby cat", "lawn mower")


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, id_dataset, id_labels):
    """The reader's folder: some photos, and ID images to calibrate on."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("photos", "id_photos"):
        (folder / name).mkdir()
    for label in LABELS:
        rows = [i for i, row in enumerate(id_dataset["label"]) if id_labels[row] == label]
        id_dataset[rows[-1]]["image"].save(folder / "photos" / f"{label.split()[0]}.jpg")
        for index in rows[:16]:
            id_dataset[index]["image"].save(folder / "id_photos" / f"{label.split()[0]}-{index}.jpg")
    return folder


@pytest.fixture(scope="module")
def trained(workplace):
    """The adapter of the README's training command, which a test makes smaller."""
    (workplace / "words.txt").write_text("gravel\nfog\ntax law\nhandwriting\n")
    arguments = command_lines("accelerate")[0][4:]
    smaller = ["--negatives", "words.txt", "--num-negatives", "none", "--num-crops", "4", "--selected-crops", "2"]
    program = [sys.executable, "-m", "hf_oodclip.training.train", *arguments, *smaller]
    done = subprocess.run(program, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workplace / "krnft-adapter"


def test_the_training_command_is_the_program(trained):
    launcher, launch, cpu, program = command_lines("accelerate")[0][:4]
    assert (launcher, launch, cpu) == ("accelerate", "launch", "--cpu")
    assert (ROOT / program).is_file()
    assert {"adapter_model.safetensors", "metrics.json", "learning_curve.png"} <= {e.name for e in trained.iterdir()}


def test_there_is_a_block_of_each_kind():
    assert len(blocks("python")) >= 4
    assert len(blocks("bash")) >= 1
    assert blocks("")[0].splitlines()[0].startswith("make demo")


def test_the_first_block_names_make_targets():
    for line in blocks("")[0].splitlines():
        command = shlex.split(line, comments=True)
        assert command[0] == "make"
        done = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_python_blocks_run_in_order(workplace, trained, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    namespace = {"id_images": sorted(str(path) for path in Path("id_photos").glob("*.jpg"))}
    try:
        for text in blocks("python"):
            # With a file name, so that dataclasses find their module.
            exec(compile(text, "README.md", "exec"), namespace)
    finally:
        hf_oodclip.scores._registered.pop("margin", None)
    printed = capsys.readouterr().out
    assert "'label': 'acorn'" in printed
    assert namespace["detector"]("photos/acorn.jpg")["is_ood"] in (True, False)
    assert (workplace / "my-detector" / "negatives.json").is_file()


def command_lines(program):
    lines = (shlex.split(line) for text in blocks("bash") for line in text.splitlines())
    return [command for command in lines if command[0] == program]


def test_command_lines_run_in_order(workplace):
    assert {shlex.split(line)[0] for text in blocks("bash") for line in text.splitlines()} == {"oodclip", "accelerate"}
    for command in command_lines("oodclip"):
        done = subprocess.run(
            [sys.executable, "-m", "hf_oodclip", *command[1:]], cwd=workplace, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (workplace / "verdicts.parquet").is_file()


def test_every_score_and_limit_is_listed():
    for name in hf_oodclip.scores.SCORES:
        assert f"| `{name}` |" in README


def test_the_demo_table_has_every_score_under_every_set():
    table = README.split("<!-- demo table -->\n")[1].split("<!-- end of demo table -->")[0]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    scores = [*hf_oodclip.scores.SCORES, "delta_energy(temperature=1.0)"]
    sets = ("near: held-out classes", "far: textures", "far: clothing", "far: digits")
    assert names == ["score", *(name for each in sets for name in (f"**{each}**", *scores))]


def test_links_and_files_named_in_the_readme_exist():
    for name in ("NOTICE", "Makefile", "LICENSE", "CHANGELOG.md"):
        assert (ROOT / name).is_file()


def test_the_lines_without_torch_are_those_that_are_tested():
    import hf_oodclip.export

    lines = re.search(r"```python\n(.*?)```", hf_oodclip.export.__doc__, flags=re.DOTALL)
    assert lines.group(1) in blocks("")
