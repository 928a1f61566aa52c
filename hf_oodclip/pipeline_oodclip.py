"""The `ood-image-classification` pipeline: an image in, a label and a decision out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import logging

from .calibration import Calibration
from .errors import LabelError, ScoreInputError, unknown_name
from .image_features import pixel_values_of
from .scores import Score, get_score

__all__ = ["OODImageClassificationPipeline"]

logger = logging.get_logger("hf_oodclip.pipeline")

_OPTIONS = ("score", "threshold", "timeout", "top_k")


class OODImageClassificationPipeline(Pipeline):
    """Classifies images with a CLIP model and says which of them are none of the labels.

    Made by `pipeline("ood-image-classification", model=...)` after `import hf_oodclip`. A plain CLIP
    checkpoint gets its labels by `labels=[...]` (and `templates=`, `negatives=`).

    Calling it takes an image (path, URL, base64, PIL image, uint8 array), a list of images, a dataset
    (`KeyDataset`) or a generator, and the options

    * `top_k`: how many labels to return; with more than 1 the others are under `labels`;
    * `score`: name of a score, or a `Score`, instead of the model's own;
    * `threshold`: call an image OOD above this `ood_score`, instead of by calibration;
    * `timeout`: seconds to wait for a URL;
    * `batch_size`: images a forward pass.

    It returns one dict an image: `label`, `score` (its softmax probability over the labels, in
    [0, 1]), `ood_score` (larger = more OOD), `p_value` and `is_ood` (None before the score in use is
    calibrated), and `nearest_negative` where the model has negatives.

    Example:
        >>> import hf_oodclip
        >>> from PIL import Image
        >>> from transformers import pipeline
        >>> classifier = pipeline(
        ...     "ood-image-classification", model=hf_oodclip.pocket_path(), labels=["goldfish", "school bus"]
        ... )
        >>> sorted(classifier(Image.new("RGB", (64, 64), "orange")))
        ['is_ood', 'label', 'ood_score', 'p_value', 'score']
    """

    model: Any
    _registered_impl: dict[str, Any]
    _load_processor: Any = False
    # None: one is looked for, and where there is none it is the model's.
    _load_image_processor: Any = None
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(
        self,
        *args: Any,
        labels: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        negatives: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Not isinstance: a PEFT wrapper hands on what it does not have itself.
        if not hasattr(self.model, "score_inputs"):
            raise ScoreInputError(
                "The ood-image-classification pipeline needs an OODCLIPForImageClassification, got "
                f"{type(self.model).__name__}."
            )
        if self.image_processor is None:
            self.image_processor = self.model.image_processor
        if labels is not None or templates is not None or negatives is not None:
            self.model.set_labels(self.model.labels if labels is None else labels, templates, negatives)
        if self.model.config.num_labels == 0:
            raise LabelError("The model has no labels: pipeline(..., labels=['cat', 'dog']) sets them.")
        self._hinted: set[str] = set()

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:  # type: ignore[override]
        for name in options:
            if name not in _OPTIONS:
                raise unknown_name("option of the ood-image-classification pipeline", name, _OPTIONS)
        preprocess = {"timeout": options["timeout"]} if "timeout" in options else {}
        forward: dict[str, Any] = {}
        if options.get("score") is not None:
            forward["score"] = get_score(options["score"])
        postprocess: dict[str, Any] = {}
        if "top_k" in options:
            top_k = options["top_k"]
            if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
                raise ScoreInputError(f"top_k must be a positive whole number or None for all, got {top_k!r}.")
            postprocess["top_k"] = top_k
        threshold = options.get("threshold")
        if threshold is not None and (not isinstance(threshold, int | float) or math.isnan(threshold)):
            raise ScoreInputError(f"threshold must be a number or None, got {threshold!r}.")
        if "threshold" in options:
            postprocess["threshold"] = options["threshold"]
        if "score" in forward:
            postprocess["score"] = forward["score"]
        return preprocess, forward, postprocess

    def __call__(self, images: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Classify one image (a dict back) or many (a list or an iterator of dicts back)."""
        if isinstance(images, Iterable) and not isinstance(images, str | list | dict):
            kind = type(images)
            if kind.__module__.startswith("datasets.") and kind.__name__ == "Column":
                images = list(images)
            elif kind.__module__.startswith("datasets.") and kind.__name__ == "IterableColumn":
                images = (image for image in images)
        return super().__call__(images, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write model and image processor, and no code: who loads it imports this package."""
        self.model.save_pretrained(save_directory, **kwargs)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(save_directory)

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, torch.Tensor]:  # type: ignore[override]
        pixel_values = pixel_values_of(self.image_processor, [image], timeout)
        return {"pixel_values": pixel_values.to(self.dtype)}

    def _forward(self, inputs: Any, score: Score | None = None) -> Any:  # type: ignore[override]
        found = self.model.score_inputs(inputs["pixel_values"], score=score)
        outputs = {
            "probabilities": torch.softmax(found.logit_scale * found.similarity, dim=-1),
            "ood_score": (score or self.model.score)(found),
        }
        if found.negative_similarity is not None:
            outputs["nearest_negative"] = found.negative_similarity.argmax(dim=-1)
        return outputs

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, torch.Tensor],
        top_k: int | None = 1,
        threshold: float | None = None,
        score: Score | None = None,
    ) -> dict[str, Any]:
        probabilities = outputs["probabilities"][0]
        count = len(probabilities) if top_k is None else min(top_k, len(probabilities))
        values, indices = probabilities.topk(count)
        ranked = [
            {"label": self.model.config.id2label[index], "score": value}
            for value, index in zip(values.tolist(), indices.tolist(), strict=True)
        ]
        ood_score = outputs["ood_score"][0]
        calibration = self._calibration(score or self.model.score, threshold)
        p_value = None if calibration is None else float(calibration.p_values(ood_score))
        if threshold is not None:
            is_ood: bool | None = bool(ood_score > threshold)
        else:
            is_ood = None if calibration is None else bool(calibration.is_ood(ood_score))
        result = {**ranked[0], "ood_score": float(ood_score), "p_value": p_value, "is_ood": is_ood}
        if "nearest_negative" in outputs:
            result["nearest_negative"] = self.model.negatives.texts[int(outputs["nearest_negative"][0])]
        if top_k is None or top_k > 1:
            result["labels"] = ranked
        return result

    def _calibration(self, score: Score, threshold: float | None) -> Calibration | None:
        calibration = self.model.ood_head.calibration_for(score)
        if calibration is None and threshold is None and score.key not in self._hinted:
            self._hinted.add(score.key)
            made = [c.score for c in self.model.ood_head.calibrations]
            logger.warning(
                f"The score {score.key!r} is not calibrated, so is_ood and p_value are None"
                f"{f' (calibrated: {made})' if made else ''}: call model.calibrate(id_images), run "
                "`oodclip calibrate`, or pass threshold=."
            )
        return calibration
