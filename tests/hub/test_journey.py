"""From training to a stranger's machine, through a Hub, and on without it."""

import json

import pytest

pytestmark = pytest.mark.slow

# As small as a run can be; the calibration set is one that conformal calibration accepts.
SMALL = {
    "split": "calibration",
    "classes": ["tabby cat", "police van", "acorn", "desk"],
    "shots": 1,
    "num_crops": 4,
    "selected_crops": 2,
    "epochs": 1,
    "epoch_fraction": 1.0,
    "batch_size": 2,
    "warmup_epochs": 0,
    "eval_dataset": "rest",
    "eval_split": None,
    "ood_datasets": [],
    "eval_limit": 8,
    "calibration_dataset": None,
    "num_negatives": None,
    "tracker": None,
}
TRAIN = """
from hf_oodclip import OODCLIPForImageClassification as Model
from hf_oodclip.training.recipe import load_recipe
from hf_oodclip.training.run import run_recipe
run_recipe(load_recipe("krnft-pocket", {small!r}), {run!r})
model = Model.from_pretrained({run!r})
model.calibrate({images!r})
model.save_pretrained({run!r})
"""
BOTH = """
answer([
    numbers(pipeline(TASK, model="alice/full")),
    numbers(pipeline(TASK, model="alice/on-the-hub")),
    numbers(pipeline(TASK, model="alice/trained", config=hf_oodclip.pocket_path())),
    numbers(pipeline(TASK, model=Model.from_pretrained("alice/trained"))),
])
"""


def test_the_whole_journey(client, hub, use, saved, real_images, tmp_path):
    run, images = str(tmp_path / "run"), []
    for row, image in enumerate(real_images["id"][:24]):
        images.append(str(tmp_path / f"{row}.png"))
        image.save(images[-1])
    (tmp_path / "words.txt").write_text("gravel\nfog\ntax law\nhandwriting\n")
    small = {**SMALL, "negatives": str(tmp_path / "words.txt")}
    cli = "from hf_oodclip.cli import main\nsys.argv = ['oodclip', 'push', {!r}, 'alice/trained']\nmain()"
    client(TRAIN.format(small=small, run=run, images=images), HF_HUB_OFFLINE="1")
    client(cli.format(run))
    wanted = client(
        use
        + f"""
trained = numbers(Model.from_pretrained({run!r}))
full = Model.from_pretrained({str(saved[0] / "full")!r})
full.push_to_hub("alice/full")
base = Model.from_pretrained("alice/full")
from hf_oodclip import NFTConfig
base.add_adapter(NFTConfig(hidden_size=4))
with torch.no_grad():
    for parameter in base.similarity.parameters(): parameter.add_(0.01)
base.eval().push_to_hub("alice/on-the-hub")
answer([numbers(full), numbers(base), trained, trained])
"""
    )
    assert wanted[0] == saved[1]["full"]
    for name in ("full", "on-the-hub", "trained"):
        files = hub.repos[f"alice/{name}"].files
        assert files["README.md"].startswith(b"---\n")
        assert f"alice/{name}".encode() in files["README.md"]
        for each, content in files.items():
            assert str(tmp_path).encode() not in content, each
    adapter = hub.repos["alice/trained"].files
    assert json.loads(adapter["adapter_config.json"])["base_model_name_or_path"] == "pocket"
    assert sum(len(content) for name, content in adapter.items() if "adapter" in name) < 400_000
    # Another machine: an empty cache, a new process.
    assert client(use + BOTH, cache="stranger", token=None) == wanted
    # Then the Hub is gone, by wish or because nobody listens any more.
    hub.is_down = True
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert client(use + BOTH, cache="stranger", token=None, **env) == wanted
