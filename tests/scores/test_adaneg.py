"""AdaNeg: NegLabel whose texts move towards the images they have caught."""

import math

import pytest
import torch
from slow_reference import softmax
from test_neglabel import slow_neglabel
from torch import Tensor
from torch.nn.functional import normalize

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score

DIM, NUM_LABELS, NUM_NEGATIVES = 12, 3, 10


def texts() -> Tensor:
    """Return text features, labels first, `[K, D]`."""
    generator = torch.Generator().manual_seed(0)
    count = NUM_LABELS + NUM_NEGATIVES
    return normalize(torch.randn(count, DIM, generator=generator, dtype=torch.float64) + 0.5, dim=-1)


def stream(count: int, seed: int = 1) -> Tensor:
    """Return images near random texts, some of them between two."""
    generator = torch.Generator().manual_seed(seed)
    own = texts()[torch.randint(NUM_LABELS + NUM_NEGATIVES, (count,), generator=generator)]
    # Labels are as frequent as negatives.
    own[::2] = texts()[torch.randint(NUM_LABELS, (len(own[::2]),), generator=generator)]
    return 3 * (own + 0.25 * torch.randn(count, DIM, generator=generator, dtype=torch.float64))


def inputs_of(images: Tensor) -> ScoreInputs:
    """Return the score inputs of images."""
    cosines = normalize(images, dim=-1) @ texts().T
    return ScoreInputs(cosines[:, :NUM_LABELS], cosines[:, NUM_LABELS:], images)


class SlowAdaNeg:
    """The method as its authors wrote it down: a memory `[K][slots]` of vectors, texts in slot 0."""

    def __init__(self, length: int, sample_adaptive: bool) -> None:
        self.rows = [[(0.0, text)] for text in texts()]
        self.length, self.sample_adaptive = length, sample_adaptive
        self.evicted = 0

    def insert(self, row: int, entropy: float, image: Tensor) -> None:
        slots = self.rows[row]
        if len(slots) < self.length:
            slots.append((entropy, image))
            return
        worst = max(range(len(slots)), key=lambda slot: slots[slot][0])
        if entropy < slots[worst][0]:
            slots[worst] = (entropy, image)
            self.evicted += 1

    def proxies(self, image: Tensor) -> Tensor:
        found = []
        for slots in self.rows:
            vectors = torch.stack([vector for _, vector in slots])
            weights = (
                torch.exp(-5 * (1 - vectors @ image)) if self.sample_adaptive else torch.ones(len(slots)).double()
            )
            found.append(normalize((weights[:, None] * vectors).sum(0), dim=0))
        return torch.stack(found)

    def __call__(self, images: Tensor) -> list[float]:
        images = normalize(images, dim=-1)
        plain = [self.mass(texts(), image) for image in images]
        for image, mass in zip(images, plain, strict=True):
            cosines = texts() @ image
            own, other = cosines[:NUM_LABELS], cosines[NUM_LABELS:]
            if mass > 0.5 + 0.5 * 0.5:
                self.insert(int(own.argmax()), self.entropy(own), image)
            elif mass < 0.5 - 0.5 * 0.5:
                self.insert(NUM_LABELS + int(other.argmax()), self.entropy(other), image)
        adapted = [self.mass(self.proxies(image), image) for image in images]
        return [-(new + 0.1 * old) for new, old in zip(adapted, plain, strict=True)]

    @staticmethod
    def entropy(cosines: Tensor) -> float:
        return -math.fsum(p * math.log(p) for p in softmax((100 * cosines).tolist()) if p > 0)

    @staticmethod
    def mass(features: Tensor, image: Tensor) -> float:
        cosines = (features @ image).tolist()
        return -slow_neglabel(cosines[:NUM_LABELS], cosines[NUM_LABELS:], num_groups=5)


@pytest.mark.parametrize("sample_adaptive", [False, True])
@pytest.mark.parametrize("length", [2, 10, 60])
def test_a_stream_in_batches(length: int, sample_adaptive: bool) -> None:
    slow = SlowAdaNeg(length, sample_adaptive)
    score = get_score("adaneg", memory_length=length, sample_adaptive=sample_adaptive)
    for batch in stream(90).split(16):
        expected = torch.tensor(slow(batch), dtype=torch.float64)
        torch.testing.assert_close(score.compute(inputs_of(batch)), expected, rtol=1e-9, atol=1e-9)
    assert score.num_remembered == sum(len(slots) - 1 for slots in slow.rows)  # type: ignore[attr-defined]
    assert (slow.evicted > 0) == (length < 60)


def test_an_empty_memory_leaves_neglabel() -> None:
    inputs = inputs_of(stream(20))
    judged = get_score("adaneg", update=False).compute(inputs)
    torch.testing.assert_close(judged, 1.1 * get_score("neglabel", num_groups=5).compute(inputs))


def test_the_order_of_images_matters_and_reset_forgets_it() -> None:
    score = get_score("adaneg")
    first, second = inputs_of(stream(20)), inputs_of(stream(20, seed=2))
    fresh = score(first)
    after = score(second)
    assert (score(first) - fresh).abs().max() > 1e-4
    score.reset()  # type: ignore[attr-defined]
    assert score.num_remembered == 0  # type: ignore[attr-defined]
    assert (score(second) - after).abs().max() > 1e-4
    score.reset()  # type: ignore[attr-defined]
    assert torch.equal(score(first), fresh)


def test_without_update_nothing_is_remembered_but_the_memory_is_used() -> None:
    score = get_score("adaneg")
    score(inputs_of(stream(40)))
    remembered = score.num_remembered  # type: ignore[attr-defined]
    score.update = False  # type: ignore[attr-defined]
    inputs = inputs_of(stream(20, seed=2))
    judged = score(inputs)
    assert torch.equal(score(inputs), judged)
    assert score.num_remembered == remembered > 0  # type: ignore[attr-defined]
    assert (judged - get_score("adaneg", update=False)(inputs)).abs().max() > 1e-4


def test_images_between_the_thresholds_are_not_remembered() -> None:
    # Mass of a half, however sure the softmax over either side is.
    even = ScoreInputs(torch.tensor([[0.3, 0.1]]), torch.tensor([[0.3]]), torch.ones(1, DIM))
    score = get_score("adaneg")
    assert score(even).item() == pytest.approx(-0.55)
    assert score.num_remembered == 0  # type: ignore[attr-defined]
    without_gap = get_score("adaneg", gap=0.0, threshold=0.4)
    without_gap(even)
    assert without_gap.num_remembered == 1  # type: ignore[attr-defined]


def test_the_memory_is_not_saved() -> None:
    score = get_score("adaneg")
    score(inputs_of(stream(20)))
    assert score.state_dict() == {}


def test_the_memory_keeps_no_gradients() -> None:
    images = stream(20).requires_grad_()
    score = get_score("adaneg")
    score(inputs_of(images)).sum().backward()
    assert images.grad is not None
    assert not score(inputs_of(stream(20, seed=2))).requires_grad


def test_other_labels_need_a_reset() -> None:
    score = get_score("adaneg")
    inputs = inputs_of(stream(20))
    score(inputs)
    fewer = ScoreInputs(inputs.similarity[:, :2], inputs.negative_similarity, inputs.image_embeds)
    with pytest.raises(ScoreInputError, match=r"\(3, 10, 12\).*\(2, 10, 12\): call reset\(\)"):
        score(fewer)
    score.reset()  # type: ignore[attr-defined]
    assert torch.isfinite(score(fewer)).all()


def test_defaults_are_those_of_the_authors_script() -> None:
    assert get_score("adaneg").options == {
        "temperature": 0.01,
        "threshold": 0.5,
        "gap": 0.5,
        "memory_length": 10,
        "text_weight": 0.1,
        "sample_adaptive": False,
        "sharpness": 5.0,
        "num_groups": 5,
        "seed": 0,
        "update": True,
    }


@pytest.mark.parametrize("bad", [{"threshold": 1.5}, {"gap": -0.1}, {"memory_length": 1}, {"num_groups": 0}])
def test_options_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ScoreInputError, match=next(iter(bad))):
        get_score("adaneg", **bad)
