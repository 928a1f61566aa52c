"""What goes to a Hub and what stays, and the base that an adapter names on the way."""

import json
import re

import pytest
from peft import LoraConfig
from safetensors.torch import load_file
from test_push_and_load import ADAPTER_FILES, ON_THE_HUB

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.errors import CheckpointError, HubError
from hf_oodclip.hub import push_folder


def test_only_what_is_needed_goes(client, hub, use, saved, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (saved[0] / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "checkpoints").mkdir()
    for name in ("metrics.json", "checkpoints/step-1.safetensors", "training_args.bin", "secret.txt", "curve.png"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n![](curve.png) ![out](../outside.png) ![web](https://x.org/a.png) ![no](no.png)\n"
    )
    client(use + f"push_folder({str(folder)!r}, 'alice/run', revision='branch')")
    repo = hub.repos["alice/run"]
    assert set(repo.at("branch").files) == ADAPTER_FILES | {"README.md", "curve.png"}
    assert repo.files == {}


@pytest.mark.parametrize("files", [{}, {"config.json": "{}", "adapter_config.json": "{}"}], ids=["neither", "both"])
def test_a_folder_that_is_not_one_thing(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(HubError, match=r"holds (both|neither).*config\.json, adapter_config\.json"):
        push_folder(tmp_path, "alice/things")


def test_a_folder_without_weights(tmp_path, saved):
    (tmp_path / "adapter_config.json").write_bytes((saved[0] / "adapter" / "adapter_config.json").read_bytes())
    with pytest.raises(HubError, match="no weights in safetensors"):
        push_folder(tmp_path, "alice/things")


@pytest.mark.slow
def test_a_base_that_only_this_machine_has(client, hub, use, tiny_clip):
    kind, message, config = client(
        use
        + ON_THE_HUB
        + f"""
model = train({tiny_clip!r})
found = refused(lambda: model.push_to_hub("alice/adapter"))
push_folder({tiny_clip!r}, "alice/base")
model.push_to_hub("alice/adapter", base="alice/base")
numbers(Model.from_pretrained("alice/adapter"))
answer([*found, "alice/adapter"])
"""
    )
    assert kind == "HubError"
    assert re.search(r"which nobody else has: push the base first.*base='owner/name'", message)
    assert json.loads(hub.repos[config].files["adapter_config.json"])["base_model_name_or_path"] == "alice/base"


def test_an_adapter_from_another_machine(saved, tiny_clip, tmp_path):
    path = tmp_path / "adapter_config.json"
    for each in (saved[0] / "adapter").iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    content = json.loads(path.read_text())
    # The pocket CLIP of another installation is ours too.
    other = "/opt/python/site-packages/hf_oodclip/assets/pocket_clip"
    path.write_text(json.dumps({**content, "base_model_name_or_path": other}))
    assert OODCLIPForImageClassification.from_pretrained(tmp_path).negatives.texts[0] == "gravel"
    path.write_text(json.dumps({**content, "base_model_name_or_path": "/home/bob/clip"}))
    with pytest.raises(CheckpointError, match=r"for /home/bob/clip, which does not exist here: pass base="):
        OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert OODCLIPForImageClassification.from_pretrained(tmp_path, base="pocket").labels
    with pytest.raises(CheckpointError, match="is for adapters"):
        OODCLIPForImageClassification.from_pretrained(tiny_clip, base="pocket")


def test_lora_names_the_commit_of_its_base_too(make_model, tmp_path):
    model = make_model()
    model._base_revision = "a" * 40
    model.add_adapter(LoraConfig(target_modules=r".*vision_model.*q_proj", r=1))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["revision"] == "a" * 40
    assert load_file(tmp_path / "adapter_model.safetensors")
