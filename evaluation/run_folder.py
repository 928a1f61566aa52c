"""What a run leaves on disk: every sample, then the results with their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_oodclip import Calibration

from .measures import ScoredSet

__all__ = ["sample_table", "write_run"]


def sample_table(
    each: ScoredSet, keys: list[str], calibrations: Mapping[str, Calibration], negatives: list[str] | None
) -> pa.Table:
    count = len(each.rows)
    nearest = pa.nulls(count, pa.string())
    if each.nearest_negative is not None and negatives is not None:
        nearest = pa.array(negatives, pa.string()).take(pa.array(each.nearest_negative))
    columns: dict[str, Any] = {
        "set": pa.repeat(each.spec.name, count),
        "role": pa.repeat(each.spec.role, count),
        "row": pa.array(each.rows.numpy()),
        "file": _files(each),
        "label": pa.array(each.labels.astype(np.int64)),
        "prediction": pa.array(each.predictions.astype(np.int64)),
        "confidence": pa.array(each.confidence.astype(np.float32)),
        "nearest_negative": nearest,
    }
    for key in keys:
        columns[f"score:{key}"] = pa.array(each.scores[key].astype(np.float32))
        if key in calibrations:
            p_values = calibrations[key].p_values(torch.from_numpy(each.scores[key])).numpy()
            columns[f"p_value:{key}"] = pa.array(p_values.astype(np.float32))
    return pa.table(columns)


def _files(each: ScoredSet) -> pa.ChunkedArray:
    # The column of paths by itself, or every image would be read to get them.
    column = each.images.images.flatten().with_format("arrow")["image.path"]
    return column[:].take(pa.array(each.rows.numpy()))


def write_run(folder: Path, results: dict[str, Any], samples: pa.Table) -> None:
    """Write `samples.parquet` and, when that is whole, `results.json` with its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".samples.parquet.partial"
    pq.write_table(samples, partial)
    partial.replace(folder / "samples.parquet")
    digest = hashlib.blake2b((folder / "samples.parquet").read_bytes(), digest_size=16).hexdigest()
    results["checksums"] = {"samples.parquet": digest}
    partial = folder / ".results.json.partial"
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / "results.json")
