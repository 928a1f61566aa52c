"""EBM against explicit sums, and against the inequalities it is built on."""

import math

import pytest
import torch
from hf_oodclip.training.losses import get_loss
from torch.nn.functional import normalize

from hf_oodclip.errors import LossError, UnknownNameError
from hf_oodclip.scores import ScoreInputs, get_score

DIM = 32


def features(num_labels, num_images=6, dim=DIM, alignment=0.7, cone=1.0, seed=0):
    """Unit-length images, labels and targets, fp64: labels in a cone, as CLIP's, each image near its label."""
    generator = torch.Generator().manual_seed(seed)
    shared, labels, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (dim, (num_labels, dim), (num_images, dim))
    )
    labels = normalize(labels + cone * shared, dim=-1)
    targets = torch.arange(num_images) % num_labels
    noise = normalize(noise - (noise * labels[targets]).sum(-1, keepdim=True) * labels[targets], dim=-1)
    return alignment * labels[targets] + math.sqrt(1 - alignment**2) * noise, labels, targets


def minus_log_sum_exp(numbers):
    largest = max(numbers)
    return -(largest + math.log(sum(math.exp(number - largest) for number in numbers)))


def energies(image, labels, temperature, mask_fraction, anchor=None, num_cropped=1, keep="top", renormalize=False):
    """Return `E_0`, `E_1`, `E_2` of one image, from plain Python numbers."""
    image, labels = image.tolist(), labels.tolist()
    cosines = [sum(v * c for v, c in zip(image, label, strict=True)) for label in labels]
    anchor = max(range(len(cosines)), key=cosines.__getitem__) if anchor is None else anchor
    evidence = [v * c for v, c in zip(image, labels[anchor], strict=True)]
    order = sorted(range(len(image)), key=evidence.__getitem__, reverse=keep == "top")
    kept = set(order[: math.ceil(round(mask_fraction * len(image), 6))])
    masked = [v if d in kept else 0.0 for d, v in enumerate(image)]
    if renormalize:
        length = math.sqrt(sum(v * v for v in masked))
        masked = [v / length for v in masked]
    masked_cosines = [sum(v * c for v, c in zip(masked, label, strict=True)) for label in labels]
    num_cropped = max(1, min(num_cropped, len(cosines) - 1))
    top = sorted(range(len(cosines)), key=cosines.__getitem__, reverse=True)[:num_cropped]
    cropped = [0.0 if j in top else s for j, s in enumerate(cosines)]
    return tuple(minus_log_sum_exp([s / temperature for s in each]) for each in (cosines, cropped, masked_cosines))


def per_image(loss, images, labels, targets=None):
    """The loss of every image by itself."""
    return [
        float(loss(images[i : i + 1], labels, None if targets is None else targets[i : i + 1]))
        for i in range(len(images))
    ]


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("anchor", ["predicted", "label"])
@pytest.mark.parametrize("bound", ["plain", "safe"])
@pytest.mark.parametrize("num_labels", [1, 7])
def test_it_equals_explicit_sums(num_labels, bound, anchor, renormalize):
    images, labels, targets = features(num_labels)
    targets = (targets + 1) % num_labels
    loss = get_loss(
        "ebm", phi="identity", temperature=0.1, num_cropped=2, bound=bound, anchor=anchor, renormalize=renormalize
    )
    wanted = []
    for image, target in zip(images, targets, strict=True):
        chosen = int(target) if anchor == "label" else None
        before, cropped, masked = energies(image, labels, 0.1, 0.6, chosen, 2, renormalize=renormalize)
        wanted.append(before - (min(masked, cropped) if bound == "safe" else masked))
    assert per_image(loss, images, labels, targets) == pytest.approx(wanted, abs=1e-12)
    assert float(loss(images, labels, targets)) == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)
    assert float(loss(3 * images, 5 * labels, targets)) == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)


@pytest.mark.parametrize(
    ("phi", "temperature", "shape"),
    [
        ("softplus", 0.01, lambda gap: math.log1p(math.exp(-abs(gap))) + max(gap, 0)),
        ("exp", 1.0, math.exp),
        ("identity", 0.01, lambda gap: gap),
    ],
)
def test_phi_and_its_temperature(phi, temperature, shape):
    images, labels, _ = features(7)
    gaps = [before - masked for before, _, masked in (energies(i, labels, temperature, 0.6) for i in images)]
    # torch's softplus is its argument from 20 on, which is 2e-9 off.
    wanted = pytest.approx([shape(gap) for gap in gaps], abs=3e-9)
    assert per_image(get_loss("ebm", phi=phi), images, labels) == wanted


def test_the_exponent_is_cut_at_20_and_no_temperature_of_a_tenth_gets_there():
    # Of the two coordinates one speaks for the only label and one against it: masked, the cosine rises by 1/2.
    image, labels = torch.tensor([[0.7071, 0.7071]]), torch.tensor([[0.7071, -0.7071]])
    loss = {"phi": "exp", "mask_fraction": 0.5}
    assert float(get_loss("ebm", **loss, temperature=0.01)(image, labels)) == pytest.approx(math.exp(20), rel=1e-5)
    assert float(get_loss("ebm", **loss, temperature=0.1)(image, labels)) == pytest.approx(math.exp(5), rel=1e-3)


def test_labels_of_every_image_and_crops():
    images, labels, targets = features(7)
    loss = get_loss("ebm", phi="identity", temperature=0.1, anchor="label")
    generator = torch.Generator().manual_seed(9)
    own = labels + 0.1 * torch.randn(6, 7, DIM, generator=generator, dtype=torch.float64)
    wanted = [float(loss(images[i : i + 1], own[i], targets[i : i + 1])) for i in range(6)]
    assert float(loss(images, own, targets)) == pytest.approx(sum(wanted) / 6, abs=1e-12)
    same = labels.expand(6, 7, DIM)
    assert float(loss(images, same, targets)) == pytest.approx(float(loss(images, labels, targets)), abs=1e-12)
    crops = images.unsqueeze(1) + 0.2 * torch.randn(6, 3, DIM, generator=generator, dtype=torch.float64)
    for texts in (labels, own):
        wanted = [float(loss(crops[:, q], texts, targets)) for q in range(3)]
        assert float(loss(crops, texts, targets)) == pytest.approx(sum(wanted) / 3, abs=1e-12)


def test_only_correct():
    images, labels, targets = features(7)
    wrong = targets.clone()
    wrong[::2] = (wrong[::2] + 3) % 7
    assert torch.equal((images @ labels.T).argmax(-1), targets)
    loss = get_loss("ebm", only_correct=True)
    assert float(loss(images, labels, wrong)) == pytest.approx(float(get_loss("ebm")(images[1::2], labels)), abs=1e-12)
    labels.requires_grad_()
    none_left = loss(images, labels, (targets + 1) % 7)
    none_left.backward()
    assert none_left.item() == 0
    assert labels.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_energies_are_fp32_at_least_also_in_autocast(dtype):
    images, labels, _ = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in features(7))
    loss = get_loss("ebm", phi="identity")
    found = loss(images, labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss(images.double(), labels.double())), abs=2e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(images, labels), found)


# ---------------------------------------------------------------- the propositions


@pytest.mark.parametrize("mask_fraction", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
@pytest.mark.parametrize("num_labels", [7, 400])
def test_the_gap_is_a_lower_bound_of_delta_energy(num_labels, temperature, mask_fraction):
    images, labels, _ = features(num_labels, num_images=3, dim=512, alignment=0.3)
    scores = get_score("delta_energy", temperature=temperature)(ScoreInputs(similarity=images @ labels.T))
    options = {"phi": "identity", "temperature": temperature, "mask_fraction": mask_fraction}
    plain = per_image(get_loss("ebm", **options), images, labels)
    safe = per_image(get_loss("ebm", **options, bound="safe"), images, labels)
    for image, score, plain_value, safe_value in zip(images, scores.tolist(), plain, safe, strict=True):
        before, cropped, masked = energies(image, labels, temperature, mask_fraction)
        change = cropped - before
        assert -score == pytest.approx(change, abs=1e-4)
        # Proposition 1.
        assert -safe_value == pytest.approx(min(cropped, masked) - before, abs=1e-10)
        assert -safe_value <= change + 1e-12
        # Proposition 2: masks that keep the top meet its condition on features like these.
        assert masked <= cropped
        assert -plain_value == pytest.approx(masked - before, abs=1e-10)
        assert -plain_value <= change + 1e-12
        # Proposition 3.
        cosines = (labels @ image).sort(descending=True).values.tolist()
        rest = sum(math.exp(cosine / temperature) for cosine in cosines[1:])
        assert change >= cosines[0] / temperature - math.log(rest + 1) - 1e-9
        assert change >= cosines[0] / temperature / (rest + 1) - 1e-9
        # Masks that keep the bottom fail both ways.
        before, cropped, masked = energies(image, labels, temperature, mask_fraction, keep="bottom")
        assert masked > cropped
        assert masked - before > change


def test_without_a_cone_only_the_safe_bound_holds():
    images, labels, _ = features(400, cone=0.0)
    options = {"phi": "identity", "temperature": 1.0, "mask_fraction": 0.3}
    changes = [cropped - before for before, cropped, _ in (energies(i, labels, 1.0, 0.3) for i in images)]
    plain = per_image(get_loss("ebm", **options), images, labels)
    safe = per_image(get_loss("ebm", **options, bound="safe"), images, labels)
    assert any(-value > change + 1e-6 for value, change in zip(plain, changes, strict=True))
    assert all(-value <= change + 1e-12 for value, change in zip(safe, changes, strict=True))


def test_an_untuned_model_starts_below_the_bound():
    images, labels, _ = features(400)
    assert all(value > 0 for value in per_image(get_loss("ebm", phi="identity"), images, labels))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("bound", ["plain", "safe"])
@pytest.mark.parametrize("phi", ["softplus", "exp", "identity"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_gradients_equal_finite_differences(phi, bound, renormalize):
    images, labels, _ = (x.requires_grad_() if x.is_floating_point() else x for x in features(7, num_images=3, dim=9))
    loss = get_loss("ebm", phi=phi, temperature=0.1, bound=bound, renormalize=renormalize)
    assert torch.autograd.gradcheck(loss, (images, labels))


def test_the_gradient_on_labels_is_the_weighted_image_outside_the_mask():
    """With p, q the softmax of full and masked cosines: `dL/dc_j = -(p_j v - q_j v * m) / t` before normalisation."""
    images, labels, _ = features(7, num_images=1)
    labels.requires_grad_()
    get_loss("ebm", phi="identity", temperature=0.1)(images, labels).backward()
    image, texts = images[0], labels.detach()
    anchor = int((texts @ image).argmax())
    mask = torch.zeros(DIM, dtype=torch.float64)
    mask[(image * texts[anchor]).argsort(descending=True)[: math.ceil(0.6 * DIM)]] = 1
    full, masked = ((texts @ each / 0.1).softmax(-1).unsqueeze(1) for each in (image, image * mask))
    wanted = -(full * image - masked * image * mask) / 0.1
    wanted = wanted - (wanted * texts).sum(-1, keepdim=True) * texts
    torch.testing.assert_close(labels.grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("phi", ["softplus", "exp", "identity"])
def test_a_step_makes_the_discarded_coordinates_speak_for_the_class(phi):
    images, labels, targets = features(7)
    labels.requires_grad_()
    loss = get_loss("ebm", phi=phi, temperature=0.1)
    before = loss(images, labels)
    before.backward()
    with torch.no_grad():
        moved = labels - 1e-3 * labels.grad / labels.grad.norm()
        moved /= moved.norm(dim=-1, keepdim=True)
        evidence = images * labels[targets]
        discarded = evidence.argsort(dim=-1, descending=True)[:, math.ceil(0.6 * DIM) :]
        support, new_support = (x.gather(1, discarded).sum(-1) for x in (evidence, images * moved[targets]))
    assert (new_support > support).all()
    assert loss(images, moved) < before


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"phi": "softplos"}, UnknownNameError, r"phi of loss 'ebm' 'softplos'. Did you mean 'softplus'"),
        ({"bound": "save"}, UnknownNameError, r"bound of loss 'ebm' 'save'. Did you mean 'safe'"),
        ({"anchor": "labels"}, UnknownNameError, r"anchor of loss 'ebm' 'labels'. Did you mean 'label'"),
        ({"temperature": 0}, LossError, r"temperature must be above 0, or None, got 0"),
        ({"temperature": float("nan")}, LossError, r"temperature must be above 0"),
        ({"temperature": "1"}, LossError, r"temperature must be above 0, or None, got '1'"),
        ({"mask_fraction": 0}, LossError, r"mask_fraction must be between 0 and 1, got 0;"),
        ({"mask_fraction": 1.0}, LossError, r"mask_fraction.*got 1.0;"),
        ({"mask_fraction": True}, LossError, r"mask_fraction.*got True;"),
        ({"num_cropped": 0}, LossError, r"num_cropped must be at least 1, got 0"),
        ({"num_cropped": 1.5}, LossError, r"num_cropped must be at least 1, got 1.5"),
        ({"only_correct": 1}, LossError, r"only_correct must be True or False, got 1"),
        ({"renormalize": "no"}, LossError, r"renormalize must be True or False, got 'no'"),
    ],
    ids=str,
)
def test_option_errors(options, error, message):
    with pytest.raises(error, match=message):
        get_loss("ebm", **options)


def test_input_errors():
    images, labels, targets = features(7)
    loss = get_loss("ebm")
    for bad_images, bad_labels in (
        (images[:, :3], labels),
        (images[0], labels),
        (images, labels[:0]),
        (images, labels.expand(5, 7, DIM)),
        (images, labels[0]),
    ):
        with pytest.raises(LossError, match=r"needs image features \[B, D\].*at least one label"):
            loss(bad_images, bad_labels)
    with pytest.raises(LossError, match=r"'ebm': labels must be from 0 to 6, got 0 to 7"):
        loss(images, labels, torch.tensor([0, 1, 2, 3, 4, 7]))
    with pytest.raises(LossError, match=r"one label index an image, \[6\], got \(5,\)"):
        loss(images, labels, targets[:5])
    for options, named in (({"only_correct": True}, "only_correct"), ({"anchor": "label"}, "anchor='label'")):
        with pytest.raises(LossError, match=rf"with {named} needs labels"):
            get_loss("ebm", **options)(images, labels)
