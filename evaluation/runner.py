"""Runs a benchmark: one image pass a set, then every score from the features, sample by sample."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hf_oodclip.training.data import ImageSet
from torch import Tensor

from hf_oodclip import Score, get_score
from hf_oodclip.dataset_images import image_reader
from hf_oodclip.errors import DataError, OODCLIPError, RunError
from hf_oodclip.feature_store import FeatureStore
from hf_oodclip.scores import list_scores

from .benchmark import Benchmark, MissingSet, SetSpec, open_set
from .environment import describe_environment
from .measures import (
    ScoredSet,
    Settings,
    calibration_report,
    compare_published,
    fit_calibrations,
    measure_accuracy,
    measure_detection,
)
from .run_folder import sample_table

__all__ = ["FORMAT", "Settings", "chosen_scores", "evaluate_benchmark"]

FORMAT = "hf_oodclip evaluation 1"
# Most cosines held at once while scoring.
CHUNK_ELEMENTS = 2**23
# What `score_inputs` returns of stored embeddings whatever the score.
ALWAYS_THERE = {"similarity", "negative_similarity", "image_embeds"}


def evaluate_benchmark(
    model: Any,
    benchmark: Benchmark,
    settings: Settings,
    *,
    store: FeatureStore | None = None,
    accelerator: Any = None,
    root: Path | None = None,
    adapter: str | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], pa.Table, Callable[[str, int], Any]]:
    """Return what `results.json` holds, one row a sample, and a reader of the images.

    A set whose data are missing or cannot be used is reported and left out; only ID images must be there.

    Args:
        model: An `OODCLIPForImageClassification` with the benchmark's labels.
        benchmark: What to run.
        settings: How.
        store: Feature store; the one in the cache folder when None.
        accelerator: An `accelerate.Accelerator` whose processes share the image passes.
        root: Folder of data that the benchmark names by relative paths.
        adapter: The adapter the model has, for the results.
        say: Called with a line a set.

    Raises:
        RunError: The ID images are missing, or there is nothing to compare them with.
    """
    store, tell = store or FeatureStore(), say or (lambda line: None)
    start = time.monotonic()
    reports: list[dict[str, Any]] = []
    scored: dict[str, ScoredSet] = {}
    skipped_scores: dict[str, str] = {}
    for spec in benchmark.sets:
        report: dict[str, Any] = {
            "name": spec.name,
            "role": spec.role,
            "status": "ok",
            "reason": "",
            "count": 0,
            "expected": spec.count,
            "skipped": {},
            "source": spec.source or spec.image_list,
        }
        reports.append(report)
        try:
            images = open_set(spec, model.labels, root)
            scored[spec.name], skipped = _score_set(model, spec, images, settings, store, accelerator, skipped_scores)
            report["count"] = len(scored[spec.name].rows)
            report["skipped"] = {str(row): reason for row, reason in skipped.items()}
        except MissingSet as error:
            report["status"], report["reason"] = "missing", str(error)
        except OODCLIPError as error:
            report["status"], report["reason"] = "failed", str(error)
        if spec.count is not None and report["status"] == "ok" and report["count"] != spec.count:
            report["reason"] = f"{report['count']} images where the benchmark defines {spec.count}"
        tell(
            f"{spec.role:>11}  {spec.name}: {report['status']}, {report['count']} images. {report['reason']}".rstrip()
        )
    id_set = next((each for each in scored.values() if each.spec.role == "id"), None)
    if id_set is None:
        reason = next((report["reason"] for report in reports if report["role"] == "id"), "it names none")
        raise RunError(f"Benchmark {benchmark.name!r} cannot run without its ID images: {reason}")
    keys = [key for key in (score.key for score in settings.scores) if key not in skipped_scores]
    calibrations, reason = fit_calibrations(scored, keys, settings)
    for report in reports:
        if report["role"] == "calibration" and reason:
            report["reason"] = f"{report['reason']} {reason}".lstrip()
            tell(f"calibration  {report['name']}: not calibrated. {reason}")
    accuracies = [measure_accuracy(each, settings) for each in scored.values() if each.spec.role in ("id", "shifted")]
    detection = measure_detection(scored, id_set, keys, settings)
    results = {
        "format": FORMAT,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "model": str(model.name_or_path),
        "adapter": adapter,
        "labels": list(model.labels),
        "num_negatives": model.config.num_negatives,
        "id_filter": settings.id_filter,
        "full_spectrum": settings.full_spectrum,
        "sets": reports,
        "skipped_scores": skipped_scores,
        "accuracy": [each for each in accuracies if each is not None],
        "detection": detection,
        "calibration": [calibration_report(calibrations[key], key, scored) for key in calibrations],
        "published": compare_published(benchmark, detection, accuracies, adapter is not None),
        "seconds": {"total": round(time.monotonic() - start, 1)},
        "environment": {
            **describe_environment(settings.seed, model.image_processor),
            "num_processes": 1 if accelerator is None else accelerator.num_processes,
        },
    }
    negatives = None if model.negatives is None else model.negatives.texts
    samples = pa.concat_tables([sample_table(each, keys, calibrations, negatives) for each in scored.values()])
    readers = {name: image_reader(each.images.images) for name, each in scored.items()}
    return results, samples, lambda name, row: readers[name](row)


@torch.no_grad()
def _score_set(
    model: Any,
    spec: SetSpec,
    images: ImageSet,
    settings: Settings,
    store: FeatureStore,
    accelerator: Any,
    skipped_scores: dict[str, str],
) -> tuple[ScoredSet, dict[int, str]]:
    found = store.image_features(model, images.images, batch_size=settings.batch_size, accelerator=accelerator)
    if len(found) == 0:
        raise DataError(f"None of its {len(images)} images can be read.")
    predictions, confidence, negatives, scores = [], [], [], defaultdict(list)
    size = max(1, CHUNK_ELEMENTS // (len(model.labels) + model.config.num_negatives))
    for part in found.image_embeds.split(size):
        embeds = part.to(model.device)
        inputs = model.score_inputs(image_embeds=embeds, score="max_logit")
        best = torch.softmax(inputs.logit_scale * inputs.similarity, dim=-1).max(dim=-1)
        predictions.append(best.indices)
        confidence.append(best.values)
        if inputs.negative_similarity is not None:
            negatives.append(inputs.negative_similarity.argmax(dim=-1))
        for score in settings.scores:
            if score.key in skipped_scores:
                continue
            try:
                has_all = set(score.needs) <= ALWAYS_THERE
                own = inputs if has_all else model.score_inputs(image_embeds=embeds, score=score)
                scores[score.key].append(score(own))
            except OODCLIPError as error:
                skipped_scores[score.key] = str(error)
    labels = np.full(len(found), -1) if images.labels is None else np.asarray(images.labels)[found.rows.numpy()]
    values = {key: _joined(parts) for key, parts in scores.items() if key not in skipped_scores}
    nearest = _joined(negatives) if negatives else None
    each = ScoredSet(spec, images, found.rows, labels, _joined(predictions), _joined(confidence), nearest, values)
    return each, found.skipped


def _joined(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy()


def chosen_scores(names: str, model: Any) -> tuple[Score, ...]:
    """Return scores by comma-separated names, or those the model can compute for `all`.

    A score the model has in use comes with its options and its fit.

    Raises:
        UnknownNameError: No such score.
    """
    listed = list_scores() if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    own = model.score
    scores = [own if name == own.name else get_score(name) for name in dict.fromkeys(listed)]
    if names == "all":
        # What an online score says depends on the order and mix of all images: only on purpose.
        available = ALWAYS_THERE | {"label_embeds"}
        available -= set() if model.config.num_negatives else {"negative_similarity"}
        scores = [score for score in scores if set(score.needs) <= available and not score.online]
        scores = [score for score in scores if not score.requires_fit or score.state_dict()]
    return tuple(scores)
