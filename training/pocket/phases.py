"""Runs a stage step by step: logs, checkpoints, goes on where an earlier run stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from hf_oodclip.training.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from torch import Tensor

from hf_oodclip.errors import CheckpointError

__all__ = ["Phase", "run_phase"]

LOG_EVERY = 50


class Phase(Protocol):
    """What `TextStage` and `ImageTraining` have in common."""

    model: Any
    optimizer: Any
    num_steps: int

    def step(self, step: int) -> dict[str, float]: ...


def run_phase(
    phase: Phase,
    folder: Path,
    digest: str,
    *,
    measure: Callable[[], dict[str, float]],
    every: int,
    is_main: bool,
    say: Callable[[str], None],
    minutes_between: float = 5.0,
    shorter: Sequence[str] = (),
) -> dict[str, Any]:
    """Train to the end, and return what was logged: `history`, `evaluations`, `seconds`.

    Args:
        phase: What is trained.
        folder: Where its checkpoints are.
        digest: Hash of recipe and data: only checkpoints of the same go on.
        measure: Returns figures of the model as it is.
        every: Steps between these.
        is_main: Whether this process writes and speaks.
        say: Called with a line of progress.
        minutes_between: Minutes between checkpoints.
        shorter: Hashes of recipes that this one begins with: it goes on from their checkpoints too.
    """
    averaged: dict[str, Tensor] = getattr(phase, "averaged", {})
    record: dict[str, Any] = {"history": [], "evaluations": [], "seconds": 0.0}
    first = 0
    if (found := _latest(folder, [digest, *shorter])) is not None:
        phase.model.load_state_dict(found.parameters)
        phase.optimizer.load_state_dict(found.optimizer)
        for name, values in found.best.items():
            averaged[name].copy_(values)
        first, record = found.step, found.progress
        say(f"Going on after step {first:,}.")
    start, before, saved = time.monotonic(), record["seconds"], time.monotonic()
    sums: dict[str, float] = {}
    for step in range(first, phase.num_steps):
        for name, value in phase.step(step).items():
            sums[name] = sums.get(name, 0.0) + value
        done = step + 1
        record["seconds"] = round(before + time.monotonic() - start, 1)
        if done % LOG_EVERY == 0 or done == phase.num_steps:
            count = done - record["history"][-1]["step"] if record["history"] else done
            means = {name: round(total / max(1, count), 4) for name, total in sums.items()}
            record["history"].append({"step": done, "seconds": record["seconds"], **means})
            sums = {}
            figures = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items())
            left = (record["seconds"] - before) / (done - first) * (phase.num_steps - done)
            say(f"step {done:,} of {phase.num_steps:,}: {figures}; {left / 60:.0f} min left")
        if done % every == 0 or done == phase.num_steps:
            record["evaluations"].append({"step": done, **{key: round(value, 4) for key, value in measure().items()}})
            say(json.dumps(record["evaluations"][-1]))
        # A step of several processes is written once, by the main one, from weights that all share.
        if is_main and (time.monotonic() - saved > 60 * minutes_between or done == phase.num_steps):
            state = {name: values.detach() for name, values in phase.model.state_dict().items()}
            optimizer = phase.optimizer.state_dict()
            kept = {name: values.to(torch.float32) for name, values in averaged.items()}
            save_checkpoint(folder, Checkpoint(done, state, optimizer, record, kept), digest)
            saved = time.monotonic()
    return record


def _latest(folder: Path, digests: Sequence[str]) -> Checkpoint | None:
    refused: list[CheckpointError] = []
    for digest in digests:
        try:
            return latest_checkpoint(folder, digest)
        except CheckpointError as error:
            refused.append(error)
    raise refused[0]
