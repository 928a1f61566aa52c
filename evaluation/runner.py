"""Runs a benchmark: one image pass a set, then every score from the features, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hf_oodclip.training.data import ImageSet
from torch import Tensor

from hf_oodclip import Score, get_score
from hf_oodclip.dataset_images import image_reader
from hf_oodclip.encoders import vision_tower_fingerprint
from hf_oodclip.errors import DataError, OODCLIPError, RunError
from hf_oodclip.feature_store import FeatureRows, FeatureStore
from hf_oodclip.scores import list_scores

from .benchmark import Benchmark, MissingSet, SetSpec, open_set
from .environment import describe_environment
from .fingerprint import describe_fingerprint
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
# Most cosines, and most features, held at once while scoring.
CHUNK_ELEMENTS = 2**22
# What `score_inputs` returns of stored embeddings.
FROM_EMBEDDINGS = {"similarity", "negative_similarity", "image_embeds", "label_embeds"}


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
    tower = vision_tower_fingerprint(model.clip)
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
            shards = store.image_shards(
                model, images.images, batch_size=settings.batch_size, accelerator=accelerator, tower=tower
            )
            scored[spec.name], skipped = _score_set(model, spec, images, settings.scores, shards, skipped_scores)
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
        "fingerprint": describe_fingerprint(model, adapter),
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
    chosen: tuple[Score, ...],
    shards: Iterable[FeatureRows],
    skipped_scores: dict[str, str],
) -> tuple[ScoredSet, dict[int, str]]:
    # Room for all results is taken before: kept ones between the large tensors of each part would keep their memory.
    rows, predictions, nearest = (np.empty(len(images), dtype=np.int64) for _ in range(3))
    confidence = np.empty(len(images), dtype=np.float32)
    scores = {score.key: np.empty(len(images), dtype=np.float32) for score in chosen}
    # All that a score may ask of stored embeddings, so that the cosines are computed once for all scores.
    asked = next((score for score in chosen if "label_embeds" in score.needs), "max_logit")
    num_texts = len(model.labels) + model.config.num_negatives
    skipped: dict[int, str] = {}
    count = 0
    for numbers, embeds in _parts(shards, num_texts, skipped):
        part = slice(count, count := count + len(embeds))
        inputs = model.score_inputs(image_embeds=embeds.to(model.device), score=asked)
        best = torch.softmax(inputs.logit_scale * inputs.similarity, dim=-1).max(dim=-1)
        rows[part], predictions[part], confidence[part] = numbers, best.indices.cpu(), best.values.cpu()
        if inputs.negative_similarity is not None:
            nearest[part] = inputs.negative_similarity.argmax(dim=-1).cpu()
        for score in chosen:
            if score.key in skipped_scores:
                continue
            try:
                scores[score.key][part] = score(inputs).cpu()
            except OODCLIPError as error:
                skipped_scores[score.key] = str(error)
    if count == 0:
        reason = next(iter(skipped.values()), "there are none")
        raise DataError(f"None of its {len(images)} images can be read, the first for this: {reason}")
    each = ScoredSet(
        spec,
        images,
        torch.from_numpy(rows[:count]),
        np.full(count, -1) if images.labels is None else np.asarray(images.labels)[rows[:count]],
        predictions[:count],
        confidence[:count],
        nearest[:count] if model.config.num_negatives else None,
        {key: values[:count] for key, values in scores.items() if key not in skipped_scores},
    )
    return each, skipped


def _parts(shards: Iterable[FeatureRows], num_texts: int, skipped: dict[int, str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and image embeddings, as many at a time as memory allows, however many a shard has."""
    rows: list[Tensor] = []
    embeds: list[Tensor] = []
    for shard in shards:
        skipped |= shard.skipped
        rows.append(torch.tensor(shard.rows, dtype=torch.int64))
        embeds.append(shard.tensors["image_embeds"])
        size = max(1, CHUNK_ELEMENTS // max(num_texts, embeds[0].shape[1]))
        if sum(map(len, rows)) >= size:
            *whole, last = zip(torch.cat(rows).split(size), torch.cat(embeds).split(size), strict=True)
            yield from whole
            rows, embeds = [last[0]], [last[1]]
    if sum(map(len, rows)):
        yield torch.cat(rows), torch.cat(embeds)


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
        available = FROM_EMBEDDINGS - (set() if model.config.num_negatives else {"negative_similarity"})
        scores = [score for score in scores if set(score.needs) <= available and not score.online]
        scores = [score for score in scores if not score.requires_fit or score.state_dict()]
    return tuple(scores)
