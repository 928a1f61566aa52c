"""Checkpoints of a training run: one file each, written whole or not at all, read back bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from hf_oodclip.errors import CheckpointError

__all__ = ["Checkpoint", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

logger = logging.get_logger("hf_oodclip.training")

KEPT = 2
_PARAMETER, _OPTIMIZER, _BEST = "parameter.", "optimizer.", "best."


@dataclass
class Checkpoint:
    """All that a run needs to go on as if it had never stopped.

    Args:
        step: Optimizer steps done.
        parameters: What is trained, by name.
        optimizer: State of the optimizer, as its `state_dict()`.
        progress: Plain values: history, best metric, scaler.
        best: Parameters of the best evaluation so far, empty without.
    """

    step: int
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    best: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, digest: str) -> Path:
    """Write a checkpoint and remove all but the latest few.

    Args:
        folder: Where the checkpoints of the run are.
        checkpoint: What to write.
        digest: Hash of the recipe and what it is used on: only the same one goes on from it.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full; the checkpoints before stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{_PARAMETER}{name}": value for name, value in checkpoint.parameters.items()}
    tensors |= {f"{_BEST}{name}": value for name, value in checkpoint.best.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, state in checkpoint.optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    record = {
        "step": checkpoint.step,
        "digest": digest,
        "progress": checkpoint.progress,
        "plain_state": plain,
        "param_groups": checkpoint.optimizer["param_groups"],
    }
    path = folder / f"step-{checkpoint.step:08d}.safetensors"
    partial = folder / f".{path.name}.{os.getpid()}.partial"
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(record)
    try:
        save_file(contiguous, partial, metadata={"record": text, "checksum": _checksum(contiguous, text)})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error}): make room, then go on with --resume.") from error
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()
    for leftover in folder.glob(".step-*.partial"):
        leftover.unlink()
    return path


def load_checkpoint(path: Path, digest: str) -> Checkpoint:
    """Return a checkpoint.

    Raises:
        CheckpointError: It is of another recipe.
        SafetensorError, OSError, KeyError, ValueError: It is damaged.
    """
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata["checksum"] != _checksum(tensors, metadata["record"]):
        raise ValueError("its checksum does not match")
    record = json.loads(metadata["record"])
    if record["digest"] != digest:
        raise CheckpointError(
            f"{path} is of another recipe, so the run cannot go on from it: give the recipe, data and settings it was "
            "started with, or start anew in another output folder (or with --overwrite)."
        )
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["plain_state"].items()}
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            index, name = key.removeprefix(_OPTIMIZER).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    return Checkpoint(
        step=record["step"],
        parameters=_with_prefix(tensors, _PARAMETER),
        optimizer={"state": state, "param_groups": record["param_groups"]},
        progress=record["progress"],
        best=_with_prefix(tensors, _BEST),
    )


def _checksum(tensors: dict[str, Tensor], record: str) -> str:
    digest = hashlib.blake2b(record.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def latest_checkpoint(folder: Path, digest: str) -> Checkpoint | None:
    """Return the newest checkpoint that can be read, or None where there is none.

    Raises:
        CheckpointError: The newest is of another recipe.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return load_checkpoint(path, digest)
        except CheckpointError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning(f"{path} cannot be read ({error}); going on from the one before.")
    return None


def seeded(seed: int) -> Any:
    """Return a context in which torch's generators start from a seed, and after which they are as before."""
    return _Seeded(seed)


class _Seeded:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.fork: Any = None

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self.fork.__exit__(*error)
