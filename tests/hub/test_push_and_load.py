"""Full models and adapters pushed to a Hub by the real client, and loaded from it in every way."""

import json
import re

import pytest

FULL_FILES = {
    "config.json",
    "model.safetensors",
    "negatives.json",
    "oodclip_stub.py",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
ADAPTER_FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "ood_head.json",
    "ood_head.safetensors",
    "ood_head_negatives.json",
}


@pytest.mark.slow
def test_a_full_model(client, hub, use, saved):
    folder, wanted = saved
    client(use + f"Model.from_pretrained({str(folder / 'full')!r}).push_to_hub('alice/full', private=True)")
    repo = hub.repos["alice/full"]
    assert set(repo.files) - {"README.md"} == FULL_FILES
    assert repo.private
    # One commit beside that of an empty repo: nobody ever saw half of it.
    assert len(repo.commits) == 2
    assert repo.files["oodclip_stub.py"].count(b"import") == 1
    found = client(
        use
        + """
loaded = pipeline(TASK, model="alice/full")
answer([
    numbers(loaded),
    numbers(pipeline(TASK, model="alice/full", trust_remote_code=False)),
    numbers(Model.from_pretrained("alice/full", token="hf_alice")),
    numbers(AutoModelForImageClassification.from_pretrained("alice/full")),
    [name for name in ("auto_map", "custom_pipelines") if name in loaded.model.config.to_dict()],
    [loaded.model.labels[:2], loaded.model.negatives.texts[:1], loaded.model.score.name],
])
""",
        cache="other",
    )
    assert found[:4] == [wanted["full"]] * 4
    assert found[4:] == [[], [["European fire salamander", found[5][0][1]], ["gravel"], "neglabel"]]


@pytest.mark.slow
def test_the_stub_serves_those_who_did_not_import_the_package(client, hub, use, saved, tmp_path):
    folder, wanted = saved
    client(use + f"push_folder({str(folder / 'full')!r}, 'alice/full')")
    image = re.search("IMAGE = '(.*)'", use)[1]
    load = "from transformers import pipeline\n"
    call = "pipeline('ood-image-classification', model='alice/full', trust_remote_code={})"
    found = client(
        load
        + f"""
loaded = {call.format(True)}
result = loaded({image!r})
loaded.save_pretrained({str(tmp_path / "again")!r})
answer([result, type(loaded.model).__module__, type(loaded).__module__])
""",
        cache="other",
    )
    assert {name: found[0].get(name) for name in wanted["full"]} == wanted["full"]
    assert found[1:] == ["hf_oodclip.modeling_oodclip", "hf_oodclip.pipeline_oodclip"]
    # Saving again copies no code.
    assert list((tmp_path / "again").glob("*.py")) == []
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    error = client(load + call.format(False), cache="other", fails=True)
    assert "trust_remote_code=True" in error.splitlines()[-1]
    missing = "import sys; sys.modules['hf_oodclip'] = None\n"
    code = "import importlib\nreal = importlib.import_module\n"
    code += "def absent(name, *args):\n if name == 'hf_oodclip': raise ImportError(\"No module named 'hf_oodclip'\")\n"
    code += " return real(name, *args)\nimportlib.import_module = absent\n"
    error = client(load + missing + code + call.format(True), cache="other", fails=True)
    assert "pip install hf_oodclip" in error.splitlines()[-1]


def test_an_adapter_of_the_pocket_clip(client, hub, use, saved):
    folder, wanted = saved
    client(use + f"push_folder({str(folder / 'adapter')!r}, 'alice/adapter')")
    files = hub.repos["alice/adapter"].files
    # PEFT left an empty form of a card there, with the path of the base in it.
    assert (folder / "adapter" / "README.md").is_file()
    assert set(files) == ADAPTER_FILES
    assert sum(map(len, files.values())) < 100_000
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("pocket", None)
    assert not any(b"assets/pocket_clip" in content for content in files.values())
    found = client(
        use
        + """
from peft import PeftModel
def plain(): return Model.from_pretrained(hf_oodclip.pocket_path())
added = plain()
added.load_adapter("alice/adapter")
named = plain()
named.load_adapter("alice/adapter", "mine", revision="main", token="hf_alice")
answer([
    numbers(Model.from_pretrained("alice/adapter")),
    numbers(added),
    numbers(named),
    numbers(PeftModel.from_pretrained(plain(), "alice/adapter").get_base_model()),
    numbers(pipeline(TASK, model="alice/adapter", config=hf_oodclip.pocket_path())),
    numbers(Model.from_pretrained("alice/adapter", base=hf_oodclip.pocket_path())),
])
""",
        cache="other",
    )
    assert found == [wanted["adapter"]] * 6


ON_THE_HUB = """
from hf_oodclip import NFTConfig
def train(base, seed=0):
    model = Model.from_pretrained(base, labels=["goldfish", "school bus"], negatives=["fog", "gravel"])
    model.add_adapter(NFTConfig(hidden_size=4))
    with torch.no_grad():
        for parameter in model.similarity.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.02)
    return model.eval()
"""


@pytest.mark.slow
def test_an_adapter_remembers_the_commit_of_its_base(client, hub, use, saved, tiny_clip):
    found = client(
        use
        + ON_THE_HUB
        + f"""
first = push_folder({tiny_clip!r}, "alice/base").rpartition("/")[2]
model = train("alice/base")
model.push_to_hub("alice/adapter", revision="v1")
wanted = numbers(model)
train("alice/base", 1).push_to_hub("alice/adapter")
answer([first, wanted])
""",
    )
    first, wanted = found
    config = json.loads(hub.repos["alice/adapter"].at("v1").files["adapter_config.json"].content)
    assert (config["base_model_name_or_path"], config["revision"]) == ("alice/base", first)
    # The base moves on, to something else altogether under the same name.
    base = hub.repos["alice/base"]
    files = dict(base.at("main").files)
    files["config.json"] = type(files["config.json"])(b'{"model_type": "clip", "projection_dim": 7}', False)
    base.commit("main", "another base altogether", files)
    found = client(
        use
        + """
answer([
    numbers(Model.from_pretrained("alice/adapter", revision="v1")),
    numbers(Model.from_pretrained("alice/adapter")),
    Model.from_pretrained("alice/adapter").peft_config["default"].revision,
])
""",
        cache="other",
    )
    assert found[0] == wanted
    assert found[1] != wanted
    assert found[2] == first


@pytest.mark.slow
def test_ways_to_load_an_adapter_of_a_full_base(client, hub, use, saved):
    folder, _ = saved
    wanted, image_processor = client(
        use
        + f"""
from hf_oodclip import NFTConfig
push_folder({str(folder / "full")!r}, "alice/full")
model = Model.from_pretrained("alice/full")
model.add_adapter(NFTConfig(hidden_size=4))
with torch.no_grad():
    for parameter in model.similarity.parameters(): parameter.add_(0.01)
model.eval().push_to_hub("alice/adapter")
answer([numbers(model), model.image_processor.to_dict()["size"]])
"""
    )
    # The base moves on: other labels, which the adapter does not know.
    repo = hub.repos["alice/full"]
    files = dict(repo.at("main").files)
    changed = json.loads(files["config.json"].content)
    changed["id2label"]["0"] = "something else"
    files["config.json"] = type(files["config.json"])(json.dumps(changed).encode(), False)
    repo.commit("main", "other labels", files)
    found = client(
        use
        + """
made = pipeline(TASK, model="alice/adapter")
answer([
    numbers(made),
    numbers(Model.from_pretrained("alice/adapter")),
    numbers(AutoModelForImageClassification.from_pretrained("alice/adapter")),
    made.image_processor.to_dict()["size"],
])
""",
        cache="other",
    )
    assert found == [wanted, wanted, wanted, image_processor]


@pytest.mark.slow
def test_a_subfolder(client, hub, use, saved):
    folder, wanted = saved
    found = client(
        use
        + f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("alice/many")
for name in ("full", "adapter"):
    api.upload_folder(repo_id="alice/many", folder_path={str(folder)!r} + "/" + name, path_in_repo=name)
added = Model.from_pretrained(hf_oodclip.pocket_path())
added.load_adapter("alice/many", subfolder="adapter")
answer([
    numbers(Model.from_pretrained("alice/many", subfolder="full")),
    numbers(AutoModelForImageClassification.from_pretrained("alice/many", subfolder="full")),
    numbers(Model.from_pretrained("alice/many", subfolder="adapter")),
    numbers(added),
])
"""
    )
    assert found == [wanted["full"]] * 2 + [wanted["adapter"]] * 2


@pytest.mark.slow
def test_pushing_again_removes_what_is_gone_and_adds_no_empty_commit(client, hub, use, saved):
    folder, _ = saved
    client(
        use
        + f"""
model = Model.from_pretrained({str(folder / "adapter")!r})
model.push_to_hub("alice/adapter")
model.push_to_hub("alice/adapter")
model.set_labels(["cat", "dog"], negatives=[])
model.push_to_hub("alice/adapter", commit_message="cats and dogs")
model.save_pretrained("alice-saved", push_to_hub=True, repo_id="alice/saved")
""".replace("alice-saved", str(folder.parent / "alice-saved"))
    )
    repo = hub.repos["alice/adapter"]
    assert [commit.message for commit in repo.commits.values()][2:] == ["cats and dogs"]
    assert set(repo.files) - {"README.md"} == {"adapter_config.json", "adapter_model.safetensors", "ood_head.json"}
    saved_again = hub.repos["alice/saved"].files
    assert saved_again["adapter_config.json"] == repo.files["adapter_config.json"]
