"""Measures a model on held-out features: ID accuracy, and detection of each OOD set by each score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_oodclip.metrics import accuracy, auroc, fpr95_id_pos, fpr95_ood_pos
from hf_oodclip.scores import ScoreInputs, get_score

__all__ = ["METRIC_DIRECTIONS", "measure", "score_inputs_of"]

# Whether larger is better.
METRIC_DIRECTIONS = {"id_accuracy": True, "auroc": True, "fpr95": False}


@torch.no_grad()
def score_inputs_of(model: Any, image_embeds: Tensor, batch_size: int = 256) -> list[ScoreInputs]:
    """Return the score inputs of stored image embeddings, a batch at a time."""
    training = model.training
    model.eval()
    try:
        return [model.score_inputs(image_embeds=part.to(model.device)) for part in image_embeds.split(batch_size)]
    finally:
        model.train(training)


def measure(
    model: Any, features: dict[str, tuple[Tensor, Tensor | None]], scores: list[str] | None = None
) -> dict[str, Any]:
    """Return what the sets say about the model.

    Args:
        model: The model, with its adapter.
        features: Image embeddings and labels by name of the set; ID under `id`.
        scores: Names of scores; the one in use when None.

    Returns:
        `id_accuracy`; under `detection`, AUROC and FPR95 (both conventions) by score and OOD set; and
        `auroc`, `fpr95`, the means over the OOD sets by the first score. What has no set is missing.
    """
    chosen = [model.score] if scores is None else [get_score(name) for name in scores]
    inputs = {name: score_inputs_of(model, embeds) for name, (embeds, _) in features.items()}
    found: dict[str, Any] = {}
    if "id" not in inputs:
        return found
    labels = features["id"][1]
    if labels is not None:
        predictions = torch.cat([part.similarity.argmax(-1).cpu() for part in inputs["id"]])
        found["id_accuracy"] = accuracy(predictions.numpy(), labels.numpy())
    values = {
        score.key: {name: torch.cat([score(part).cpu() for part in parts]).numpy() for name, parts in inputs.items()}
        for score in chosen
    }
    oods = [name for name in features if name != "id"]
    found["detection"] = {
        key: {
            name: {
                metric.__name__: float(metric(by_set["id"], by_set[name]))
                for metric in (auroc, fpr95_id_pos, fpr95_ood_pos)
            }
            for name in oods
        }
        for key, by_set in values.items()
    }
    if oods:
        first = found["detection"][chosen[0].key].values()
        found["auroc"] = sum(each["auroc"] for each in first) / len(oods)
        found["fpr95"] = sum(each["fpr95_id_pos"] for each in first) / len(oods)
    return found
