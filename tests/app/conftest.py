"""An engine with few negatives, so that nothing is mined, and real images as files."""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hf_oodclip.app.engine import Engine

WORDS = ("gravel", "fog", "tax law", "handwriting", "zigzag pattern", "sweater", "number", "stripe")


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of eight negatives."""
    path = tmp_path_factory.mktemp("words") / "eight.txt"
    path.write_text("\n".join(WORDS))
    return str(path)


@pytest.fixture(scope="session")
def engine(words: str) -> Engine:
    """The pocket CLIP with the embedded labels, calibrated; banks come and go, nothing else changes."""
    return Engine(negatives=words)


@pytest.fixture(scope="session")
def photos(real_images: dict[str, list[Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The real images as files: 40 under `id`, 8 under `near`, 8 under `far`, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    found: dict[str, list[Path]] = {}
    for role, images in real_images.items():
        found[role] = [folder / f"{role} {number:02d}.png" for number in range(len(images))]
        for image, path in zip(images, found[role], strict=True):
            image.save(path)
    found["broken"] = [folder / "broken.png"]
    found["broken"][0].write_bytes(found["id"][0].read_bytes()[:300])
    return found


@pytest.fixture(scope="session")
def running() -> Callable[..., Any]:
    """A context in which a program that opens the demo runs on a free port; its value is the address printed."""

    @contextmanager
    def run(command: list[str], folder: Path) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        try:
            printed = ""
            for line in process.stdout:
                printed += line
                if found := re.search(r"open at (http://127\.0\.0\.1:\d+/)", line):
                    assert found.group(1) == f"http://127.0.0.1:{port}/"
                    yield found.group(1)
                    break
            else:
                pytest.fail(printed)
        finally:
            process.terminate()
            process.wait(timeout=30)

    return run
