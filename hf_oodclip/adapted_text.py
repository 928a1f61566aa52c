"""Text features under the active adapters: as the text bank has them, or made anew where an adapter changes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging

from . import encoders
from .errors import CheckpointError
from .similarity import TrainingCosines

__all__ = ["AdaptedTextMixin"]

logger = logging.get_logger("hf_oodclip.adapted_text")

# Prompts a pass of the text tower: what it keeps for the backward is bounded by this.
MAX_PROMPTS = 512

# Texts of one kind with the templates that prompt them.
Texts = list[tuple[Sequence[str], Sequence[str]]]


class AdaptedTextMixin:
    """Gives a model cosines under whatever adapters are active: feature maps, context prompts, tuned towers.

    The text bank always holds the features of the bare model, so that switching adapters cannot leave it
    stale. Where an adapter changes the text features, they are made once and kept until it changes.
    """

    if TYPE_CHECKING:
        clip: Any
        config: Any
        text_bank: Any
        similarity: Any
        prompt_learner: Any
        text_encoder: Any

        @property
        def labels(self) -> list[str]: ...

        @property
        def negatives(self) -> Any: ...

        @property
        def tokenizer(self) -> Any: ...

        _adapted: dict[bool, tuple[Any, Tensor, Tensor]]

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name == "peft_config":
            self._follow_merged_weights()

    def cosines(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines of images `[B, D]` with labels, `[B, N]`, and negatives, `[B, M]`."""
        if not self._prompts_need_images():
            return self.similarity(image_embeds, *self.text_features())
        parts = [self.similarity(images, *self._text_features_of(images)) for images in self._chunks(image_embeds)]
        labels, negatives = zip(*parts, strict=True)
        return torch.cat(labels), torch.cat(negatives)

    def training_cosines(
        self, image_embeds: Tensor, queries: Tensor | None = None, with_negatives: bool = True
    ) -> TrainingCosines:
        """Return what the losses need: cosines, and how far the text features have moved, with gradients.

        Args:
            image_embeds: The images, which move the text features of a conditional adapter, `[B, D]`.
            queries: Features to compare instead of the images, such as crops, `[B, Q, D]`.
            with_negatives: Leave the negatives out when False; making their features can be slow.
        """
        if not self._prompts_need_images():
            labels, negatives = self.text_features(with_negatives)
            return self._compare(image_embeds, queries, labels, negatives)
        parts = []
        for rows in self._chunks(torch.arange(len(image_embeds))):
            images = image_embeds[rows]
            labels, negatives = self._text_features_of(images, with_negatives)
            parts.append(self._compare(images, None if queries is None else queries[rows], labels, negatives))
        return TrainingCosines(
            *(_joined([getattr(part, field.name) for part in parts], parts) for field in fields(parts[0]))
        )

    def text_features(self, with_negatives: bool = True) -> tuple[Tensor, Tensor]:
        """Return the text features of labels `[N, D]` and negatives `[M, D]` under the active adapters.

        Feature maps (NFT, TaskRes, ...) act later, on the cosines.
        """
        label_embeds = self._features(is_negative=False)
        return label_embeds, self._features(is_negative=True) if with_negatives else label_embeds[:0]

    # ---- what the adapters change -----------------------------------------------------------------

    def _features(self, is_negative: bool) -> Tensor:
        """Return the text features that no image moves: the bank's where nothing changes them."""
        bank = self.text_bank
        embeds = bank.negative_embeds if is_negative else bank.label_embeds
        if len(embeds) and (self._uses_context(is_negative) or self._tower_adapters()):
            return self._adapted_features(is_negative)
        return embeds

    def _tower_adapters(self) -> str:
        # Looking through the text tower costs something for every batch: only where there is an adapter.
        return encoders.text_tower_adapters(self.clip) if hasattr(self, "peft_config") else ""

    def _prompt_parameters(self) -> list[Tensor]:
        name = self.prompt_learner.acting_adapter()
        named = [] if name is None else self.prompt_learner.named_parameters()
        return [value for key, value in named if key.endswith(f".{name}")]

    def _tower_parameters(self) -> list[tuple[str, Tensor]]:
        return [*self.clip.text_model.named_parameters(), *self.clip.text_projection.named_parameters()]

    def _adaptation(self, is_negative: bool) -> tuple[Any, Tensor]:
        """Return a mark of all that decides the adapted text features, and the adapters' values."""
        tower, adapters = self._tower_parameters(), getattr(self, "peft_config", {}).keys()
        values = [value for key, value in tower if value.requires_grad or adapters & set(key.split("."))]
        with_context = self._uses_context(is_negative)
        if with_context:
            values += self._prompt_parameters()
        device = self.text_bank.label_embeds.device
        # The values themselves: a fused optimizer changes them without a trace in their versions.
        snapshot = torch.cat([value.detach().flatten().to(device) for value in [torch.empty(0), *values]])
        mark = (
            self.prompt_learner.config if with_context else None,
            self._tower_adapters(),
            encoders.text_tower_state(self.clip),
            [(tuple(texts), tuple(templates)) for texts, templates in self._texts(is_negative)],
            self.config.template_average,
            (snapshot.dtype, device),
        )
        return mark, snapshot

    def _prompts_need_images(self) -> bool:
        return self.prompt_learner.acting_adapter() is not None and self.prompt_learner.config.conditional

    def _uses_context(self, is_negative: bool) -> bool:
        learner = self.prompt_learner
        return learner.acting_adapter() is not None and not (is_negative and learner.config.negative_context == "none")

    def _texts(self, is_negative: bool) -> Texts:
        if not is_negative:
            return [(self.labels, self.config.label_templates)]
        return [(words, self.negatives.templates[kind]) for kind, words in self.negatives.words.items()]

    def _adapted_features(self, is_negative: bool) -> Tensor:
        tunable = [value for _, value in self._tower_parameters()]
        if self._uses_context(is_negative):
            tunable += self._prompt_parameters()
        if torch.is_grad_enabled() and any(value.requires_grad for value in tunable):
            return self._make_features(is_negative)
        mark, snapshot = self._adaptation(is_negative)
        known = self._adapted.get(is_negative)
        if known is None or known[0] != mark or not torch.equal(known[1], snapshot):
            training, device = self.clip.training, self.text_bank.label_embeds.device.type
            self.clip.eval()
            try:
                # What is kept serves later calls as well, of whatever precision or with gradients.
                with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
                    known = (mark, snapshot, self._make_features(is_negative))
            finally:
                self.clip.train(training)
            self._adapted[is_negative] = known
        return known[2]

    def _make_features(self, is_negative: bool) -> Tensor:
        texts = self._texts(is_negative)
        if self._uses_context(is_negative):
            return self._with_context([text for listed, _ in texts for text in listed], is_negative)
        if not torch.is_grad_enabled():
            encoder, average = self.text_encoder(), self.config.template_average
            parts = [encoder.embed(listed, templates, average) for listed, templates in texts]
            return torch.cat(parts).to(self.text_bank.label_embeds)
        return torch.cat([self._with_templates(listed, templates) for listed, templates in texts])

    def _with_templates(self, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Return what `TextEncoder.embed` does, with gradients."""
        average = self.config.template_average
        parts = []

        def write(chunk: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
            embeds, lengths = encoders.embed_tokens(self.clip, chunk)
            return embeds, lengths - 1

        for template in templates:
            token_ids = encoders.tokenize(self.tokenizer, [template.replace("{}", text) for text in texts])
            embeds = self._encode(token_ids, write, MAX_PROMPTS)
            parts.append(normalize(embeds, dim=-1) if average == "normalized" else embeds)
        mean = torch.stack(parts).mean(0)
        return mean if average == "unnormalized" else normalize(mean, dim=-1)

    def _with_context(self, texts: Sequence[str], is_negative: bool, images: Tensor | None = None) -> Tensor:
        """Return the features of prompts with learnt words, `[T, D]`, or `[B, T, D]` for images."""
        learner = self.prompt_learner
        suffix = learner.config.suffix
        count = learner.config.num_context
        token_ids = encoders.tokenize(self.tokenizer, [text + suffix for text in texts])
        # The end of a name and the suffix may be one token.
        names = [
            min(len(name), len(whole)) - 2
            for name, whole in zip(encoders.tokenize(self.tokenizer, texts), token_ids, strict=True)
        ]
        prompts = [f"{count} learnt words and {text + suffix!r}" for text in texts]
        encoders.check_lengths(prompts, [[0] * count + ids for ids in token_ids], encoders.context_length(self.clip))
        copies = None if images is None else len(images)

        def write(chunk: range) -> tuple[Tensor, Tensor]:
            rows = list(chunk)
            embeds, lengths = encoders.embed_tokens(self.clip, [token_ids[row] for row in rows])
            written = learner.write_prompts(embeds, [names[row] for row in rows], rows, is_negative, images)
            return written.flatten(0, -3), (lengths - 1 + count).repeat(copies or 1)

        size = max(1, MAX_PROMPTS // (copies or 1))
        return normalize(self._encode(range(len(texts)), write, size, copies), dim=-1)

    def _encode(
        self,
        prompts: Sequence[Any],
        write: Callable[[Any], tuple[Tensor, Tensor]],
        size: int,
        images: int | None = None,
    ) -> Tensor:
        """Return the features of prompts, a chunk at a time."""

        def run(chunk: Any) -> Tensor:
            embeds = encoders.encode_prompts(self.clip, *write(chunk))
            embeds = embeds.to(torch.promote_types(embeds.dtype, torch.float32))
            return embeds if images is None else embeds.unflatten(0, (images, len(chunk)))

        chunks = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        if not torch.is_grad_enabled() or (len(chunks) == 1 and images is None):
            parts = [run(chunk) for chunk in chunks]
        else:
            # What the tower keeps for the backward is made again there: memory stays that of one chunk.
            parts = [checkpoint(run, chunk, use_reentrant=False) for chunk in chunks]
        return torch.cat(parts, dim=-2)

    def _follow_merged_weights(self) -> None:
        """Make the text bank anew if adapters, now unloaded, have left their change in the text tower's weights."""
        if not self.labels:
            return
        bank, templates, average = self.text_bank, self.config.label_templates, self.config.template_average
        try:
            encoder = self.text_encoder()
        except CheckpointError as error:
            logger.warning(f"If what was unloaded was merged into the text tower, call set_labels again: {error}")
            return
        first = encoder.embed(self.labels[:1], templates, average).to(bank.label_embeds)
        if not torch.allclose(first, bank.label_embeds[:1], rtol=0, atol=1e-5):
            negatives = None if self.negatives is None else self.negatives.embed(encoder, average)
            bank.update(encoder.embed(self.labels, templates, average), negatives)

    # ---- image by image ---------------------------------------------------------------------------

    def _chunks(self, images: Tensor) -> tuple[Tensor, ...]:
        """Split a batch so that a pass of the text tower, and its features, stay within bounds."""
        count = len(self.labels) + (self.config.num_negatives if self._uses_context(True) else 0)
        return images.split(max(1, MAX_PROMPTS // max(1, count)))

    def _text_features_of(self, images: Tensor, with_negatives: bool = True) -> tuple[Tensor, Tensor]:
        """Return the features of labels, `[B, N, D]`, and negatives, `[B, M, D]` or `[M, D]`, for each image."""
        labels = self._with_context(self.labels, False, images)
        if not with_negatives or self.negatives is None:
            return labels, self.text_bank.negative_embeds[:0]
        if self._uses_context(True):
            return labels, self._with_context(self.negatives.texts, True, images)
        return labels, self._features(is_negative=True)

    def _compare(self, images: Tensor, queries: Tensor | None, labels: Tensor, negatives: Tensor) -> TrainingCosines:
        found = self.similarity.training_cosines(images, labels, negatives, queries)
        if getattr(self.similarity, "acting_adapter", lambda: None)() is not None:
            return found
        bank = self.text_bank
        kept = (
            torch.atleast_2d((normalize(new, dim=-1) * normalize(old[: new.shape[-2]], dim=-1)).sum(-1))
            for new, old in ((labels, bank.label_embeds), (negatives, bank.negative_embeds))
        )
        kept_labels, kept_negatives = kept
        return replace(found, kept_labels=kept_labels, kept_negatives=kept_negatives)


def _joined(values: list[Any], parts: list[TrainingCosines]) -> Any:
    """Put what chunks of a batch have into one batch; what they share is given a row for every image."""
    if values[0] is None:
        return None
    return torch.cat(
        [value.expand(len(part.labels), *value.shape[1:]) for value, part in zip(values, parts, strict=True)]
    )
