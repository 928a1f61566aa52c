"""One shard of stored features: checked, written whole, read back or found damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.utils import logging

from .errors import FeatureStoreError, NonFiniteError

__all__ = ["Compute", "FeatureRows", "checked_rows", "read_shard", "shard_content", "stored_shard", "write_whole"]

logger = logging.get_logger("hf_oodclip.feature_shards")


@dataclass(frozen=True)
class FeatureRows:
    """What was computed for some rows of a dataset.

    Args:
        tensors: By name, `[kept, ...]` each; for no rows too, with the same names and widths.
        rows: The rows kept, ascending.
        skipped: The rows left out, each with the reason.
    """

    tensors: dict[str, Tensor]
    rows: list[int]
    skipped: dict[int, str]


# Makes the features of some rows of a dataset.
Compute = Callable[[list[int]], FeatureRows]


def checked_rows(computed: FeatureRows, rows: list[int]) -> FeatureRows:
    """Return what was computed for these rows, on the CPU, or say what is wrong with it.

    Raises:
        FeatureStoreError: Rows are missing, out of order or too many, or a tensor does not fit them.
        NonFiniteError: A feature is NaN or infinite; the message names the rows.
    """
    if sorted([*computed.rows, *computed.skipped]) != rows or computed.rows != sorted(computed.rows):
        raise FeatureStoreError(
            f"Features of {len(rows)} rows from {rows[:1]} were asked for, but {len(computed.rows)} are kept and "
            f"{len(computed.skipped)} skipped: each row must be in one of the two, in order."
        )
    tensors = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in computed.tensors.items()}
    for name, tensor in tensors.items():
        if name == "rows" or tensor.ndim == 0 or len(tensor) != len(computed.rows):
            raise FeatureStoreError(
                f"Feature {name!r} has shape {tuple(tensor.shape)} for {len(computed.rows)} kept rows: give one "
                "entry a row, under any name but 'rows'."
            )
        if not torch.isfinite(tensor).all():
            bad = [row for row, values in zip(computed.rows, tensor, strict=True) if not torch.isfinite(values).all()]
            raise NonFiniteError(
                f"Feature {name!r} is NaN or infinite on {len(bad)} rows: {str(bad[:10])[1:-1]}"
                f"{', ...' if len(bad) > 10 else ''}. Look at these images; if there are many, the checkpoint's "
                "weights are damaged or its dtype overflows: try dtype=torch.float32."
            )
    return FeatureRows(tensors, list(computed.rows), {row: computed.skipped[row] for row in sorted(computed.skipped)})


def _checksum(tensors: Mapping[str, Tensor], skipped: str) -> str:
    digest = hashlib.blake2b(skipped.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"|{name} {tuple(tensors[name].shape)} {tensors[name].dtype}|".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shard_content(shard: FeatureRows) -> bytes:
    """Return the bytes of a shard's safetensors file."""
    tensors = {**shard.tensors, "rows": torch.tensor(shard.rows, dtype=torch.int64)}
    skipped = json.dumps(shard.skipped)
    # One entry, because safetensors writes several in any order: the same shard is the same bytes.
    return save(tensors, metadata={"shard": json.dumps([_checksum(tensors, skipped), skipped])})


def read_shard(path: Path) -> FeatureRows | None:
    """Return a stored shard, or None when it is not there or damaged (which is logged)."""
    try:
        with safe_open(path, framework="pt") as file:
            # Copies, for the tensors of thousands of shards would keep as many files mapped.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            checksum, skipped = json.loads((file.metadata() or {})["shard"])
        if _checksum(tensors, skipped) == checksum:
            reasons = {int(row): reason for row, reason in json.loads(skipped).items()}
            return FeatureRows(tensors, tensors.pop("rows").tolist(), reasons)
        reason = "its checksum does not match"
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error)
    logger.warning(f"The stored features {path} are damaged ({reason}); they are computed again.")
    return None


def stored_shard(path: Path, rows: Sequence[int], compute: Compute) -> FeatureRows:
    """Return a shard, computed and written if it is not there."""
    shard = read_shard(path)
    if shard is None:
        shard = checked_rows(compute(list(rows)), list(rows))
        write_whole(path, shard_content(shard))
    return shard


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it is there as a whole or not at all.

    Raises:
        FeatureStoreError: The folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FeatureStoreError(
            f"Image features cannot be kept in {path.parent} ({error}): give FeatureStore(folder) or set "
            "HF_OODCLIP_CACHE to a folder you can write, with room for them."
        ) from error
