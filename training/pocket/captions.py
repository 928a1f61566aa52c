"""What images are compared with: captions of classes and parents, and nouns that no image shows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .lexicon import TEMPLATES, Classes, Lexicon

__all__ = ["Captions"]

# The templates that make a caption.
NUM_TEMPLATES = 12
VARIANTS = 20
# Above these cosines a noun may well be what an image shows, and is not held against it.
NEAR_CLASS, NEAR_PARENT, NEAR_HELD_OUT = 0.45, 0.6, 0.6


class Captions:
    """Text features of the locked text tower, and the loss against them.

    Args:
        encode: Returns unit features `[n, D]` of texts.
        lexicon: Names of classes and parents, and nouns.
        classes: Whose held-out names, and nouns near them, are kept out of the captions altogether.
        seed: Draws names and templates.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Tensor], lexicon: Lexicon, classes: Classes, seed: int
    ) -> None:
        generator = random.Random(f"{seed} captions")
        self.labels = list(lexicon.names)
        nodes: Mapping[str, Sequence[str]] = {
            **{name: [name] * 3 + list(others[1:]) for name, others in lexicon.names.items()},
            **{f"parent {name}": [name] for name in lexicon.parents},
        }
        texts = [
            generator.choice(TEMPLATES[:NUM_TEMPLATES]).format(names[variant % len(names)])
            for names in nodes.values()
            for variant in range(VARIANTS)
        ]
        self.nodes = encode(texts).unflatten(0, (len(nodes), VARIANTS))
        plain = [f"a photo of a {name}." for name in self.labels]
        self.texts = tuple(dict.fromkeys([*texts, *plain]))
        places = {name: place for place, name in enumerate(nodes)}
        parents = [[places[f"parent {parent}"] for parent in lexicon.ancestors[name]] for name in self.labels]
        self.positive = torch.zeros(len(self.labels), len(nodes), dtype=torch.bool)
        # A class without parents stands in for its own.
        most = max(1, *map(len, parents))
        self.parents = torch.empty(len(self.labels), most, dtype=torch.long)
        for label, own in enumerate(parents):
            self.positive[label, [label, *own]] = True
            self.parents[label] = torch.tensor([(own or [label])[turn % max(1, len(own))] for turn in range(most)])
        self.class_embeds = encode(plain)
        self._choose_distractors(encode, lexicon, classes, parents, generator)
        device = self.nodes.device
        self.positive, self.parents = self.positive.to(device), self.parents.to(device)

    def _choose_distractors(
        self,
        encode: Callable[[Sequence[str]], Tensor],
        lexicon: Lexicon,
        classes: Classes,
        parents: list[list[int]],
        generator: random.Random,
    ) -> None:
        own = {word.lower() for words in (*lexicon.names.values(), lexicon.parents) for word in words}
        nouns = [noun for noun in lexicon.nouns[: lexicon.num_common] if noun not in own]
        embeds = encode([generator.choice(TEMPLATES[:NUM_TEMPLATES]).format(noun) for noun in nouns])
        held_out = encode([f"a photo of a {name}." for name in classes.held_out.values()])
        embeds = embeds[(embeds @ held_out.T).amax(1) <= NEAR_HELD_OUT]
        forbidden = (self.class_embeds @ embeds.T) > NEAR_CLASS
        for label, own_parents in enumerate(parents):
            if own_parents:
                forbidden[label] |= (self.nodes[own_parents, 0] @ embeds.T).amax(0) > NEAR_PARENT
        self.distractors, self.forbidden = embeds, forbidden

    def loss(
        self, images: Tensor, labels: Tensor, scale: Tensor, num_distractors: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the losses for the class and for one of its parents, as means over images.

        Each is a cross-entropy of the right caption against those of all other classes and parents and
        some nouns; what else is right of an image, or may be, counts neither way.

        Args:
            images: Unit features `[B, D]`.
            labels: `[B]`.
            scale: What cosines are multiplied with.
            num_distractors: Nouns drawn.
            generator: On the device of the captions.
        """
        logits, nouns = self._logits(images, scale, num_distractors, generator)
        right = torch.cat([self.positive[labels], self.forbidden[labels][:, nouns]], dim=1)
        others = logits.masked_fill(right, float("-inf")).logsumexp(1)
        rows = torch.arange(len(labels), device=logits.device)
        parents = self.parents[labels, _draw(self.parents.shape[1], len(labels), generator)]
        own, above = (logits[rows, places] for places in (labels, parents))
        return (torch.logaddexp(others, own) - own).mean(), (torch.logaddexp(others, above) - above).mean()

    def nothing_loss(self, images: Tensor, scale: Tensor, num_distractors: int, generator: torch.Generator) -> Tensor:
        """Return the loss for images that show no class: any noun may be right, no class and no parent is.

        Args:
            images: Unit features `[B, D]`.
            scale, num_distractors, generator: As in `loss`.
        """
        logits, _ = self._logits(images, scale, num_distractors, generator)
        return (logits.logsumexp(1) - logits[:, len(self.nodes) :].logsumexp(1)).mean()

    def _logits(
        self, images: Tensor, scale: Tensor, num_distractors: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of one caption a class and parent, and of random nouns; and which nouns these are."""
        count = len(self.nodes)
        captions = self.nodes[torch.arange(count, device=self.nodes.device), _draw(VARIANTS, count, generator)]
        # A text tower that has hardly learnt finds every noun near a class.
        available = len(self.distractors)
        nouns = _draw(max(1, available), num_distractors if available else 0, generator)
        return scale * (images @ torch.cat([captions, self.distractors[nouns]]).T), nouns

    def class_logits(self, images: Tensor, scale: Tensor | float) -> Tensor:
        """Return the logits of all classes in the plainest template, `[B, N]`."""
        return scale * images @ self.class_embeds.T


def _draw(high: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator, device=generator.device)
