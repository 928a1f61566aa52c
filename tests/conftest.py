"""Shared fixtures: no network, no writes outside temporary folders, two small CLIP checkpoints, real images."""

import functools
import http.server
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before any import that reads them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_OODCLIP_CACHE"] = tempfile.mkdtemp(prefix="hf_oodclip_tests_")

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

import hf_oodclip
from hf_oodclip.assets import images_path

# The models are small: threads would only fight with whatever else runs on the machine.
torch.set_num_threads(1)
transformers_logging.disable_progress_bar()
datasets.disable_progress_bars()

NEGATIVES = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_OODCLIP_CACHE"], ignore_errors=True)


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _listen(logger_name: str) -> Iterator[list[str]]:
    handler, logger = _Messages(), logging.getLogger(logger_name)
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The warnings this package has logged so far in the test, a live list of messages."""
    yield from _listen("hf_oodclip")


@pytest.fixture
def transformers_warned() -> Iterator[list[str]]:
    """The warnings transformers has logged so far in the test (its loggers do not reach `caplog`)."""
    yield from _listen("transformers")


@pytest.fixture(scope="session")
def pocket() -> str:
    """Folder of the pocket CLIP."""
    return hf_oodclip.pocket_path()


@pytest.fixture
def pocket_copy(pocket: str, tmp_path: Path) -> Path:
    """A copy of the pocket CLIP that the test may damage."""
    return Path(shutil.copytree(pocket, tmp_path / "pocket_copy"))


@pytest.fixture(scope="session")
def tiny_clip(pocket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny random CLIP: 2 layers, width 32, projection 24, 32 pixels, the pocket's tokenizer."""
    folder = str(tmp_path_factory.mktemp("tiny_clip"))
    tokenizer = AutoTokenizer.from_pretrained(pocket)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    # Not above: it warns when it is imported without torchvision, which would be the last word of every test run.
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def id_dataset(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """The embedded ID images, 800 rows with `image` and `label`."""
    cache = str(tmp_path_factory.mktemp("datasets"))
    return datasets.load_dataset("parquet", data_files=images_path("id"), split="train", cache_dir=cache)


@pytest.fixture(scope="session")
def id_labels(id_dataset: datasets.Dataset) -> list[str]:
    """The 20 class names of the embedded ID images."""
    return list(id_dataset.features["label"].names)


@pytest.fixture(scope="session")
def real_images(
    id_dataset: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Image.Image]]:
    """Real images: 40 under `id` (two of each class), 8 under `near`, 8 under `far`."""
    cache = str(tmp_path_factory.mktemp("ood_datasets"))
    found = {"id": id_dataset.select(range(0, 800, 20))["image"][:]}
    for role, name in (("near", "near_heldout"), ("far", "far_textures")):
        rows = datasets.load_dataset("parquet", data_files=images_path(name), split="train", cache_dir=cache)
        found[role] = rows.select(range(0, len(rows), len(rows) // 8))["image"][:8]
    return found


@pytest.fixture(scope="session")
def make_model(pocket: str, id_labels: list[str]) -> Callable[..., Any]:
    """A factory of freshly loaded models: the pocket CLIP, the 20 ID labels and 8 negatives by default."""

    def make(folder: str | Path = pocket, **options: Any) -> Any:
        options = {"labels": id_labels, "negatives": NEGATIVES, **options}
        return hf_oodclip.OODCLIPForImageClassification.from_pretrained(folder, **options)

    return make


@pytest.fixture(scope="session")
def shared_model(make_model: Callable[..., Any]) -> Any:
    """The default model of `make_model`, loaded once: for tests that change nothing in it."""
    return make_model()


@pytest.fixture(scope="session")
def pixel_values(shared_model: Any, real_images: dict[str, list[Image.Image]]) -> torch.Tensor:
    """16 real ID images through the pocket's image processor, `[16, 3, 64, 64]`."""
    return shared_model.image_processor(images=real_images["id"][:16], return_tensors="pt")["pixel_values"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves `tmp_path` on the loopback interface; the value is its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], str]:
    """Runs code in a fresh interpreter and returns what it printed; a failure shows its whole stderr."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run
