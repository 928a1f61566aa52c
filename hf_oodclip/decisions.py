"""Scores and calibrated decisions on top of a model that can turn images into score inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import encoders
from .calibration import Calibration
from .errors import ImageReadError, LabelError, NonFiniteError, ScoreInputError
from .image_features import iterate_batches, pixel_values_of
from .ood_head import OODHead
from .scores import Score, ScoreInputs, get_score, get_score_class, list_scores
from .scores.fitted import FittedScore

__all__ = ["OODDecisionMixin"]


class OODDecisionMixin:
    """Adds scores and calibration to a model with an `ood_head` that can compare images with its classes."""

    ood_head: OODHead

    if TYPE_CHECKING:
        clip: Any
        config: Any
        device: torch.device
        image_processor: Any

        def cosines(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]: ...

        def text_features(self, with_negatives: bool = True) -> tuple[Tensor, Tensor]: ...

        def training_cosines(
            self, image_embeds: Tensor, queries: Tensor | None = None, with_negatives: bool = True
        ) -> Any: ...

        def _prompts_need_images(self) -> bool: ...

    def score_inputs(
        self,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        patch_embeds: Tensor | None = None,
        *,
        score: Score | str | None = None,
    ) -> ScoreInputs:
        """Return what a score needs, from pixels or from stored image embeddings: one image pass.

        Args:
            pixel_values: `[B, 3, H, W]`. Scores that look at pixels or patches need them.
            image_embeds: Projected image embeddings `[B, D]`, instead or, to save a pass, besides.
            patch_embeds: Projected patch embeddings `[B, P, D]`, in the same way.
            score: The score the inputs are for; the one in use when None. All have the cosines and
                `image_embeds`.

        Raises:
            LabelError: The model has no labels yet.
        """
        score = self.score if score is None else get_score(score)
        if self.config.num_labels == 0:
            raise LabelError(
                "The model has no labels: load it with labels=['cat', 'dog'], or call model.set_labels([...])."
            )
        if not math.isfinite(self.logit_scale):
            raise NonFiniteError("logit_scale is NaN or infinite: the checkpoint's weights are damaged.")
        if pixel_values is not None and (image_embeds is None or self.misses_patches([score], patch_embeds)):
            image_embeds, patch_embeds, _ = self.encode(pixel_values, [score])
        if image_embeds is None:
            raise ScoreInputError("score_inputs needs pixel_values or image_embeds; give one of them.")
        image_embeds = image_embeds.to(torch.promote_types(image_embeds.dtype, torch.float32))
        similarity, negative_similarity = self.cosines(image_embeds)
        inputs = ScoreInputs(
            similarity=similarity,
            negative_similarity=negative_similarity if self.config.num_negatives else None,
            image_embeds=image_embeds,
            logit_scale=self.logit_scale,
        )
        return self._completed(inputs, score, pixel_values, patch_embeds)

    def encode(
        self, pixel_values: Tensor, scores: Sequence[Score], **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Return image embeddings, patch embeddings if a score needs them, and the vision tower's output."""
        if self.misses_patches(scores):
            return encoders.encode_images_and_patches(self.clip, pixel_values, **kwargs)
        image_embeds, output = encoders.encode_images(self.clip, pixel_values, **kwargs)
        return image_embeds, None, output

    @staticmethod
    def misses_patches(scores: Sequence[Score], patch_embeds: Tensor | None = None) -> bool:
        """Tell whether one of the scores needs patch embeddings that are not there."""
        return patch_embeds is None and any("patch_similarity" in score.needs for score in scores)

    def _completed(
        self, inputs: ScoreInputs, score: Score, pixel_values: Tensor | None, patch_embeds: Tensor | None
    ) -> ScoreInputs:
        """Add what this score needs besides what all have; what cannot be had stays None, for the score to name."""
        found: dict[str, Any] = {}
        if "patch_similarity" in score.needs and patch_embeds is not None:
            patches = patch_embeds.to(inputs.image_embeds.dtype)  # type: ignore[union-attr]
            cosines = self.training_cosines(inputs.image_embeds, patches, with_negatives=False)  # type: ignore[arg-type]
            found["patch_similarity"] = cosines.labels
        if "label_embeds" in score.needs and not self._prompts_need_images():
            found["label_embeds"] = self.text_features(with_negatives=False)[0]
        if "perturbed_similarity" in score.needs and pixel_values is not None:
            perturbed, _ = encoders.encode_images(self.clip, score.perturb(self, pixel_values))
            found["perturbed_similarity"] = self.cosines(perturbed.to(inputs.similarity.dtype))[0]
        return replace(inputs, **found) if found else inputs

    @property
    def logit_scale(self) -> float:
        """Factor between a cosine and a logit."""
        return float(self.clip.logit_scale.detach().float().exp())

    @property
    def score(self) -> Score:
        """The score in use."""
        return self.ood_head.score

    def set_score(self, score: str | Score | None, **options: Any) -> None:
        """Choose the score; calibrations of other scores stay stored for when you switch back.

        Raises:
            UnknownNameError: No such score or option.
        """
        self.ood_head.set_score(score, self.device, **options)

    def ood_scores(
        self, images: Any, scores: Sequence[str | Score] | None = None, batch_size: int = 32
    ) -> dict[str, Tensor]:
        """Return several scores of the same images from one image pass, `{score key: [n]}`.

        Args:
            images: Paths, PIL images, a 🤗 dataset with an image column, a `[n, 3, H, W]` tensor of
                pixel values, or a generator of images.
            scores: Names or `Score` objects; the score in use when None.
            batch_size: Images a forward pass.
        """
        chosen = [self.score] if scores is None else [get_score(score) for score in scores]
        chosen = list({score.key: score for score in chosen}.values())
        collected: dict[str, list[Tensor]] = {score.key: [] for score in chosen}
        for found in self._passes(images, chosen, batch_size):
            for score, inputs in zip(chosen, found, strict=True):
                collected[score.key].append(score(inputs).cpu())
        return {key: torch.cat(parts) if parts else torch.empty(0) for key, parts in collected.items()}

    def _passes(self, images: Any, scores: Sequence[Score], batch_size: int) -> Iterator[list[ScoreInputs]]:
        """Yield the inputs of every score for each batch of images, from one image pass, without gradients."""
        if batch_size < 1:
            raise ImageReadError(f"batch_size must be at least 1, got {batch_size}.")
        device, dtype = self.clip.visual_projection.weight.device, self.clip.dtype
        model: Any = self
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with torch.no_grad():
                for batch in iterate_batches(images, batch_size):
                    pixels = batch if isinstance(batch, Tensor) else pixel_values_of(self.image_processor, batch)
                    pixels = pixels.to(device, dtype)
                    image_embeds, patch_embeds, _ = self.encode(pixels, scores)
                    inputs = self.score_inputs(image_embeds=image_embeds, score="max_logit")
                    yield [self._completed(inputs, score, pixels, patch_embeds) for score in scores]
        finally:
            for module, training in modes:
                module.training = training

    def fit_score(
        self,
        images: Any,
        labels: Tensor | Sequence[int] | None = None,
        score: str | Score | None = None,
        batch_size: int = 32,
    ) -> Score:
        """Fit a score to ID images, make it the one in use, and return it.

        Args:
            images: ID training images, of the labels; anything `ood_scores` takes.
            labels: Class index of every image, for the scores that look at classes (`mahalanobis`,
                `rmds`).
            score: Name or `Score`, such as `get_score("knn", k=10)`; the one in use when None.
            batch_size: Images a forward pass.

        Raises:
            ScoreInputError: The score needs no fit, or cannot be fitted to these images.
        """
        chosen = self.score if score is None else get_score(score)
        if not isinstance(chosen, FittedScore):
            fitted = [name for name in list_scores() if issubclass(get_score_class(name), FittedScore)]
            raise ScoreInputError(f"Score {chosen.name!r} needs no fit. Those that do: {', '.join(fitted)}.")
        parts = [inputs for (inputs,) in self._passes(images, [chosen], batch_size)]
        if not parts:
            raise ScoreInputError(f"Score {chosen.name!r} was given no images to fit; give ID training images.")
        per_image = {"similarity", *chosen.needs} - {"label_embeds"}
        gathered: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in per_image
            if getattr(parts[0], name) is not None
        }
        # A new one, for the given score may be in use with another fit.
        fresh = get_score(chosen.name, **chosen.options)
        assert isinstance(fresh, FittedScore)
        fresh.fit(replace(parts[0], **gathered), labels)
        self.ood_head.set_score(fresh, self.device)
        return fresh

    def calibrate(
        self,
        id_images: Any,
        target_tpr: float = 0.95,
        *,
        score: str | Score | None = None,
        rule: str = "conformal",
        confidence: float = 0.95,
        batch_size: int = 32,
    ) -> Calibration:
        """Learn from ID images when to call an image OOD, and store it in the model.

        Args:
            id_images: Images of the labels that trained nothing; at least 20, better some hundreds.
                Anything `ood_scores` takes.
            target_tpr: Share of ID images to accept.
            score: Score to calibrate; the one in use when None.
            rule: Threshold rule, see `hf_oodclip.calibration.THRESHOLD_RULES`.
            confidence: Level of the stored interval of the true positive rate.
            batch_size: Images a forward pass.

        Raises:
            CalibrationError: Too few images, or a target they cannot support.
        """
        chosen = self.score if score is None else get_score(score)
        values = self.ood_scores(id_images, [chosen], batch_size)[chosen.key]
        calibration = Calibration.fit(values, chosen.key, target_tpr, rule, confidence)
        self.ood_head.add_calibration(calibration, self.device)
        return calibration

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of the score in use, or None before `calibrate`."""
        return self.ood_head.calibration_for(self.score)

    def set_calibration(self, calibration: Calibration) -> None:
        """Store a calibration made elsewhere, for the score in use.

        Raises:
            CalibrationError: It belongs to another score.
        """
        calibration.check_score(self.score.key)
        self.ood_head.add_calibration(calibration, self.device)
