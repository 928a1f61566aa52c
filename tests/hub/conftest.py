"""A loopback Hub, and ways to talk to it with the real client in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server import running_hub
from store import Store

import hf_oodclip


@pytest.fixture
def hub() -> Iterator[Store]:
    """What a fresh loopback Hub keeps; it runs during the test."""
    with running_hub() as (store, address):
        store.address = address
        yield store


@pytest.fixture
def client(hub: Store, tmp_path: Path) -> Callable[..., Any]:
    """Runs code as a user of the hub and returns what it gave to `answer`, or the finished process where it may fail.

    The code finds `answer`, a function that takes one JSON value. Its Hub cache is its own, and empty at first.
    """

    def run(code: str, *, token: str | None = "hf_alice", cache: str = "a", fails: bool = False, **env: str) -> Any:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / cache),
            "HF_OODCLIP_CACHE": os.environ["HF_OODCLIP_CACHE"],
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            **({} if token is None else {"HF_TOKEN": token}),
            **env,
        }
        prelude = "import json, sys\ndef answer(value): print('\\nANSWER', json.dumps(value))\n"
        done = subprocess.run(
            [sys.executable, "-c", prelude + code],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        if fails:
            assert done.returncode != 0, done.stdout
            return done.stderr
        assert done.returncode == 0, done.stderr
        answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
        return json.loads(answers[-1].removeprefix("ANSWER ")) if answers else None

    return run


USE = """
import hf_oodclip, torch
from hf_oodclip import OODCLIPForImageClassification as Model
from hf_oodclip.errors import OODCLIPError
from hf_oodclip.hub import push_folder
from transformers import AutoModelForImageClassification, pipeline
TASK = "ood-image-classification"
IMAGE = {image!r}
def numbers(model):
    found = pipeline(TASK, model=model)(IMAGE) if not callable(getattr(model, "preprocess", None)) else model(IMAGE)
    return {{name: found.get(name) for name in ("label", "ood_score", "p_value", "is_ood", "nearest_negative")}}
def refused(call):
    try: call()
    except Exception as error: return [type(error).__name__, str(error)]
    return ["nothing", ""]
"""


@pytest.fixture(scope="session")
def use(real_images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Code that most clients start with; `numbers(model or pipeline)` are the results for one real image."""
    path = tmp_path_factory.mktemp("image") / "image.png"
    real_images["id"][3].save(path)
    return USE.format(image=str(path))


@pytest.fixture(scope="session")
def saved(
    make_model: Any, tiny_clip: str, real_images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Folders of calibrated models: `full` (tiny), `adapter` (on the pocket CLIP), and what each says of the image."""
    from peft import get_peft_model

    from hf_oodclip import NFTConfig, OODImageClassificationPipeline

    folder, found = tmp_path_factory.mktemp("saved"), {}
    for name, base in (("full", tiny_clip), ("adapter", hf_oodclip.pocket_path())):
        model = make_model(base)
        saving: Any = model
        if name == "adapter":
            saving = get_peft_model(model, NFTConfig(hidden_size=4))
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in model.similarity.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        model.calibrate(real_images["id"])
        saving.save_pretrained(folder / name)
        result = OODImageClassificationPipeline(model=model.eval())(real_images["id"][3])
        kept = ("label", "ood_score", "p_value", "is_ood", "nearest_negative")
        found[name] = {key: result[key] for key in kept}
    return folder, found
