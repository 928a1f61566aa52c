"""What a figure depends on besides the code: recorded in every result file."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import torch

__all__ = ["describe_environment"]

_PACKAGES = (
    "hf_oodclip", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pillow", "safetensors"
)  # fmt: skip


def describe_environment(seed: int, image_processor: Any = None) -> dict[str, Any]:
    """Return seed, versions, image backend, machine and command of a run.

    Args:
        seed: The seed of the run.
        image_processor: Its class is the image backend: resizing differs between them.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "command": shlex.join([sys.argv[0].rpartition("/")[2], *sys.argv[1:]]),
        "seed": seed,
        "versions": {"python": platform.python_version(), **versions},
        "image_backend": None if image_processor is None else type(image_processor).__name__,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
