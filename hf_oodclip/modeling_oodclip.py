"""OODCLIPForImageClassification: a CLIP checkpoint as a classifier that knows what it does not know."""

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple, logging

from . import encoders
from .adapted_text import AdaptedTextMixin
from .adapter_loading import AdapterLoadingMixin, find_base
from .configuration_oodclip import OODCLIPConfig
from .decisions import OODDecisionMixin
from .errors import CheckpointError
from .loading import (
    Preprocessing,
    label_templates,
    load_negatives_file,
    resolve_negatives,
    wrapped_config,
)
from .negatives import Negatives
from .ood_head import OODHead
from .prompt_learner import OODPromptLearner
from .saving import SavingMixin
from .scores import Score
from .similarity import OODImageClassifierOutput, OODSimilarity
from .templates import resolve_templates
from .text_bank import Average, Float32Module, TextBank, TextEncoder, check_labels

__all__ = ["OODCLIPForImageClassification", "OODCLIPPreTrainedModel"]

logger = logging.get_logger("hf_oodclip.modeling")

# Whether a plain CLIP is being loaded: of this thread and load only, as several may run at once.
_loading_plain: ContextVar[bool] = ContextVar("_loading_plain", default=False)


class OODCLIPPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by the models of this package."""

    config: OODCLIPConfig
    base_model_prefix = "clip"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["text_bank", "ood_head", "similarity"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Float32Module):
            # Loading builds on the meta device: what a checkpoint lacks would else be raw memory.
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


class OODCLIPForImageClassification(  # type: ignore[misc]
    SavingMixin, AdapterLoadingMixin, AdaptedTextMixin, OODDecisionMixin, OODCLIPPreTrainedModel
):
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

        clip_config: Any = config.clip_config
        self.clip = CLIPModel._from_config(clip_config)
        dim = clip_config.projection_dim
        self.text_bank = TextBank(len(config.label_names), config.num_negatives, dim)
        self.prompt_learner = OODPromptLearner(clip_config.text_config.hidden_size, dim)
        self.similarity = OODSimilarity(dim)
        self._adapted: dict[bool, Any] = {}
        self.ood_head = OODHead(config)
        self._negatives: Negatives | None = None
        self._preprocessing = Preprocessing(config.name_or_path or None)
        self.post_init()
        if _loading_plain.get():
            # A plain checkpoint has no bank by nature; a full one that lacks it must stay loud.
            known = self._keys_to_ignore_on_load_missing or ()
            self._keys_to_ignore_on_load_missing = {*known, r"^text_bank\.", r"^ood_head\."}

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
        base: str | Path | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a plain CLIP checkpoint, a full OODCLIP checkpoint, or an adapter with its base.

        Args:
            pretrained_model_name_or_path: Folder or Hub id; an adapter's config names its base.
            config: A ready `OODCLIPConfig`, when you have one.
            labels: Class names; a full checkpoint brings its own.
            templates: Name, template, or list of templates for labels and mined words. By default
                those of the mining method or of the checkpoint, else "a photo of a {}.".
            negatives: `neglabel` or `krnft` (mined from WordNet for these labels as in that paper), a
                file made by `oodclip mine`, a `Negatives`, or your own words.
            score: Name or `Score`; by default `neglabel` with negatives, else `mcm`.
            tokenizer: Tokenizer to use instead of the checkpoint's.
            base: Of an adapter: the base to load, when it is elsewhere than its config says.
            kwargs: As in `PreTrainedModel.from_pretrained` (`dtype`, `device_map`, `revision`, ...).

        Raises:
            AdapterError: The adapter is incomplete, or does not fit its base or the labels.
            CheckpointError: The checkpoint is of another kind of model, or its negatives or its base are gone.
            LabelError, TemplateError, NegativesError, UnknownNameError: What is wrong with the labels,
                templates, negatives or score.
            NonFiniteError: The text tower produces NaN.
        """
        if labels is not None:
            labels = check_labels(labels)
        source = find_base(str(pretrained_model_name_or_path), kwargs, base)
        if source.adapter is not None and getattr(config, "name_or_path", None) == source.base:
            # The Auto classes have read the base's latest config, not that of the adapter's revision of it.
            config = None
        preprocessing = Preprocessing(source.base, source.options, tokenizer)
        config, is_plain = wrapped_config(source.base, config, source.options)
        if not is_plain:
            # Nobody has ever saved one as a pickle.
            source.options["use_safetensors"] = True
        output_loading_info = source.options.pop("output_loading_info", False)
        token = _loading_plain.set(is_plain)
        try:
            loaded: Any = super().from_pretrained(
                source.base, *model_args, config=config, output_loading_info=True, **source.options
            )
        finally:
            _loading_plain.reset(token)
        model, info = loaded
        lost = [name for name in info["missing_keys"] if name.startswith(("text_bank.", "ood_head."))]
        if lost:
            raise CheckpointError(f"{source.base} lacks {', '.join(sorted(lost))}: save it again.")
        model.name_or_path = source.base
        model._base_revision = None if Path(source.base).exists() else source.options.get("revision")
        model._preprocessing = preprocessing
        model._negatives = load_negatives_file(source.base, model.config, source.options)
        source.load_adapter_onto(model)
        if score is not None:
            model.set_score(score)
        if labels is not None or templates is not None or negatives is not None:
            model.set_labels(labels if labels is not None else model.labels, templates, negatives)
        return (model, info) if output_loading_info else model

    # ---- labels, negatives, score ---------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of the logits."""
        return self.config.label_names

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
        """Replace labels, templates and negatives; calibrations and fits made before are dropped.

        Args:
            labels: Class names. Duplicates are kept (their order is that of the logits) with a warning.
            templates: As in `from_pretrained`.
            negatives: As in `from_pretrained`; None keeps your own words and mines mined ones again for
                the new labels, `[]` removes them.
            average: How a prompt ensemble is averaged; None keeps the present way.

        Raises:
            AdapterError, LabelError, TemplateError, NegativesError, NonFiniteError: See `from_pretrained`.
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
        averaging: Any = self.config.template_average if average is None else average
        asked = None if templates is None else resolve_templates(templates)
        encoder = self.text_encoder()
        # The bank is the bare model's: adapters come on top of it, and go.
        with encoders.bare_text_tower(self.clip):
            resolved = resolve_negatives(negatives, self._negatives, labels, asked, encoder)
            chosen = label_templates(asked, self.config.label_templates, resolved)
            self._check_classes(labels, 0 if resolved is None else len(resolved))
            label_embeds = encoder.embed(labels, chosen, averaging)
            negative_embeds = label_embeds[:0] if resolved is None else resolved.embed(encoder, averaging)

        self.text_bank.update(label_embeds, negative_embeds)
        self._negatives = resolved
        self.config.label_templates, self.config.template_average = list(chosen), averaging
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in reversed(list(enumerate(labels)))}
        self.config.num_negatives = len(negative_embeds)
        self.num_labels = len(labels)
        if self.ood_head.calibrations:
            logger.warning("The labels changed, so the calibration was dropped: calibrate again.")
            self.ood_head.set_calibrations([])
        if self.ood_head.forget():
            logger.warning("The labels changed, so what the score was fitted to was dropped: call fit_score again.")

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
        score = self.score
        image_embeds, patch_embeds, vision_output = self.encode(pixel_values, [score], **kwargs)
        inputs = self.score_inputs(pixel_values, image_embeds, patch_embeds, score=score)
        logits = self.clip.logit_scale.exp().to(inputs.similarity.dtype) * inputs.similarity
        return OODImageClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            ood_score=score(inputs),
            image_embeds=inputs.image_embeds,
            hidden_states=vision_output.hidden_states,
            attentions=vision_output.attentions,
        )
