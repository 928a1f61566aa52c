"""What goes wrong between here and a Hub: one clear sentence each, and nothing half-written is ever loaded."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from store import Blob

from hf_oodclip.cli.push import push
from hf_oodclip.errors import HubError

pytestmark = pytest.mark.slow


def one_sentence(found, kind, pattern):
    assert found[0] == kind, found
    assert re.search(pattern, found[1]), found[1]
    assert "\n" not in found[1]
    assert len(found[1]) < 400


def replace(repo, **files):
    """Commit other content of some files, as git would."""
    kept = dict(repo.at("main").files)
    for name, content in files.items():
        name = name.replace("__", ".")
        kept.pop(name, None)
        if content is not None:
            kept[name] = Blob(content, name.endswith((".safetensors", ".bin")))
    repo.commit("main", "changed", kept)


@pytest.fixture
def pushed(client, hub, use, saved):
    """The adapter on the Hub, as `alice/adapter`."""
    client(use + f"push_folder({str(saved[0] / 'adapter')!r}, 'alice/adapter')", cache="of the author")
    return hub.repos["alice/adapter"]


LOAD = 'Model.from_pretrained("alice/adapter")'


def test_who_may_push_and_read(client, hub, use, saved):
    folder = str(saved[0] / "adapter")
    found = client(
        use
        + f"""
push_folder({folder!r}, "alice/secret", private=True)
push = lambda repo, **options: refused(lambda: push_folder({folder!r}, repo, **options))
answer([
    push("alice/new", token="hf_nobody"),
    push("bob/new"),
    push("alice/secret", token="hf_bob"),
    push("alice/secret", token="hf_alice_reads"),
    push("a/b/c"),
    refused(lambda: Model.from_pretrained("alice/secret", token=False)),
    refused(lambda: Model.from_pretrained("alice/secret", token="hf_bob")),
    refused(lambda: Model.from_pretrained("alice/secret", token="hf_nobody")),
    refused(lambda: Model.from_pretrained(hf_oodclip.pocket_path()).load_adapter("alice/secret", token=False)),
    refused(lambda: Model.from_pretrained("alice/secret", token="hf_alice")),
])
""",
        cache="b",
    )
    one_sentence(found[0], "HubError", r"alice/new was not pushed: the token is missing or wrong.*hf auth login")
    for refused in found[1:4]:
        one_sentence(refused, "HubError", r"was not pushed: (you may not write there|there is no such repo)")
    one_sentence(found[4], "HubError", r"'a/b/c' cannot be the name of a repo: give owner/name")
    for refused in found[5:7]:
        one_sentence(refused, "CheckpointError", r"alice/secret is neither a folder nor a repo.*token=")
    one_sentence(found[7], "CheckpointError", r"\(401\): the token is wrong")
    one_sentence(found[8], "CheckpointError", r"alice/secret is neither a folder nor a repo.*token=")
    assert found[9] == ["nothing", ""]
    assert len(hub.repos["alice/secret"].commits) == 2


def test_what_is_not_there(client, pushed, use):
    found = client(
        use
        + f"""
answer([
    refused(lambda: Model.from_pretrained("alice/missing")),
    refused(lambda: {LOAD.replace(")", ', revision="v9")')}),
    refused(lambda: {LOAD.replace(")", ', subfolder="no")')}),
])
""",
    )
    one_sentence(
        found[0], "CheckpointError", r"alice/missing is neither a folder nor a repo on the Hub that you may read"
    )
    one_sentence(found[1], "CheckpointError", r"alice/adapter has no revision 'v9'")
    assert found[2][0] == "CheckpointError"
    assert "alice/adapter" in found[2][1]


def test_adapters_that_must_not_be_loaded_leave_the_model_alone(client, hub, pushed, use, saved):
    """Pickles, another base, weights cut short, other classes: refused before anything is touched."""
    original = pushed.files
    weights, record = load_file(saved[0] / "adapter" / "adapter_model.safetensors"), original["ood_head.json"]
    pickled = saved[0] / "adapter_model.bin"
    torch.save(weights, pickled)
    other = json.loads(record)
    other["base_sample"] = other["base_sample"][::-1]
    narrow = saved[0] / "narrow.safetensors"
    save_file({name: tensor[..., :-1].contiguous() for name, tensor in weights.items()}, narrow)
    changes = {
        "pickle": {"adapter_model__safetensors": None, "adapter_model__bin": pickled.read_bytes()},
        "base": {"ood_head__json": json.dumps(other).encode()},
        "width": {"adapter_model__safetensors": narrow.read_bytes()},
        "cut": {"adapter_model__safetensors": original["adapter_model.safetensors"][:500]},
        "no record": {"ood_head_negatives__json": None},
    }
    shas = {}
    for name, change in changes.items():
        replace(pushed, adapter_model__bin=None, **{key.replace(".", "__"): value for key, value in original.items()})
        replace(pushed, **change)
        shas[name] = pushed.at("main").sha
        hub.large.update({blob.oid: blob.content for blob in pushed.at("main").files.values() if blob.is_large})
    found = client(
        use
        + f"""
found = {{}}
for name, sha in {shas!r}.items():
    model = Model.from_pretrained(hf_oodclip.pocket_path())
    labelled = Model.from_pretrained(hf_oodclip.pocket_path(), labels=["cat", "dog"], negatives=["fog"])
    before = numbers(labelled)
    found[name] = [
        refused(lambda: Model.from_pretrained("alice/adapter", revision=sha)),
        refused(lambda: model.load_adapter("alice/adapter", revision=sha)),
        refused(lambda: labelled.load_adapter("alice/adapter", revision=sha)),
    ]
    found[name].append([model.labels, model.negatives, hasattr(model, "peft_config"), model.ood_head.calibrations])
    found[name].append(numbers(labelled) == before)
answer(found)
"""
    )
    messages = {
        "pickle": r"adapter_model\.bin, a pickle.*safetensors only",
        "base": r"trained on another base.*cosine .*Load the base that its adapter_config\.json names",
        "width": r"has shape .* where embeddings of width 256",
        "cut": r"adapter_model\.safetensors is damaged",
        "no record": r"ood_head_negatives\.json is missing",
    }
    for name, message in messages.items():
        for refused in found[name][:3]:
            one_sentence(refused, "AdapterError", message)
        assert found[name][3:] == [[[], None, False, []], True]


def test_a_full_model_in_a_pickle(client, hub, use, saved):
    client(use + f"push_folder({str(saved[0] / 'full')!r}, 'alice/full')")
    replace(hub.repos["alice/full"], model__safetensors=None, pytorch_model__bin=b"cos\nsystem\n")
    found = client(use + 'answer(refused(lambda: Model.from_pretrained("alice/full")))', cache="b")
    assert found[0] in ("OSError", "CheckpointError")
    assert "safetensors" in found[1]
    assert hub.count("pytorch_model.bin") == 0 or hub.count("GET .*pytorch_model.bin") == 0


# ---------------------------------------------------------------- transfers that break


def test_an_interrupted_upload_goes_on_and_is_never_seen_by_half(client, hub, use, saved):
    """The client dies in the middle of the weights; the next push sends only what is missing."""
    hub.part_size = 20_000
    folder = str(saved[0] / "full")
    # The server stops reading in the middle of the weights; the process is killed as it tries again.
    hub.cut("PUT", "/lfs/.*/2$", after=1000)
    kill = "import huggingface_hub.utils._http as http, os\nhttp.time.sleep = lambda *_: os._exit(9)\n"
    client(use + kill + f"push_folder({folder!r}, 'alice/full')", fails=True)
    repo = hub.repos["alice/full"]
    assert repo.files == {}
    assert len(repo.commits) == 1
    found = client(
        use
        + f"""
nothing = refused(lambda: Model.from_pretrained("alice/full"))
push_folder({folder!r}, "alice/full")
answer([nothing, numbers(Model.from_pretrained("alice/full"))])
"""
    )
    one_sentence(found[0], "CheckpointError", "alice/full")
    assert found[1] == saved[1]["full"]
    assert len(repo.commits) == 2


def test_a_hub_that_fails_while_pushing(client, hub, use, saved):
    folder = str(saved[0] / "adapter")
    hub.fail("PUT", "/lfs/", 500)
    hub.fail("POST", "/commit/", 500)
    found = client(
        use
        + f"""
first = refused(lambda: push_folder({folder!r}, "alice/adapter"))
push_folder({folder!r}, "alice/adapter")
answer([first, numbers(Model.from_pretrained("alice/adapter"))])
"""
    )
    # The upload was tried again by the client; the commit never is, as nobody knows whether it was made.
    one_sentence(found[0], "HubError", r"the Hub answered 500: push again.*nothing half-pushed is visible")
    assert found[1] == saved[1]["adapter"]
    large = len({"adapter_model.safetensors", "ood_head.safetensors"})
    assert hub.count("PUT /lfs/") == large + 1


def test_a_hub_that_dies_while_pushing(client, hub, use, saved):
    folder = str(saved[0] / "adapter")
    hub.cut("PUT", "/lfs/", after=100, times=99)
    found = client(use + f"answer(refused(lambda: push_folder({folder!r}, 'alice/adapter')))")
    one_sentence(found, "HubError", r"the Hub cannot be reached \(\w+\): push again")
    assert hub.repos["alice/adapter"].files == {}


@pytest.mark.parametrize("name", ["adapter_config.json", "ood_head.json", "ood_head_negatives.json"])
def test_a_hub_that_fails_while_loading(client, hub, pushed, use, saved, name):
    """A file that cannot be fetched is not taken for one that is not there."""
    hub.fail("HEAD", name, 500, times=99)
    found = client(use + f"answer(refused(lambda: {LOAD}))")
    one_sentence(found, "CheckpointError", rf"{name} of alice/adapter.*could not be fetched \(status 500\).*try again")
    hub.faults.clear()
    assert client(use + f"answer(numbers({LOAD}))") == saved[1]["adapter"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "model.safetensors"])
def test_a_hub_that_dies_in_the_middle_of_weights(client, hub, pushed, use, saved, name, tmp_path):
    repo, key, folder = (
        ("alice/adapter", "adapter", "adapter") if "adapter" in name else ("alice/full", "full", "full")
    )
    client(use + f"push_folder({str(saved[0] / folder)!r}, {repo!r})", cache="of the author")
    oid = hub.repos[repo].at("main").files[name].oid
    hub.cut("GET", f"/cdn/{oid}", after=2000, times=99)
    fast = "import huggingface_hub.file_download as d\nd.time.sleep = lambda *_: None\n"
    load = f"Model.from_pretrained({repo!r})"
    found = client(use + fast + f"answer(refused(lambda: {load}))")
    assert found[0] != "nothing"
    assert list((tmp_path / "a").rglob(f"snapshots/*/{name}")) == []
    # Offline, what is half there is not loaded either; and when the Hub is back, all is well.
    assert client(use + f"answer(refused(lambda: {load}))", HF_HUB_OFFLINE="1")[0] in (
        "CheckpointError",
        "AdapterError",
        "OSError",
    )
    hub.faults.clear()
    assert client(use + f"answer(numbers({load}))") == saved[1][key]


def test_new_commits_are_seen_and_pins_hold(client, hub, pushed, use, saved):
    first = pushed.at("main").sha
    load = f"answer([numbers({LOAD}), numbers({LOAD.replace(')', f', revision={first!r})')})])"
    wanted = saved[1]["adapter"]
    assert client(use + load) == [wanted, wanted]
    weights = {
        name: tensor * 1.5 + 0.01
        for name, tensor in load_file(saved[0] / "adapter" / "adapter_model.safetensors").items()
    }
    path = saved[0] / "changed.safetensors"
    save_file(weights, path)
    replace(pushed, adapter_model__safetensors=path.read_bytes())
    hub.large.update({blob.oid: blob.content for blob in pushed.at("main").files.values() if blob.is_large})
    latest, pinned = client(use + load)
    assert pinned == wanted
    assert latest["ood_score"] != wanted["ood_score"]
    # Without the Hub, by wish or not, the latest that was seen is what main means.
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert client(use + load, **env) == [latest, pinned]


# ---------------------------------------------------------------- the command


def test_the_command(client, hub, saved, tmp_path):
    # A copy: the command writes a card.
    folder = str(shutil.copytree(saved[0] / "adapter", tmp_path / "adapter"))
    run = "from hf_oodclip.cli import main; sys.argv = ['oodclip', 'push', {!r}, 'alice/cli', {}]; main()"
    client(run.format(folder, "'--no-card', '--private'"))
    assert hub.repos["alice/cli"].private
    assert "README.md" not in hub.repos["alice/cli"].files
    error = client(run.format(folder, "'--revision', 'x'"), token="hf_bob", fails=True)
    assert error.strip().splitlines()[-1].startswith("Error: alice/cli was not pushed")
    assert "Traceback" not in error


def test_the_command_wants_a_folder(tmp_path):
    with pytest.raises(HubError, match="is no folder"):
        push(tmp_path / "no", "alice/cli")
