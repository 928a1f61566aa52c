"""From the scores of every image to accuracy, detection metrics, calibration and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hf_oodclip.training.data import ImageSet
from torch import Tensor

from hf_oodclip import Calibration, Score
from hf_oodclip.errors import CalibrationError, RunError, unknown_name
from hf_oodclip.metrics import accuracy, detection_metrics

from .benchmark import Benchmark, SetSpec

__all__ = [
    "ScoredSet",
    "Settings",
    "calibration_report",
    "compare_published",
    "fit_calibrations",
    "measure_accuracy",
    "measure_detection",
]

ID_FILTERS = ("all", "correct")
METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_id_pos", "fpr95_ood_pos")


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run, besides model and data.

    Args:
        scores: Scores to compute; those the model cannot give are reported as skipped.
        id_filter: `all` ID images count, or only `correct`ly classified ones, as CRoFT has it.
        full_spectrum: Count covariate-shifted images as ID too, as OpenOOD's full spectrum does.
        target_tpr: Share of ID images the calibration accepts.
        num_bootstrap: Resamples for intervals; 0 for none.
        batch_size: Images a forward pass.
        seed: Seed of the bootstrap.

    Raises:
        RunError: No scores, one of them twice, or a number out of range.
        UnknownNameError: No such ID filter.
    """

    scores: tuple[Score, ...]
    id_filter: str = "all"
    full_spectrum: bool = False
    target_tpr: float = 0.95
    num_bootstrap: int = 1000
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        keys = [score.key for score in self.scores]
        if not keys or len(set(keys)) < len(keys):
            raise RunError(f"scores must name at least one score and none twice, got {', '.join(keys) or 'none'}.")
        if self.id_filter not in ID_FILTERS:
            raise unknown_name("ID filter", self.id_filter, ID_FILTERS)
        if not 0 < self.target_tpr < 1:
            raise RunError(f"target_tpr must be between 0 and 1, got {self.target_tpr}; 0.95 accepts 95 %.")
        for name, lowest in (("num_bootstrap", 0), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise RunError(f"{name} must be at least {lowest}, got {getattr(self, name)}.")


@dataclass
class ScoredSet:
    """One set after its image pass."""

    spec: SetSpec
    images: ImageSet
    rows: Tensor
    labels: np.ndarray
    predictions: np.ndarray
    confidence: np.ndarray
    nearest_negative: np.ndarray | None
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def id_rows(self, id_filter: str) -> np.ndarray:
        """Return which images count as ID."""
        if id_filter == "all":
            return np.ones(len(self.labels), dtype=bool)
        return self.predictions == self.labels


def measure_accuracy(each: ScoredSet, settings: Settings) -> dict[str, Any] | None:
    if (each.labels < 0).any():
        return None
    right = (each.predictions == each.labels).astype(float)
    result = {
        "set": each.spec.name,
        "role": each.spec.role,
        "value": accuracy(each.predictions, each.labels),
        "count": len(right),
    }
    if settings.num_bootstrap:
        generator = np.random.default_rng(settings.seed)
        draws = generator.binomial(len(right), right.mean(), settings.num_bootstrap) / len(right)
        result["low"], result["high"] = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
    return result


def measure_detection(
    scored: Mapping[str, ScoredSet], id_set: ScoredSet, keys: list[str], settings: Settings
) -> list[dict[str, Any]]:
    id_sets = [id_set]
    if settings.full_spectrum:
        id_sets += [each for each in scored.values() if each.spec.role == "shifted"]
    rows: list[dict[str, Any]] = []
    if not any(each.id_rows(settings.id_filter).any() for each in id_sets):
        raise RunError("No ID image is classified correctly, so id_filter='correct' leaves none: use 'all'.")
    for key in keys:
        id_values = np.concatenate([each.scores[key][each.id_rows(settings.id_filter)] for each in id_sets])
        own = []
        for name, each in scored.items():
            if each.spec.role not in ("near", "far"):
                continue
            found = detection_metrics(
                id_values, each.scores[key], num_bootstrap=settings.num_bootstrap, seed=settings.seed
            )
            row: dict[str, Any] = {"score": key, "set": name, "role": each.spec.role}
            row |= {"num_id": len(id_values), "num_ood": len(each.scores[key])}
            for metric in METRICS:
                row[metric] = found[metric]
                if settings.num_bootstrap:
                    row[f"{metric}_low"], row[f"{metric}_high"] = found[f"{metric}_interval"]  # type: ignore[misc]
            own.append(row)
        rows += own
        roles = {row["role"] for row in own}
        groups = {role: [row for row in own if row["role"] == role] for role in ("near", "far") if role in roles}
        if len(groups) > 1:
            groups["all"] = own
        for role, members in groups.items():
            if len(members) > 1 or role == "all":
                means = {metric: float(np.mean([row[metric] for row in members])) for metric in METRICS}
                rows.append({"score": key, "set": f"mean of {role}", "role": role, **means})
    return rows


def fit_calibrations(
    scored: Mapping[str, ScoredSet], keys: list[str], settings: Settings
) -> tuple[dict[str, Calibration], str]:
    """Return the calibration of each score, and why there are none although there is a set to calibrate on."""
    source = next((each for each in scored.values() if each.spec.role == "calibration"), None)
    if source is None:
        return {}, ""
    try:
        fitted = {
            key: Calibration.fit(
                torch.from_numpy(source.scores[key]), key, settings.target_tpr, warn_if_few=key == keys[0]
            )
            for key in keys
        }
    except CalibrationError as error:
        return {}, str(error)
    return fitted, ""


def calibration_report(calibration: Calibration, key: str, scored: Mapping[str, ScoredSet]) -> dict[str, Any]:
    accepted = {
        name: float(1 - calibration.is_ood(torch.from_numpy(each.scores[key])).float().mean())
        for name, each in scored.items()
        if each.spec.role != "calibration"
    }
    return {**calibration.to_dict(), "accepted": accepted}


def compare_published(
    benchmark: Benchmark,
    detection: list[dict[str, Any]],
    accuracies: list[dict[str, Any] | None],
    is_adapted: bool,
) -> list[dict[str, Any]]:
    """Return published figures beside ours; those of adapters are compared with runs with an adapter only."""
    found = {(row["score"], row["set"]): row for row in detection}
    by_set = {row["set"]: row["value"] for row in accuracies if row is not None}
    rows = []
    for each in benchmark.published:
        roles = {"near": ("near",), "far": ("far",), "all": ("near", "far")}.get(each.set)
        names = [spec.name for spec in benchmark.ood_sets if spec.role in roles] if roles else [each.set]
        if each.metric == "id_accuracy":
            value = by_set.get(each.set)
        else:
            # A mean over fewer sets is another figure.
            members = [found[each.score, name] for name in names if (each.score, name) in found]
            whole = bool(names) and len(members) == len(names)
            value = float(np.mean([row[each.metric] for row in members])) if whole else None
        comparable = value is not None and bool(each.adapter) == is_adapted
        ours = 100 * value if comparable else None  # type: ignore[operator]
        rows.append(
            {
                "score": each.score,
                "set": each.set,
                "metric": each.metric,
                "published": each.value,
                "ours": ours,
                "difference": None if ours is None else ours - each.value,
                "method": each.method,
                "backbone": each.backbone,
                "source": each.source,
            }
        )
    return rows
