"""The losses against the sentences that define them: one explicit softmax at a time."""

import pytest
import torch
from hf_oodclip.training.losses import LOSSES, checked_loss, get_loss, list_losses
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hf_oodclip.errors import LossError, NonFiniteError, UnknownNameError
from hf_oodclip.scores.grouping import group_order

NUM_LABELS, NUM_NEGATIVES = 5, 23


def logits(*shape, seed=0, size=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def batch(crops, seed=0, size=3.0):
    lead = (4, 3) if crops else (4,)
    return logits(*lead, NUM_LABELS, seed=seed, size=size), logits(*lead, NUM_NEGATIVES, seed=seed + 1, size=size)


def rows_of(label_logits, negative_logits):
    """Pairs of one-dimensional label and negative logits."""
    return zip(label_logits.flatten(0, -2), negative_logits.flatten(0, -2), strict=True)


def assert_equal_with_gradients(found, wanted, inputs):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    ours, slow = (
        torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True) for value in (found, wanted)
    )
    for one, other in zip(ours, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
@pytest.mark.parametrize("num_groups", [1, 2, 5, 23, 40])
def test_classification_equals_concatenated_cross_entropy(num_groups, crops):
    label_logits, negative_logits = batch(crops)
    labels = torch.tensor([0, 4, 2, 1])
    found = get_loss("classification_with_negatives", num_groups=num_groups)(label_logits, negative_logits, labels)
    targets = labels.repeat_interleave(3) if crops else labels
    losses = []
    for (row, negatives), target in zip(rows_of(label_logits, negative_logits), targets, strict=True):
        for group in group_order(NUM_NEGATIVES, num_groups, 0):
            losses.append(cross_entropy(torch.cat([row, negatives[group]]), target))
    assert_equal_with_gradients(found, torch.stack(losses).mean(), (label_logits, negative_logits))


@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
@pytest.mark.parametrize("num_groups", [1, 2, 5, 23, 40])
def test_ood_loss_equals_log_of_concatenated_softmax_mass(num_groups, crops):
    label_logits, negative_logits = batch(crops)
    found = get_loss("ood_negatives", num_groups=num_groups)(label_logits, negative_logits)
    losses = []
    for row, negatives in rows_of(label_logits, negative_logits):
        for group in group_order(NUM_NEGATIVES, num_groups, 0):
            mass = torch.cat([row, negatives[group]]).softmax(-1)[:NUM_LABELS].sum()
            losses.append(mass.log())
    assert_equal_with_gradients(found, torch.stack(losses).mean(), (label_logits, negative_logits))


def test_without_negatives():
    label_logits, negative_logits = batch(False)
    labels = torch.tensor([0, 4, 2, 1])
    found = get_loss("classification_with_negatives", num_groups=10)(label_logits, negative_logits[:, :0], labels)
    torch.testing.assert_close(found, cross_entropy(label_logits, labels))
    with pytest.raises(LossError, match=r"'ood_negatives' needs negatives"):
        get_loss("ood_negatives")(label_logits, negative_logits[:, :0])


def test_dropped_negatives_and_seeds():
    label_logits, negative_logits = batch(False)
    loss = get_loss("ood_negatives", num_groups=4)
    changed = negative_logits.detach().clone()
    changed[:, 20:] += 5
    assert torch.equal(loss(label_logits, negative_logits), loss(label_logits, changed))
    other = get_loss("ood_negatives", num_groups=4, seed=1)(label_logits, negative_logits)
    assert not torch.equal(loss(label_logits, negative_logits), other)


def test_the_global_generator_is_left_alone():
    label_logits, negative_logits = batch(False)
    before = torch.random.get_rng_state()
    get_loss("ood_negatives", num_groups=7, seed=99)(label_logits, negative_logits)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_extreme_logits_stay_finite_with_finite_gradients(size):
    label_logits, negative_logits = (tensor.detach().float().requires_grad_() for tensor in batch(False, size=size))
    labels = torch.tensor([0, 4, 2, 1])
    total = get_loss("classification_with_negatives")(label_logits, negative_logits, labels)
    total = total + get_loss("ood_negatives")(label_logits, negative_logits)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(tensor.grad).all() for tensor in (label_logits, negative_logits))


def test_the_gradient_of_the_ood_loss_is_the_mass_of_the_negatives():
    label_logits, negative_logits = logits(1, 3), logits(1, 6, seed=1)
    get_loss("ood_negatives")(label_logits, negative_logits).backward()
    mass = torch.cat([label_logits, negative_logits], dim=-1).softmax(-1)[0, 3:].sum()
    torch.testing.assert_close(label_logits.grad.sum(), mass)
    torch.testing.assert_close(negative_logits.grad.sum(), -mass)


@pytest.mark.parametrize("rows", [1, 4])
def test_knowledge_on_features_is_one_minus_the_mean_over_all_classes(rows):
    labels, negatives = logits(rows, NUM_LABELS), logits(rows, NUM_NEGATIVES, seed=1)
    found = get_loss("knowledge_regularization")(labels, negatives)
    wanted = 1 - torch.cat([labels, negatives], dim=-1).mean()
    assert_equal_with_gradients(found, wanted, (labels, negatives))
    assert get_loss("knowledge_regularization")(torch.ones(2, 3), torch.ones(2, 4)) == 0


@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
@pytest.mark.parametrize("on", ["logit", "probability"])
def test_knowledge_on_logits_and_probabilities(on, crops):
    tuned, original = batch(crops), [tensor.detach() for tensor in batch(crops, seed=5)]
    loss = get_loss("knowledge_regularization", on=on)
    found = loss(*tuned, *original)
    both, before = torch.cat(tuned, dim=-1).flatten(0, -2), torch.cat(original, dim=-1).flatten(0, -2)
    if on == "logit":
        wanted = (both - before).square().mean()
    else:
        logs = log_softmax(both, dim=-1), log_softmax(before, dim=-1)
        wanted = kl_div(*logs, log_target=True, reduction="batchmean")
    assert_equal_with_gradients(found, wanted, tuned)
    assert loss(*original, *original).abs() < 1e-12
    assert torch.isfinite(loss(tuned[0], tuned[1][..., :0], original[0], original[1][..., :0]))
    with pytest.raises(LossError, match=rf"on '{on}' needs the logits of the untuned model"):
        loss(*tuned)
    with pytest.raises(LossError, match="differ in shape"):
        loss(*tuned, original[0][..., :2], original[1])


def test_bad_input():
    loss = get_loss("classification_with_negatives")
    label_logits, negative_logits = batch(False)
    for labels, message in (
        (torch.tensor([0, 1, 2]), r"one label index an image, \[4\], got \(3,\)"),
        (torch.tensor([0, 1, 2, 5]), r"labels must be from 0 to 4, got 0 to 5"),
        (torch.tensor([-1, 1, 2, 3]), r"labels must be from 0 to 4, got -1 to 3"),
        (torch.zeros(4), r"got \(4,\) of torch.float32"),
    ):
        with pytest.raises(LossError, match=message):
            loss(label_logits, negative_logits, labels)
    with pytest.raises(LossError, match=r"of the same batch, got \(4, 5\) and \(3, 23\)"):
        loss(label_logits, negative_logits[:3], torch.zeros(4, dtype=torch.long))
    for name in ("classification_with_negatives", "ood_negatives"):
        with pytest.raises(LossError, match=r"num_groups must be at least 1, got 0"):
            get_loss(name, num_groups=0)
    with pytest.raises(UnknownNameError, match=r"'features'. Did you mean 'feature'"):
        get_loss("knowledge_regularization", on="features")


def test_checked_loss():
    value = torch.tensor(1.5, requires_grad=True)
    assert checked_loss(value, "ood_negatives") is value
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(
            NonFiniteError, match=r"'ood_negatives' is -?(nan|inf) on batch \[3, cat.png\].*checkpoint"
        ):
            checked_loss(torch.tensor(bad), "ood_negatives", [3, "cat.png"])
    with pytest.raises(NonFiniteError, match=r"\[0, 1, .*9, \.\.\.\]"):
        checked_loss(torch.tensor(float("nan")), "any", list(range(64)))


@pytest.mark.parametrize("name", list_losses())
def test_the_table(name):
    loss = get_loss(name)
    assert loss.name == name
    assert loss.info.title and loss.info.year > 2015 and loss.info.url.startswith("https://")
    assert LOSSES[name].split(":")[0] == name
    for part in ("Args:", "Source:", "Example:"):
        assert part in type(loss).__doc__


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"loss 'ood_negative'. Did you mean 'ood_negatives'"):
        get_loss("ood_negative")
    with pytest.raises(UnknownNameError, match=r"option of loss 'ood_negatives' 'groups'. Did you mean 'num_groups'"):
        get_loss("ood_negatives", groups=3)
