"""The text bank: embeddings of labels and negatives, made once and kept with the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from . import encoders
from .errors import LabelError, unknown_name
from .templates import resolve_templates
from .text_cache import cached_embeds, embeds_key

__all__ = ["Float32Module", "TextBank", "TextEncoder", "check_labels"]

Average = Literal["normalized", "raw", "unnormalized"]

# Below this many prompts, embedding again is quicker than hashing a text tower.
MIN_CACHED_PROMPTS = 256


class TextEncoder:
    """Turns texts into embeddings with one CLIP text tower, with prompt ensembles and a disk cache.

    Args:
        clip: A `CLIPModel`.
        tokenizer: Its tokenizer.
        batch_size: Prompts a forward pass.
        cache: Keep embeddings of long lists on disk.

    Example:
        >>> import hf_oodclip
        >>> from transformers import AutoTokenizer, CLIPModel
        >>> folder = hf_oodclip.pocket_path()
        >>> encoder = TextEncoder(CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        >>> encoder.embed(["goldfish", "school bus"], "photo").shape
        torch.Size([2, 256])
    """

    def __init__(self, clip: Any, tokenizer: Any, batch_size: int = 256, cache: bool = True) -> None:
        self.clip = clip
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.cache = cache
        self._weights: tuple[Any, str] = (None, "")
        self._token_ids: dict[str, list[int]] = {}
        self._embedded: dict[tuple[Any, ...], tuple[dict[str, int], Tensor]] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of what decides an embedding: the text tower's weights, adapters in it, and autocast."""
        state = encoders.text_tower_state(self.clip)
        if self._weights[0] != state:
            self._weights = (state, encoders.text_tower_fingerprint(self.clip))
        mode = encoders.text_tower_mode(self.clip)
        return self._weights[1] + (hashlib.blake2b(mode.encode(), digest_size=8).hexdigest() if mode else "")

    def overlong(self, texts: Sequence[str], templates: str | Sequence[str]) -> set[int]:
        """Return the positions of the texts that do not fit the text tower with every template."""
        limit = encoders.context_length(self.clip)
        positions: set[int] = set()
        for template in resolve_templates(templates):
            prompts = [template.replace("{}", text) for text in texts]
            # No token is shorter than a letter: most prompts are known to fit without being read.
            room = limit - self.tokenizer.num_special_tokens_to_add()
            unsure = [place for place, prompt in enumerate(prompts) if len(prompt) > room or not prompt.isascii()]
            token_ids = self._tokenize([prompts[place] for place in unsure])
            positions.update(unsure[place] for place in encoders.find_overlong(token_ids, limit))
        return positions

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._token_ids]
        if missing:
            self._token_ids.update(zip(missing, encoders.tokenize(self.tokenizer, missing), strict=True))
        return [self._token_ids[prompt] for prompt in prompts]

    def embed(
        self, texts: Sequence[str], templates: str | Sequence[str] = "photo", average: Average = "normalized"
    ) -> Tensor:
        """Return one embedding a text, `[T, D]`, averaged over the templates.

        With `e_k` the embedding of the text under the k-th template and `L2` normalisation:
        `normalized` is `L2(mean_k L2(e_k))` (CLIP, NegLabel, KR-NFT), `raw` is `L2(mean_k e_k)`
        (CSP), and `unnormalized` is `mean_k e_k` (what TaskRes adds its residual to).

        Raises:
            LabelError: A prompt is longer than the context window; the message names it.
            TemplateError: A template has no `{}`.
            NonFiniteError: The text tower produced NaN.
        """
        if average not in get_args(Average):
            raise unknown_name("average", average, get_args(Average))
        if isinstance(texts, str):
            raise LabelError(f"texts must be a list, got the string {texts!r}; write [{texts!r}].")
        resolved = resolve_templates(templates)
        many = len(texts) * len(resolved) >= MIN_CACHED_PROMPTS
        fingerprint = self.fingerprint if many else ""
        known = (fingerprint, *resolved, average)
        rows, embedded = self._embedded.get(known, ({}, torch.empty(0)))
        if many and all(text in rows for text in texts):
            return embedded[[rows[text] for text in texts]]
        prompts = [[template.replace("{}", text) for text in texts] for template in resolved]
        if not self.cache or not many:
            return self._compute(prompts, average)
        key = embeds_key(fingerprint, encoders.tokenizer_fingerprint(self.tokenizer), prompts, average)
        embeds = cached_embeds(key, lambda: self._compute(prompts, average))
        if len(texts) > len(rows):
            # A copy, for what is returned is the caller's to change.
            self._embedded[known] = ({text: row for row, text in enumerate(texts)}, embeds.clone())
        return embeds

    def _compute(self, prompts: list[list[str]], average: Average) -> Tensor:
        limit = encoders.context_length(self.clip)
        # All are checked before the first is embedded, which may take minutes.
        token_ids = [self._tokenize(texts) for texts in prompts]
        for texts, ids in zip(prompts, token_ids, strict=True):
            encoders.check_lengths(texts, ids, limit)
        total: Tensor | None = None
        for ids in token_ids:
            embeds = encoders.encode_tokens(self.clip, ids, self.batch_size)
            embeds = normalize(embeds, dim=-1) if average == "normalized" else embeds
            total = embeds if total is None else total + embeds
        assert total is not None
        mean = total / len(token_ids)
        return mean if average == "unnormalized" else normalize(mean, dim=-1)


class Float32Module(nn.Module):
    """A module whose floating-point buffers never fall below fp32, whatever the model is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = getattr(self, name)
            if old.is_floating_point() and new.dtype != old.dtype and new.dtype != torch.float64:
                setattr(self, name, old.to(device=new.device, dtype=torch.float32))
        return self


class TextBank(Float32Module):
    """Holds the embeddings of labels `[N, D]` and negatives `[M, D]` as persistent fp32 buffers."""

    label_embeds: Tensor
    negative_embeds: Tensor

    def __init__(self, num_labels: int, num_negatives: int, dim: int) -> None:
        super().__init__()
        # The default dtype is the model's while it loads.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("label_embeds", torch.zeros(num_labels, dim, dtype=dtype))
        self.register_buffer("negative_embeds", torch.zeros(num_negatives, dim, dtype=dtype))

    def update(self, label_embeds: Tensor | None = None, negative_embeds: Tensor | None = None) -> None:
        """Replace the embeddings of labels, negatives, or both, keeping the device."""
        for name, embeds in (("label_embeds", label_embeds), ("negative_embeds", negative_embeds)):
            if embeds is not None:
                dtype = torch.promote_types(embeds.dtype, torch.float32)
                setattr(self, name, embeds.detach().clone().to(getattr(self, name).device, dtype))


def check_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels as a list, or say what is wrong with them.

    Raises:
        LabelError: No labels, a string instead of a list, or a label that is empty, only white
            space, or not a string.
    """
    if isinstance(labels, str):
        raise LabelError(f"labels must be a list of names, got the string {labels!r}; write [{labels!r}].")
    if not isinstance(labels, Iterable):
        raise LabelError(f"labels must be a list of names, got {labels!r}.")
    checked = list(labels)
    if not checked:
        raise LabelError("The list of labels is empty; give the class names, such as labels=['cat', 'dog'].")
    for position, label in enumerate(checked):
        if not isinstance(label, str) or not label.strip():
            raise LabelError(f"Label {position} is {label!r}; every label must be a non-empty string.")
    return checked
