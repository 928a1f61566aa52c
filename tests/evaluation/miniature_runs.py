"""Runs of no images, only of figures that the test chooses."""

import hashlib
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos")
SETS = {"own": "id", "flowers": "near", "dots": "far", "lines": "far"}
numbers = itertools.count()


def small_run(
    parent,
    auroc,
    accuracy=0.5,
    benchmark="bench",
    adapter=None,
    missing=(),
    sets=None,
    scores=("mcm",),
    folder=None,
    mark=None,
    **other,
):
    """A run folder; `auroc` and `accuracy` hold a figure a set, or one for all, and FPR95 is one less AUROC.

    Two runs of the same `mark` have the same samples.
    """
    sets, folder = sets or SETS, parent / (folder or f"run{next(numbers)}")
    auroc = auroc if isinstance(auroc, dict) else dict.fromkeys(sets, auroc)
    accuracy = accuracy if isinstance(accuracy, dict) else dict.fromkeys(sets, accuracy)
    present = {name: role for name, role in sets.items() if name not in missing}
    results = {
        "format": "hf_oodclip evaluation 1",
        "benchmark": benchmark,
        "title": benchmark.upper(),
        "model": "base",
        "adapter": adapter,
        "labels": ["cat", "dog"],
        "num_negatives": 3,
        "id_filter": "all",
        "full_spectrum": False,
        "sets": [
            {"name": name, "role": role, "status": "ok" if name in present else "missing", "count": 10}
            for name, role in sets.items()
        ],
        "accuracy": [
            {"set": name, "role": role, "value": accuracy[name], "count": 10}
            for name, role in present.items()
            if role in ("id", "shifted")
        ],
        "detection": [
            {"score": score, "set": name, "role": role}
            | {metric: 1 - auroc[name] if metric.startswith("fpr") else auroc[name] for metric in METRICS}
            for score in scores
            for name, role in present.items()
            if role in ("near", "far")
        ],
        "calibration": [],
        "published": [],
        "environment": {"command": "evaluate.py"},
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"mark": [mark or str(folder)]}), folder / "samples.parquet")
    digest = hashlib.blake2b((folder / "samples.parquet").read_bytes(), digest_size=16).hexdigest()
    results["checksums"] = {"samples.parquet": digest}
    (folder / "results.json").write_text(json.dumps(results | other))
    return str(folder)
