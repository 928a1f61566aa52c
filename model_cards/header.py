"""The header of a card: YAML that the Hub reads, with the figures as a `model-index`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_oodclip.errors import CardError

from .bases import hub_id
from .escaping import one_line
from .evidence import ModelEvidence
from .measured import Measured, slug

__all__ = ["make_header", "read_header"]

_OURS, _UNTOUCHED = "Written by `oodclip card`", "[More Information Needed]"
_TAGS = ("hf_oodclip", "clip", "out-of-distribution-detection")
_METRICS = {
    "auroc": "AUROC",
    "fpr95_id_pos": "FPR95, ID positive: OOD images accepted where 95 % of ID images are",
    "fpr95_ood_pos": "FPR95, OOD positive: ID images rejected where 95 % of OOD images are caught",
}


def read_header(path: Path, overwrite: bool) -> dict[str, Any]:
    """Return what is kept of the header of a card that is there."""
    if not path.is_file():
        return {}
    # That a card has no header is nothing to warn of: it gets one.
    logger = logging.getLogger("huggingface_hub.repocard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CardError(f"{path} cannot be read as a card ({error}): mend its header, or remove it.") from error
    finally:
        logger.setLevel(level)
    if card.text.strip() and _OURS not in card.text and _UNTOUCHED not in card.text and not overwrite:
        raise CardError(
            f"{path} was written by hand: move it away, or replace it with --overwrite (overwrite=True); its header "
            "is kept."
        )
    kept = card.data.to_dict()
    for name in ("model-index", "eval_results", "model_name"):
        kept.pop(name, None)
    return kept


def make_header(
    model: ModelEvidence, measured: Sequence[Measured], earlier: Mapping[str, Any], name: str
) -> ModelCardData:
    fields = {"library_name": "transformers", **earlier, "pipeline_tag": "image-classification"}
    found = None if model.base is None else model.base.hub_id
    listed = earlier.get("tags") or []
    # PEFT names a local base by its path on this machine, in a tag too.
    tags = [tag for tag in ([listed] if isinstance(listed, str) else listed) if not str(tag).startswith("base_model:")]
    for key in ("base_model", "base_model_relation"):
        fields.pop(key, None)
    if found is not None:
        fields["base_model"] = found
    if model.adapter is not None:
        fields["library_name"] = "peft"
        if found is not None:
            fields["base_model_relation"] = "adapter"
            tags.append(f"base_model:adapter:{found}")
    data = hub_id(str(model.recipe.get("dataset", "")))
    if data is not None:
        fields["datasets"] = [data]
    fields["tags"] = list(dict.fromkeys([*_TAGS, *tags]))
    results = [each for one in measured for each in _eval_results(one)]
    if results:
        fields |= {"model_name": name, "eval_results": results}
    order = ("license", "library_name", "pipeline_tag", "base_model", "base_model_relation", "datasets", "tags")
    rest = sorted(set(fields) - set(order))
    return ModelCardData(**{key: fields[key] for key in (*order, *rest) if key in fields})


def _eval_results(measured: Measured) -> list[EvalResult]:
    results = measured.results
    sources = {each["name"]: str(each.get("source") or "") for each in results["sets"]}

    def result(row: Mapping[str, Any], metric: str, title: str) -> EvalResult:
        is_accuracy, name = metric == "accuracy", one_line(row["set"])
        low, high = (row.get(end if is_accuracy else f"{metric}_{end}") for end in ("low", "high"))
        arguments: dict[str, Any] = {"unit": "fraction of 1"}
        if low is not None and high is not None:
            arguments["interval_95"] = [round(float(low), 4), round(float(high), 4)]
        if not is_accuracy:
            arguments |= {"score": row["score"], "num_id": row["num_id"], "num_ood": row["num_ood"]}
        return EvalResult(
            task_type="image-classification",
            task_name="Image classification" if is_accuracy else "Out-of-distribution detection",
            # Sets of one type and configuration would be merged into one.
            dataset_type=hub_id(sources.get(row["set"], "")) or slug(str(results["benchmark"])),
            dataset_name=f"{name} ({row['role']}{'' if is_accuracy else ' OOD'}), {one_line(results['title'])}",
            dataset_config=name,
            metric_type=metric,
            metric_name=f"{title} (fraction of 1)",
            metric_value=round(float(row["value" if is_accuracy else metric]), 4),
            metric_args=arguments,
        )

    found = [result(row, "accuracy", "Accuracy") for row in results["accuracy"]]
    return found + [result(row, metric, title) for row in measured.detection for metric, title in _METRICS.items()]
