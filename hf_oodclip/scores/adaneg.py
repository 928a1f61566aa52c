"""NegLabel whose labels and negatives move towards the test images they have caught."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import ScoreInputError
from .base import Score, ScoreInfo, ScoreInputs
from .grouping import group_margin

_FRACTIONS = ("threshold", "gap")


@dataclass
class AdaNeg(Score):
    """AdaNeg: NegLabel with a memory of the test images it was sure about.

    The memory has a row for every label and every negative; its first slot holds the text feature. An
    image with `neglabel` mass above `threshold + gap (1 - threshold)` enters the row of its best label,
    one below `threshold - gap threshold` that of its best negative; in a full row it takes the place of
    the image with the largest entropy if its own is smaller. Then, for the whole batch, each text
    feature is replaced by its proxy, the mean of its row scaled to length 1, which gives the mass
    `S_adapted`; with the mass `S_text` of the texts themselves, `S = S_adapted + text_weight S_text`;
    this class returns `-S`, in [-1 - text_weight, 0].

    It is online: a result depends on the images seen before and in the same batch, and on the share of
    OOD images among them. `reset()` forgets them; they are not saved with the model. Choosing the score,
    or other labels, starts anew. Published figures feed ID and OOD images mixed and reset for every OOD
    set.

    Args:
        temperature: Divides the cosines; 0.01 equals softmax over `100 s`. None takes the model's logit
            scale.
        threshold: Mass that separates ID from OOD.
        gap: How far beyond it an image must be to be remembered.
        memory_length: Slots a row, the text feature included: as in the authors' code, one fewer images.
        text_weight: Weight of the mass of the texts themselves.
        sample_adaptive: Weigh each slot of a row by `exp(-sharpness (1 - cosine with the image))`.
        sharpness: See there.
        num_groups: Groups the negatives are split into, as in `neglabel`.
        seed: Seed of the private generator that permutes the negatives once.
        update: Remember images; False judges by what is remembered already.

    Source: Zhang and Zhang, "AdaNeg: Adaptive Negative Proxy Guided OOD Detection with Vision-Language
    Models", NeurIPS 2024; defaults of the authors' ImageNet script.

    Example:
        >>> import torch
        >>> from hf_oodclip.scores import ScoreInputs
        >>> cosines = {"similarity": torch.tensor([[0.30]]), "negative_similarity": torch.tensor([[0.20]])}
        >>> score = AdaNeg()
        >>> score(ScoreInputs(**cosines, image_embeds=torch.tensor([[1.0, 0.0]])))
        tensor([-1.1000])
        >>> score.num_remembered
        1
    """

    temperature: float | None = 0.01
    threshold: float = 0.5
    gap: float = 0.5
    memory_length: int = 10
    text_weight: float = 0.1
    sample_adaptive: bool = False
    sharpness: float = 5.0
    num_groups: int = 5
    seed: int = 0
    update: bool = True
    _memory: _Memory | None = field(default=None, init=False, repr=False, compare=False)

    name = "adaneg"
    needs = ("similarity", "negative_similarity", "image_embeds")
    online: ClassVar[bool] = True
    info = ScoreInfo(
        title="AdaNeg",
        paper="AdaNeg: Adaptive Negative Proxy Guided OOD Detection with Vision-Language Models",
        venue="NeurIPS",
        year=2024,
        url="https://arxiv.org/abs/2410.20149",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in _FRACTIONS:
            if not 0 <= getattr(self, option) <= 1:
                raise ScoreInputError(
                    f"Score 'adaneg': {option} must be between 0 and 1, got {getattr(self, option)}."
                )
        if self.memory_length < 2 or self.num_groups < 1:
            raise ScoreInputError(
                "Score 'adaneg': memory_length must be at least 2 (the text and an image) and num_groups at least 1, "
                f"got {self.memory_length} and {self.num_groups}."
            )

    def reset(self) -> None:
        """Forget all images."""
        self._memory = None

    @property
    def num_remembered(self) -> int:
        """How many images the memory holds."""
        return 0 if self._memory is None else int(self._memory.counts.sum())

    def compute(self, inputs: ScoreInputs) -> Tensor:
        assert inputs.negative_similarity is not None
        labels, negatives = inputs.similarity, inputs.negative_similarity
        images = normalize(inputs.image_embeds, dim=-1)  # type: ignore[arg-type]
        scale = self.inverse_temperature(self.temperature, inputs)
        text_mass = self._mass(scale * labels, scale * negatives)
        widths = (labels.shape[1], negatives.shape[1], images.shape[1])
        if self._memory is None:
            self._memory = _Memory(widths, self.memory_length - 1)
        elif self._memory.widths != widths:
            raise ScoreInputError(
                f"Score 'adaneg' remembers images for (labels, negatives, width) {self._memory.widths} but was given "
                f"{widths}: call reset() first."
            )
        if self.update:
            self._remember(scale, labels.detach(), negatives.detach(), images.detach(), text_mass.detach())
        adapted = self._memory.adapted(
            torch.cat([labels, negatives], dim=-1), images, self.sharpness if self.sample_adaptive else None
        )
        mass = self._mass(scale * adapted[:, : widths[0]], scale * adapted[:, widths[0] :])
        return -(mass + self.text_weight * text_mass)

    def _mass(self, label_logits: Tensor, negative_logits: Tensor) -> Tensor:
        margin = group_margin(label_logits, negative_logits, self.num_groups, self.seed)
        return torch.sigmoid(margin).mean(dim=-1)

    def _remember(self, scale: float, labels: Tensor, negatives: Tensor, images: Tensor, mass: Tensor) -> None:
        assert self._memory is not None
        is_id = mass > self.threshold + self.gap * (1 - self.threshold)
        is_ood = mass < self.threshold * (1 - self.gap)
        for chosen, cosines, first_row in ((is_id, labels, 0), (is_ood, negatives, labels.shape[1])):
            best = cosines[chosen].max(dim=-1)
            log_p = torch.log_softmax(scale * cosines[chosen], dim=-1)
            entropies = -(log_p.exp() * log_p).sum(dim=-1)
            self._memory.insert((best.indices + first_row).tolist(), images[chosen], best.values, entropies.tolist())


class _Memory:
    """The images of every row that has any; a text feature enters by its cosines only."""

    def __init__(self, widths: tuple[int, int, int], capacity: int) -> None:
        self.widths = widths
        self.capacity = capacity
        self.places: dict[int, int] = {}
        self.entropies: list[list[float]] = []
        self.images = torch.zeros(0, capacity, widths[2])
        self.text_cosines = torch.zeros(0, capacity)

    @property
    def counts(self) -> Tensor:
        """Images in every row that has any."""
        return torch.tensor([len(entropies) for entropies in self.entropies])

    def insert(self, rows: list[int], images: Tensor, text_cosines: Tensor, entropies: list[float]) -> None:
        """Put images into their rows, one after the other."""
        new = [row for row in dict.fromkeys(rows) if row not in self.places]
        self.places.update({row: len(self.places) + offset for offset, row in enumerate(new)})
        self.entropies.extend([] for _ in new)
        self.images = torch.cat([self.images.to(images), images.new_zeros(len(new), *self.images.shape[1:])])
        self.text_cosines = torch.cat([self.text_cosines.to(images), images.new_zeros(len(new), self.capacity)])
        for index, row in enumerate(rows):
            place = self.places[row]
            held = self.entropies[place]
            if len(held) < self.capacity:
                slot = len(held)
                held.append(entropies[index])
            else:
                slot = max(range(self.capacity), key=held.__getitem__)
                if entropies[index] >= held[slot]:
                    continue
                held[slot] = entropies[index]
            self.images[place, slot] = images[index]
            self.text_cosines[place, slot] = text_cosines[index]

    def adapted(self, cosines: Tensor, images: Tensor, sharpness: float | None) -> Tensor:
        """Return the cosines of images with the proxies, `[B, K]`, from those with the texts."""
        if not self.places:
            return cosines
        rows = torch.tensor(list(self.places), device=cosines.device)
        held, with_text = self.images.to(cosines), self.text_cosines.to(cosines)
        text: Any = cosines[:, rows]
        if sharpness is None:
            total = held.sum(dim=1)
            squared = 1 + 2 * with_text.sum(dim=1) + total.square().sum(dim=-1)
            products = text + images @ total.T
        else:
            # Empty slots are zero vectors: whatever their weight, they add nothing.
            slots = torch.einsum("bd,rsd->brs", images, held)
            text_weight, weights = torch.exp(sharpness * (text - 1)), torch.exp(sharpness * (slots - 1))
            gram = torch.einsum("rsd,rtd->rst", held, held)
            squared = text_weight.square() + 2 * text_weight * (weights * with_text).sum(dim=-1)
            squared = squared + torch.einsum("brs,rst,brt->br", weights, gram, weights)
            products = text_weight * text + (weights * slots).sum(dim=-1)
        # Rounding may leave next to nothing, or less, of a proxy whose parts cancel.
        return cosines.index_copy(1, rows, products * squared.clamp_min(1e-12).rsqrt())
