"""Plain cross-entropy against torch's, one image at a time."""

import pytest
import torch
from hf_oodclip.training.losses import get_loss
from torch.nn.functional import cross_entropy

from hf_oodclip.errors import LossError


def logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("lead", [(4,), (4, 3)], ids=["images", "crops"])
def test_it_is_the_mean_cross_entropy_of_images_and_crops(lead):
    label_logits, labels = logits(*lead, 5), torch.tensor([0, 4, 2, 1])
    found = get_loss("classification")(label_logits, labels)
    losses = [
        cross_entropy(row, label)
        for rows, label in zip(label_logits.view(4, -1, 5), labels, strict=True)
        for row in rows
    ]
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(value, label_logits, retain_graph=True)[0] for value in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_it_equals_the_loss_with_negatives_where_there_are_none():
    label_logits, labels = logits(4, 5), torch.tensor([0, 4, 2, 1])
    with_negatives = get_loss("classification_with_negatives")(label_logits, label_logits[:, :0], labels)
    assert torch.equal(get_loss("classification")(label_logits, labels), with_negatives)


def test_large_logits_stay_finite():
    label_logits = (1e4 * logits(4, 5).detach().float()).requires_grad_()
    loss = get_loss("classification")(label_logits, torch.tensor([0, 4, 2, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(label_logits.grad).all()


def test_bad_input():
    loss = get_loss("classification")
    for labels, message in (
        (torch.tensor([0, 1, 2]), r"'classification' needs one label index an image, \[4\], got \(3,\)"),
        (torch.tensor([0, 1, 2, 5]), r"'classification': labels must be from 0 to 4, got 0 to 5"),
        (torch.zeros(4), r"got \(4,\) of torch.float32"),
    ):
        with pytest.raises(LossError, match=message):
            loss(logits(4, 5), labels)
    for shape in ((4, 0), (4,)):
        with pytest.raises(LossError, match=r"at least one label, got \(4,"):
            loss(logits(*shape), torch.zeros(4, dtype=torch.long))
