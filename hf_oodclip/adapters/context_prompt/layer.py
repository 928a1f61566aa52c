"""The layer around a model's `prompt_learner`: puts learnt vectors among the token embeddings of class names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ... import encoders
from ...errors import AdapterError
from ..base import OODAdapterLayer
from .config import ContextPromptConfig

__all__ = ["ContextPromptLayer"]


class ContextPromptLayer(OODAdapterLayer):
    """Holds the context prompt adapters of a model by name, and writes prompts with the active one."""

    adapter_layer_names = (
        "context_labels",
        "context_negatives",
        "context_down_weight",
        "context_down_bias",
        "context_up_weight",
        "context_up_bias",
    )
    title = "Context prompt"

    context_labels: nn.ParameterDict
    context_negatives: nn.ParameterDict
    context_down_weight: nn.ParameterDict
    context_down_bias: nn.ParameterDict
    context_up_weight: nn.ParameterDict
    context_up_bias: nn.ParameterDict

    def update_layer(
        self,
        adapter_name: str,
        config: ContextPromptConfig,
        device: torch.device | None = None,
        model: Any = None,
    ) -> None:
        if config.context_words is not None and not config.inference_mode:
            # A saved adapter says how many words it has; a new one takes as many as it is given.
            config.num_context = len(self._word_ids(config, model))
        super().update_layer(adapter_name, config, device, model)

    def initialise(self, name: str, values: Tensor, config: ContextPromptConfig, model: Any) -> None:
        if name in ("context_labels", "context_negatives"):
            if config.context_words is None:
                nn.init.normal_(values, std=config.init_std)
            elif not config.inference_mode:
                embeds, _ = encoders.embed_tokens(model.clip, [self._word_ids(config, model)])
                values.copy_(embeds[0].detach().expand_as(values))
        elif name.startswith("context_down"):
            # As torch initialises a linear layer of this width; the second layer stays zero.
            bound = 1 / math.sqrt(self.dim)
            nn.init.uniform_(values, -bound, bound)

    def _word_ids(self, config: ContextPromptConfig, model: Any) -> list[int]:
        if model is None:
            raise AdapterError(f"{self.title}: context_words needs the model whose words they are.")
        return encoders.tokenize(model.tokenizer, [str(config.context_words)])[0][1:-1]

    @property
    def config(self) -> ContextPromptConfig:
        """The settings of the adapter that acts."""
        return self.configs[str(self.acting_adapter())]

    def write_prompts(
        self,
        token_embeds: Tensor,
        name_lengths: Sequence[int],
        rows: Sequence[int],
        is_negative: bool,
        images: Tensor | None = None,
    ) -> Tensor:
        """Return the token embeddings of prompts with the learnt words in them.

        Args:
            token_embeds: Of `[start] name suffix [end]`, padded at the end, `[T, L, W]`.
            name_lengths: Tokens of each name.
            rows: Which labels, or negatives, these are.
            is_negative: Whether these are negatives.
            images: Image embeddings that move the words of a conditional adapter, `[B, D]`.

        Returns:
            `[T, L + n, W]`, or `[B, T, L + n, W]` for a conditional adapter.
        """
        name, config = str(self.acting_adapter()), self.config
        own_words = is_negative and config.negative_context == "separate"
        words = (self.context_negatives if own_words else self.context_labels)[name].to(token_embeds.dtype)
        count, num_prompts = words.shape[-2], len(token_embeds)
        words = words.expand(num_prompts, *words.shape) if words.ndim == 2 else words[list(rows)]
        if config.conditional and images is not None:
            words = words + self._moves(name, images).to(words.dtype)[:, None, None, :]
            token_embeds = token_embeds.expand(len(images), *token_embeds.shape)
        together = torch.cat([token_embeds, words], dim=-2)
        length = token_embeds.shape[-2]
        learnt = list(range(length, length + count))
        order = []
        for name_length in name_lengths:
            name_tokens, rest = list(range(1, 1 + name_length)), list(range(1 + name_length, length))
            before = {"end": count, "middle": count // 2, "front": 0}[config.position]
            order.append([0, *learnt[:before], *name_tokens, *learnt[before:], *rest])
        index = torch.tensor(order, device=together.device).unsqueeze(-1).expand_as(together)
        return together.gather(-2, index)

    def _moves(self, name: str, images: Tensor) -> Tensor:
        """Return what an image adds to every learnt word, `[B, W]`."""
        weight = self.context_down_weight[name]
        inputs = normalize(images.to(weight.dtype), dim=-1)
        hidden = torch.relu(inputs @ weight.T + self.context_down_bias[name])
        return hidden @ self.context_up_weight[name].T + self.context_up_bias[name]
