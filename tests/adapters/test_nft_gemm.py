"""The matrix-product form of moved text features: equal to building them, and nowhere as large."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from hf_oodclip.adapters.nft import TextMap, products, tuned_cosines

IMAGES, QUERIES, CLASSES, DIM = 5, 3, 37, 12
PARTS = [parts for count in range(4) for parts in itertools.combinations(("scale", "shift", "delta"), count)]


def random(*shape, seed=0, size=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=dtype) * size).requires_grad_()


def random_map(parts, images=IMAGES, classes=CLASSES, **options):
    shapes = {"scale": (images, DIM), "shift": (images, DIM), "delta": (classes, DIM)}
    return TextMap(**{name: random(*shapes[name], seed=seed + 1, **options) for seed, name in enumerate(parts)})


def explicit(queries, classes, text_map):
    cosines, knowledge = [], []
    for index, asked in enumerate(queries):
        moved = classes
        if text_map.delta is not None:
            moved = moved + text_map.delta
        if text_map.scale is not None:
            moved = moved + text_map.scale[index] * classes
        if text_map.shift is not None:
            moved = moved + text_map.shift[index]
        moved = normalize(moved, dim=-1)
        cosines.append(asked @ moved.T)
        knowledge.append((moved * classes).sum(-1))
    return torch.stack(cosines), torch.stack(knowledge)


@pytest.mark.parametrize("block", [1 << 20, 5 * DIM], ids=["one block", "blocks of 5"])
@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_values_and_gradients_equal_the_explicit_form(parts, crops, block, monkeypatch):
    monkeypatch.setattr(products, "_BLOCK_ELEMENTS", block)
    raw_queries = random(*((IMAGES, QUERIES, DIM) if crops else (IMAGES, DIM)), seed=8)
    raw_classes, text_map = random(CLASSES, DIM, seed=9), random_map(parts)
    queries, classes = normalize(raw_queries, dim=-1), normalize(raw_classes, dim=-1)
    found = tuned_cosines(queries, classes, text_map, knowledge=True)
    wanted, wanted_knowledge = explicit(queries, classes, text_map)
    if not {"scale", "shift"} & set(parts):
        wanted_knowledge = wanted_knowledge[:1]
    torch.testing.assert_close(found.cosines, wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.knowledge, wanted_knowledge, rtol=0, atol=1e-14)
    inputs = [raw_queries, raw_classes, *(getattr(text_map, name) for name in parts)]
    weights = random(*wanted.shape, seed=10), random(*wanted_knowledge.shape, seed=11)

    def gradients(cosines, knowledge):
        total = (cosines * weights[0]).sum() + (knowledge * weights[1]).sum()
        return torch.autograd.grad(total, inputs, retain_graph=True)

    for ours, slow in zip(gradients(*found), gradients(wanted, wanted_knowledge), strict=True):
        torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("which", [0, 1], ids=["cosines alone", "knowledge alone"])
def test_gradient_of_one_output_alone(which):
    queries, classes = normalize(random(IMAGES, DIM), dim=-1), normalize(random(CLASSES, DIM, seed=1), dim=-1)
    text_map = random_map(("scale", "shift", "delta"))
    inputs = (text_map.scale, text_map.shift, text_map.delta)
    found = tuned_cosines(queries, classes, text_map, knowledge=True)[which].pow(2).sum()
    wanted = explicit(queries, classes, text_map)[which].pow(2).sum()
    for ours, slow in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(ours, slow, rtol=0, atol=1e-12)


def test_gradcheck():
    queries, classes = normalize(random(2, 4, 3), dim=-1).detach(), normalize(random(5, 3, seed=1), dim=-1).detach()
    inputs = [random(*shape, seed=seed) for seed, shape in enumerate([(2, 4, 3), (5, 3), (2, 3), (2, 3), (5, 3)])]
    inputs[0], inputs[1] = queries.requires_grad_(), classes.requires_grad_()

    def compute(asked, texts, scale, shift, delta):
        return tuple(tuned_cosines(asked, texts, TextMap(scale, shift, delta), knowledge=True))

    assert torch.autograd.gradcheck(compute, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_a_zero_map_returns_the_base_bit_for_bit(parts, dtype):
    queries = normalize(random(64, 512, dtype=dtype), dim=-1).detach()
    classes = normalize(random(3000, 512, seed=1, dtype=dtype), dim=-1).detach()
    shapes = {"scale": (64, 512), "shift": (64, 512), "delta": (3000, 512)}
    text_map = TextMap(**{name: torch.zeros(shapes[name], dtype=dtype, requires_grad=True) for name in parts})
    for deltas_dtype in (None, torch.bfloat16):
        found = tuned_cosines(queries, classes, text_map, knowledge=True, deltas_dtype=deltas_dtype)
        assert torch.equal(found.cosines, queries @ classes.T)
        assert bool((found.knowledge == 1).all())


@pytest.mark.parametrize("size", [0.02, 0.2, 0.5])
def test_precision_of_fp32_and_of_bf16_deltas(size):
    """The figures of methods.md F, at its D=512."""
    queries, classes = (
        normalize(random(16, 512), dim=-1).detach(),
        normalize(random(500, 512, seed=1), dim=-1).detach(),
    )
    scale, shift = (random(16, 512, seed=seed, size=size).detach() for seed in (2, 3))
    shift = shift / 512**0.5
    wanted, wanted_knowledge = explicit(queries, classes, TextMap(scale, shift))
    single = [tensor.float() for tensor in (queries, classes, scale, shift)]
    for deltas_dtype, allowed, allowed_knowledge in ((None, 5e-7, 1e-6), (torch.bfloat16, 1e-3, 3e-3)):
        found = tuned_cosines(*single[:2], TextMap(*single[2:]), knowledge=True, deltas_dtype=deltas_dtype)
        assert found.cosines.dtype == torch.float32
        assert (found.cosines - wanted).abs().max() < allowed
        assert (found.knowledge - wanted_knowledge).abs().max() < allowed_knowledge


def test_bf16_deltas_have_gradients_close_to_fp32():
    queries, classes = (normalize(random(n, 64, seed=n, dtype=torch.float32), dim=-1).detach() for n in (8, 50))
    grads = []
    for deltas_dtype in (None, torch.bfloat16):
        scale, shift = (random(8, 64, seed=seed, size=0.1, dtype=torch.float32) for seed in (1, 2))
        found = tuned_cosines(queries, classes, TextMap(scale, shift), knowledge=True, deltas_dtype=deltas_dtype)
        (found.cosines.pow(2).sum() + found.knowledge.sum()).backward()
        grads.append(torch.cat([scale.grad, shift.grad]))
    assert (grads[0] - grads[1]).norm() < 0.02 * grads[0].norm()


def test_autocast_does_not_touch_it():
    queries, classes = (normalize(random(n, 64, seed=n, dtype=torch.float32), dim=-1) for n in (8, 50))
    text_map = TextMap(*(random(8, 64, seed=seed, dtype=torch.float32) for seed in (1, 2)))
    plain = tuned_cosines(queries, classes, text_map, knowledge=True)
    expected = torch.autograd.grad(plain.cosines.sum(), text_map.scale, retain_graph=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tuned_cosines(queries, classes, text_map, knowledge=True)
        found = torch.autograd.grad(inside.cosines.sum(), text_map.scale, retain_graph=True)[0]
    assert torch.equal(inside.cosines, plain.cosines)
    assert torch.equal(found, expected)


def test_a_text_feature_moved_to_zero_stays_finite():
    queries, classes = torch.eye(3)[:1], torch.eye(3)
    text_map = TextMap(scale=torch.full((1, 3), -1.0, requires_grad=True), shift=torch.zeros(1, 3, requires_grad=True))
    found = tuned_cosines(queries, classes, text_map, knowledge=True)
    assert torch.isfinite(found.cosines).all()
    found.cosines.sum().backward()
    assert torch.isfinite(text_map.scale.grad).all()


@pytest.mark.parametrize(("images", "classes"), [(0, 4), (2, 0), (1, 1)])
def test_empty_and_single(images, classes):
    text_map = random_map(("scale", "shift", "delta"), images, classes)
    for queries in (random(images, DIM), random(images, QUERIES, DIM)):
        found = tuned_cosines(queries, random(classes, DIM), text_map, knowledge=True)
        assert found.cosines.shape == (*queries.shape[:-1], classes)
        assert found.knowledge.shape == (images, classes)
        (found.cosines.sum() + found.knowledge.sum()).backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_no_tensor_with_images_classes_and_width(parts):
    images, classes = 16, 400
    text_map = random_map(parts, images, classes)
    queries, texts = (normalize(random(count, DIM), dim=-1) for count in (images, classes))
    with LargestTensor() as largest:
        found = tuned_cosines(queries, texts, text_map, knowledge=True)
        loss = cross_entropy(found.cosines, torch.zeros(images, dtype=torch.long)) - found.knowledge.mean()
        loss.backward()
    assert largest.elements <= 3 * images * classes < images * classes * DIM
