"""OODCLIPForImageClassification: a CLIP checkpoint as a classifier that knows what it does not know."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

from . import encoders
from .calibration import Calibration
from .configuration_oodclip import OODCLIPConfig
from .errors import LabelError
from .image_features import iterate_image_embeds
from .loading import (
    NEGATIVES_FILE,
    Preprocessing,
    load_negatives_file,
    resolve_negatives,
    wrapped_config,
)
from .negatives import Negatives
from .ood_head import OODHead
from .scores import Score, ScoreInputs, get_score
from .templates import resolve_templates
from .text_bank import Average, Float32Module, TextBank, TextEncoder, check_labels

__all__ = ["OODCLIPForImageClassification", "OODCLIPPreTrainedModel", "OODImageClassifierOutput", "OODSimilarity"]

logger = logging.get_logger("hf_oodclip.modeling")


@dataclass
class OODImageClassifierOutput(ModelOutput):
    """What the model says about a batch of images.

    Args:
        loss: Cross-entropy, when `labels` were given.
        logits: CLIP logits over the labels, never over negatives, `[B, N]`.
        ood_score: Larger = more OOD, fp32, `[B]`.
        image_embeds: Projected image embeddings before normalisation, fp32, `[B, D]`.
        hidden_states: Of the vision tower, when asked for.
        attentions: Of the vision tower, when asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    ood_score: Tensor | None = None
    image_embeds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class OODSimilarity(nn.Module):
    """Cosines of images with labels and negatives, in fp32: the place where feature adapters act."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, image_embeds: Tensor, label_embeds: Tensor, negative_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[B, N]` and `[B, M]` cosines."""
        dtype = torch.promote_types(image_embeds.dtype, label_embeds.dtype)
        images = normalize(image_embeds.to(dtype), dim=-1)
        labels, negatives = (normalize(e.to(dtype), dim=-1) for e in (label_embeds, negative_embeds))
        return images @ labels.T, images @ negatives.T


class OODCLIPPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the models of this package."""

    config: OODCLIPConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["text_bank", "ood_head"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Float32Module):
            # Loading builds on the meta device: what a checkpoint lacks would else be raw memory.
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


class OODCLIPForImageClassification(OODCLIPPreTrainedModel):
    """A CLIP zero-shot classifier with negatives, an OOD score, and a calibrated decision.

    Example:
        >>> import hf_oodclip
        >>> model = OODCLIPForImageClassification.from_pretrained(
        ...     hf_oodclip.pocket_path(), labels=["goldfish", "school bus"], negatives=["gravel", "fog"]
        ... )
        >>> model.score.name
        'neglabel'
    """

    def __init__(self, config: OODCLIPConfig) -> None:
        super().__init__(config)
        from transformers import CLIPModel

        self.clip = CLIPModel._from_config(config.clip_config)
        dim = config.clip_config.projection_dim
        self.text_bank = TextBank(config.num_labels, config.num_negatives, dim)
        self.similarity = OODSimilarity(dim)
        self.ood_head = OODHead(config)
        self._negatives: Negatives | None = None
        self._preprocessing = Preprocessing(config.name_or_path or None)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.clip.text_model.get_input_embeddings()

    # ---- loading and saving -------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *model_args: Any,
        config: Any = None,
        labels: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        negatives: str | Path | Negatives | Iterable[str] | None = None,
        score: str | Score | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> "OODCLIPForImageClassification":
        """Load a plain CLIP checkpoint or a full OODCLIP checkpoint, from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            config: A ready `OODCLIPConfig`, when you have one.
            labels: Class names; a full checkpoint brings its own.
            templates: Name, template, or list of templates for the labels. By default those of the
                checkpoint, else "a photo of a {}.".
            negatives: `neglabel` or `krnft` (mined from WordNet for these labels), a file made by
                `oodclip mine`, a `Negatives`, or your own words.
            score: Name or `Score`; by default `neglabel` with negatives, else `mcm`.
            tokenizer: Tokenizer to use instead of the checkpoint's.
            kwargs: As in `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `revision`, ...).

        Raises:
            CheckpointError: The checkpoint is of another kind of model, or its negatives are gone.
            LabelError, TemplateError, NegativesError, UnknownNameError: What is wrong with the labels,
                templates, negatives or score.
            NonFiniteError: The text tower produces NaN.
        """
        if labels is not None:
            labels = check_labels(labels)
        preprocessing = Preprocessing(str(pretrained_model_name_or_path), kwargs, tokenizer)
        config, is_plain = wrapped_config(pretrained_model_name_or_path, config, kwargs)
        output_loading_info = kwargs.pop("output_loading_info", False)
        ignored = cls._keys_to_ignore_on_load_missing
        if is_plain:
            # A plain checkpoint has no bank by nature; a full one that lacks it must stay loud.
            cls._keys_to_ignore_on_load_missing = [r"^text_bank\.", r"^ood_head\."]
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, output_loading_info=True, **kwargs
            )
        finally:
            cls._keys_to_ignore_on_load_missing = ignored
        model.name_or_path = str(pretrained_model_name_or_path)
        model._preprocessing = preprocessing
        model._negatives = load_negatives_file(str(pretrained_model_name_or_path), model.config, kwargs)
        if score is not None:
            model.set_score(score)
        if labels is not None or templates is not None or negatives is not None:
            model.set_labels(labels if labels is not None else model.labels, templates, negatives)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a folder from which everything comes back: weights, bank, score, calibration, processor."""
        if kwargs.get("is_main_process", True) and not Path(save_directory).is_file():
            # Before the weights: an upload asked for by push_to_hub=True takes what is there by then.
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            if self._negatives is not None:
                self._negatives.save(Path(save_directory) / NEGATIVES_FILE)
            self._preprocessing.save(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    # ---- labels, negatives, score ---------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the logits."""
        return [self.config.id2label[index] for index in range(self.config.num_labels)]

    @property
    def negatives(self) -> Negatives | None:
        """The negatives in the text bank, with their provenance."""
        return self._negatives

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._preprocessing.tokenizer

    @property
    def image_processor(self) -> Any:
        """The checkpoint's image processor."""
        return self._preprocessing.image_processor

    def text_encoder(self, batch_size: int = 256) -> TextEncoder:
        """Return the text tower as a `TextEncoder`, for mining or your own text features."""
        return TextEncoder(self.clip, self.tokenizer, batch_size)

    def set_labels(
        self,
        labels: Sequence[str],
        templates: str | Sequence[str] | None = None,
        negatives: str | Path | Negatives | Iterable[str] | None = None,
        *,
        average: Average | None = None,
    ) -> None:
        """Replace labels, templates and negatives; calibrations made before are dropped.

        Args:
            labels: Class names. Duplicates are kept (their order is that of the logits) with a warning.
            templates: As in `from_pretrained`; None keeps the present ones.
            negatives: As in `from_pretrained`; None keeps the present ones, `[]` removes them.
            average: How a prompt ensemble is averaged; None keeps the present way.

        Raises:
            LabelError, TemplateError, NegativesError, NonFiniteError: See `from_pretrained`.
        """
        labels = check_labels(labels)
        duplicates = sorted({label for label in labels if labels.count(label) > 1})
        if duplicates:
            logger.warning(f"Duplicate labels, kept in order: {duplicates}. They share their probability.")
        if len(labels) == 1:
            logger.warning(
                "One label: softmax scores (mcm, msp, entropy, gen) have nothing to compare it with; "
                "max_logit, energy, delta_energy and neglabel work."
            )
        chosen = self.config.templates if templates is None else resolve_templates(templates)
        averaging = self.config.template_average if average is None else average
        encoder = self.text_encoder()
        label_embeds = encoder.embed(labels, chosen, averaging)  # type: ignore[arg-type]
        resolved = resolve_negatives(negatives, self._negatives, labels, chosen, encoder)
        negative_embeds = label_embeds[:0] if resolved is None else resolved.embed(encoder)

        self.text_bank.update(label_embeds, negative_embeds)
        self._negatives = resolved
        self.config.templates, self.config.template_average = list(chosen), averaging
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in reversed(list(enumerate(labels)))}
        self.config.num_negatives = len(negative_embeds)
        self.num_labels = len(labels)
        if self.ood_head.calibrations:
            logger.warning("The labels changed, so the calibration was dropped: calibrate again.")
            self.ood_head.set_calibrations([])

    @property
    def score(self) -> Score:
        """The score in use."""
        return self.ood_head.score

    def set_score(self, score: str | Score | None, **options: Any) -> None:
        """Choose the score; calibrations of other scores stay stored for when you switch back.

        Raises:
            UnknownNameError: No such score or option.
        """
        self.ood_head.set_score(score, **options)

    # ---- features, scores, decisions --------------------------------------------------------------

    def score_inputs(self, pixel_values: Tensor | None = None, image_embeds: Tensor | None = None) -> ScoreInputs:
        """Return all that the scores need, from pixels or from stored image embeddings: one image pass.

        Raises:
            LabelError: The model has no labels yet.
        """
        if self.config.num_labels == 0:
            raise LabelError(
                "The model has no labels: load it with labels=['cat', 'dog'], or call model.set_labels([...])."
            )
        if image_embeds is None:
            image_embeds, _ = encoders.encode_images(self.clip, pixel_values)  # type: ignore[arg-type]
        image_embeds = image_embeds.to(torch.promote_types(image_embeds.dtype, torch.float32))
        similarity, negative_similarity = self.similarity(
            image_embeds, self.text_bank.label_embeds, self.text_bank.negative_embeds
        )
        return ScoreInputs(
            similarity=similarity,
            negative_similarity=negative_similarity if self.config.num_negatives else None,
            image_embeds=image_embeds,
            logit_scale=self.logit_scale,
        )

    @property
    def logit_scale(self) -> float:
        """Factor between a cosine and a logit."""
        return float(self.clip.logit_scale.detach().float().exp())

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> OODImageClassifierOutput:
        """Classify images and score how OOD they are.

        Args:
            pixel_values: `[B, 3, H, W]` from the image processor.
            labels: Class indices `[B]`, for the loss.
            kwargs: Passed to the vision tower (`output_attentions`, `output_hidden_states`,
                `interpolate_pos_encoding`).

        Raises:
            LabelError: The model has no labels.
            ScoreInputError: The score needs something the model lacks, such as negatives.
            NonFiniteError: Features are NaN or infinite.
        """
        image_embeds, vision_output = encoders.encode_images(self.clip, pixel_values, **kwargs)
        inputs = self.score_inputs(image_embeds=image_embeds)
        logits = self.clip.logit_scale.exp().to(inputs.similarity.dtype) * inputs.similarity
        return OODImageClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            ood_score=self.score(inputs),
            image_embeds=inputs.image_embeds,
            hidden_states=vision_output.hidden_states,
            attentions=vision_output.attentions,
        )

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
        collected: dict[str, list[Tensor]] = {score.key: [] for score in chosen}
        for image_embeds in iterate_image_embeds(self, images, batch_size):
            inputs = self.score_inputs(image_embeds=image_embeds)
            for score in chosen:
                collected[score.key].append(score(inputs).cpu())
        return {key: torch.cat(parts) if parts else torch.empty(0) for key, parts in collected.items()}

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


