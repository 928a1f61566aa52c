"""Runs as the runner writes them, made of random scores: results that belong to their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hf_oodclip.evaluation.run_folder import write_run as write_as_the_runner

from hf_oodclip import Calibration
from hf_oodclip.metrics import accuracy, detection_metrics

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos")
SETS = {"id": ("id", 240), "flowers": ("near", 90), "textures": ("far", 60), "sketches": ("shifted", 70)}
HOSTILE = '<script>alert("x")</script>|$x_1^2$ & 50% #{} ~\\`*_[a](b)*'


def fake_run(
    scores: Sequence[str] = ("neglabel", "mcm", "energy"),
    sets: Mapping[str, tuple[str, int]] = SETS,
    labels: Sequence[str] = ("cat", "dog", "owl", "bee"),
    missing: Sequence[str] = (),
    calibrated: bool = True,
    negatives: Sequence[str] | None = ("gravel", "fog", "sweater"),
    perfect: bool = False,
    seed: int = 0,
) -> tuple[dict[str, Any], pa.Table]:
    """Results and samples; `missing` names OOD sets without data, `perfect` leaves no mistake to show."""
    generator = np.random.default_rng(seed)
    shift = {"id": 0.0, "calibration": 0.0, "shifted": 0.5, "near": 1.0, "far": 2.0}
    present = {name: each for name, each in sets.items() if name not in missing}
    if calibrated:
        present["calibration"] = ("calibration", 200)
    columns: dict[str, list[Any]] = {}
    values: dict[tuple[str, str], np.ndarray] = {}
    for name, (role, count) in present.items():
        is_ood = role in ("near", "far")
        label = np.full(count, -1) if is_ood else generator.integers(len(labels), size=count)
        prediction = generator.integers(len(labels), size=count)
        right = np.ones(count, bool) if perfect else generator.random(count) < 0.8
        prediction = np.where(right & ~np.full(count, is_ood), label, prediction)
        columns.setdefault("set", []).extend([name] * count)
        columns.setdefault("role", []).extend([role] * count)
        columns.setdefault("row", []).extend(range(count))
        columns.setdefault("file", []).extend(f"{name}/{row}.png" for row in range(count))
        columns.setdefault("label", []).extend(label.tolist())
        columns.setdefault("prediction", []).extend(prediction.tolist())
        columns.setdefault("confidence", []).extend(generator.uniform(0.3, 1, count).tolist())
        nearest = generator.choice(negatives, count).tolist() if negatives else [None] * count
        columns.setdefault("nearest_negative", []).extend(nearest)
        for number, score in enumerate(scores):
            drawn = generator.normal(shift[role] * (1 + number / 10), 1, count)
            if perfect:
                drawn = np.where(np.full(count, is_ood), 10.0, 0.0)
            values[score, name] = drawn.astype(np.float32)
            columns.setdefault(f"score:{score}", []).extend(values[score, name].tolist())
    calibration = []
    if calibrated:
        for score in scores:
            rule = Calibration.fit(torch.from_numpy(values[score, "calibration"]), score)
            columns[f"p_value:{score}"] = np.concatenate(
                [rule.p_values(torch.from_numpy(values[score, name])).numpy() for name in present]
            ).tolist()
            accepted = {name: float((values[score, name] <= rule.threshold).mean()) for name in present}
            record = rule.to_dict()
            kept = {key: record[key] for key in ("score", "target_tpr", "threshold", "num_images", "tpr_interval")}
            calibration.append({**kept, "accepted": accepted})
    text = {"set", "role", "file", "nearest_negative"}
    whole = {"row", "label", "prediction"}
    table = pa.table(
        {
            name: pa.array(
                column,
                pa.string()
                if name in text
                else pa.int64()
                if name in whole
                else pa.float64()
                if name.startswith("p_value:")
                else pa.float32(),
            )
            for name, column in columns.items()
        }
    )
    return _results(table, values, present, sets, scores, labels, calibration, negatives), table


def _results(table, values, present, sets, scores, labels, calibration, negatives):
    frame = table.to_pandas()
    ood_sets = {name: role for name, (role, _) in present.items() if role in ("near", "far")}
    detection = []
    for score in scores:
        rows = []
        for name, role in ood_sets.items():
            found = detection_metrics(values[score, "id"], values[score, name], num_bootstrap=20)
            row = {"score": score, "set": name, "role": role, "num_id": found["num_id"], "num_ood": found["num_ood"]}
            for metric in METRICS:
                low, high = found[f"{metric}_interval"]
                row |= {metric: found[metric], f"{metric}_low": low, f"{metric}_high": high}
            rows.append(row)
        for role, roles in (("near", {"near"}), ("far", {"far"}), ("all", {"near", "far"})):
            those = [row for row in rows if row["role"] in roles]
            if those:
                means = {metric: float(np.mean([row[metric] for row in those])) for metric in METRICS}
                rows.append({"score": score, "set": f"mean of {role}", "role": role, **means})
        detection += rows
    accuracies = []
    for name, (role, count) in present.items():
        if role in ("id", "shifted"):
            those = frame[frame["set"] == name]
            value = accuracy(those["prediction"].to_numpy(), those["label"].to_numpy())
            accuracies.append(
                {"set": name, "role": role, "value": value, "low": value - 0.02, "high": value + 0.02, "count": count}
            )
    described = []
    for name, (role, count) in {**sets, **present}.items():
        there = name in present
        described.append(
            {
                "name": name,
                "role": role,
                "status": "ok" if there else "missing",
                "reason": "" if there else f"put it in data/{name}",
                "count": count if there else None,
                "expected": count,
                "skipped": {},
                "source": f"folder:{name}",
            }
        )
    published = [
        {
            "score": scores[0],
            "set": next(iter(sets)),
            "metric": "id_accuracy",
            "published": 66.7,
            "ours": None,
            "difference": None,
            "method": "MCM",
            "backbone": "ViT-B/16",
            "source": "table 1",
        },
        {
            "score": scores[0],
            "set": "mean of all",
            "metric": "auroc",
            "published": 90.0,
            "ours": 88.5,
            "difference": -1.5,
            "method": "MCM",
            "backbone": "ViT-B/16",
            "source": "table 1",
        },
    ]
    return {
        "format": "hf_oodclip evaluation 1",
        "benchmark": "fake",
        "title": "A fake run",
        "model": "some/model",
        "adapter": None,
        "labels": list(labels),
        "num_negatives": len(negatives) if negatives else 0,
        "sets": described,
        "accuracy": accuracies,
        "detection": detection,
        "calibration": calibration,
        "published": published,
        "seconds": {"images": 1.5},
        "environment": {"command": "evaluate.py --model x", "seed": 0, "versions": {"python": "3.11"}},
        "checksums": {"samples.parquet": "0" * 32},
    }


def write_run(folder: Path, results: dict[str, Any], samples: pa.Table) -> Path:
    """The part of a run folder that the runner writes."""
    write_as_the_runner(folder, results, samples)
    return folder
