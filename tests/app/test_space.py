"""The Space that is written runs, and the Hub gets the very same folder."""

import importlib
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import hf_oodclip
from hf_oodclip.app import write_space
from hf_oodclip.app.inputs import AppError
from hf_oodclip.cli import app
from hf_oodclip.errors import HubError

TESTS = Path(__file__).parents[1]


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_space_says_what_it_needs(tmp_path):
    folder = write_space(tmp_path / "space", "me/clip", ["me/adapter"], ["cat", 'do"g'], "neglabel", "energy")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    described = front_matter(folder)
    assert (described["sdk"], described["app_file"]) == ("gradio", "app.py")
    assert described["sdk_version"] == importlib.import_module("gradio").__version__
    assert described["models"] == ["me/clip", "me/adapter"]
    assert len(described["short_description"]) <= 60
    assert (folder / "requirements.txt").read_text() == f"hf_oodclip[demo]=={hf_oodclip.__version__}\n"
    code = (folder / "app.py").read_text()
    asked = {}
    program = code.replace("from hf_oodclip.app import launch", "")
    exec(program, {"__name__": "__main__", "launch": lambda **given: asked.update(given)})
    assert asked == {
        "model": "me/clip", "adapters": ["me/adapter"], "labels": ["cat", 'do"g'], "negatives": "neglabel",
        "score": "energy",
    }  # fmt: skip


def test_what_is_local_goes_along_without_pickles(tmp_path, words):
    local = tmp_path / "adapter"
    (local / "checkpoint-10").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "checkpoint-10/x"):
        (local / name).write_text("{}")
    folder = write_space(tmp_path / "space", None, [str(local)], negatives=words)
    assert sorted(path.name for path in (folder / "adapters/1-adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors"
    ]  # fmt: skip
    assert "adapters=['adapters/1-adapter'], negatives='negatives-eight.txt'" in (folder / "app.py").read_text()
    assert (folder / "negatives-eight.txt").read_text() == Path(words).read_text()
    assert str(tmp_path) not in (folder / "app.py").read_text()
    assert "models" not in front_matter(folder)


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(AppError, match="not an empty folder"):
        write_space(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_written_app_opens(tmp_path, words, running):
    output = tmp_path / "space"
    done = CliRunner().invoke(
        app, ["push-space", "me/demo", "--output", str(output), "--labels", "acorn,desk", "--negatives", words]
    )
    assert done.exit_code == 0, done.output
    with running([sys.executable, "app.py"], output) as address:
        config = json.loads(urllib.request.urlopen(address + "config", timeout=30).read())
    assert config["title"] == "hf_oodclip"
    (labels,) = [each["props"] for each in config["components"] if each["props"].get("elem_id") == "labels"]
    assert labels["value"] == "acorn\ndesk"


PUSH = """
from hf_oodclip.app import push_space
from hf_oodclip.errors import HubError
try:
    print("PUSHED", push_space("alice/demo", private=True, labels=["acorn", "desk"], requirement="./here.whl"))
except HubError as error:
    print("REFUSED", error)
"""


def test_pushing_to_a_hub(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "hub"))
    running_hub = importlib.import_module("server").running_hub
    with running_hub() as (store, address):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"
        }  # fmt: skip

        def push(token):
            done = subprocess.run(
                [sys.executable, "-c", PUSH], capture_output=True, text=True, timeout=120,
                env={**environment, "HF_TOKEN": token},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "REFUSED The Space 'alice/demo' could not be pushed" in push("hf_wrong")
        assert f"PUSHED {address}/spaces/alice/demo" in push("hf_alice")
        repo = store.repos["spaces/alice/demo"]
        files = {name: blob.content.decode() for name, blob in repo.at("main").files.items()}
        assert repo.private
    written = write_space(tmp_path / "space", labels=["acorn", "desk"], requirement="./here.whl")
    for path in written.iterdir():
        assert files[path.name] == path.read_text(), path.name


def test_push_without_network_names_the_way_out(monkeypatch):
    from hf_oodclip.app import push_space

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(HubError, match="--output"):
        push_space("me/demo")


def test_without_gradio_the_extra_is_named(run_python):
    code = """
import sys
sys.modules["gradio"] = None
from hf_oodclip.app import launch
from hf_oodclip.errors import OODCLIPError
try:
    launch()
except OODCLIPError as error:
    print(error)
"""
    assert 'pip install "hf_oodclip[demo]"' in run_python(code)
