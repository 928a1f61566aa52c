"""Feature maps one image and one text at a time, and the comparison of a layer with them."""

import torch
from slow_nft import parameters_of

from hf_oodclip.similarity import OODSimilarity

DIM, LABELS, NEGATIVES = 12, 7, 9


def cosine(one, other):
    return (one * other).sum() / (one.square().sum().sqrt() * other.square().sum().sqrt())


def unit(vector):
    return vector / vector.square().sum().sqrt()


def layer_for(layer_class, config, size=0.3):
    """A layer on embeddings of width 12 with random parameters, fp64."""
    config.settle_classes(LABELS, NEGATIVES)
    layer = layer_class(OODSimilarity(DIM), "default", config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(size * torch.randn(value.shape, generator=generator))
    return layer


def embeds(crops=3, own_texts=False):
    """Images, labels, negatives and crops of any length, fp64; texts of every image's own when asked."""
    generator = torch.Generator().manual_seed(1)
    lead = (5,) if own_texts else ()
    shapes = [(5, DIM), (*lead, LABELS, DIM), (*lead, NEGATIVES, DIM), (5, crops, DIM)]
    return [3 * torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def slow_cosines(map_image, map_label, map_negative, images, labels, negatives, queries=None):
    """Return cosines `[B, (Q,) K]` and kept cosines `[B, K]` of labels and negatives, a pair at a time.

    `map_image(f)`, `map_label(c, row)` and `map_negative(c, row)` give the adapted feature of one.
    """
    found = []
    for texts, map_text in ((labels, map_label), (negatives, map_negative)):
        cosines, kept = [], []
        for index, image in enumerate(images):
            listed = texts[index] if texts.ndim == 3 else texts
            mapped = [map_text(text, row) for row, text in enumerate(listed)]
            asked = [image] if queries is None else list(queries[index])
            cosines.append(torch.stack([torch.stack([cosine(map_image(f), c) for c in mapped]) for f in asked]))
            kept.append(torch.stack([cosine(c, text) for c, text in zip(mapped, listed, strict=True)]))
        stacked = torch.stack(cosines)
        found.append((stacked[:, 0] if queries is None else stacked, torch.stack(kept)))
    return [found[0][0], found[1][0], found[0][1], found[1][1]]


def assert_layer_equals(layer, maps, crops, own_texts):
    """Compare values and gradients, of parameters and inputs, with the slow form."""
    inputs = embeds(own_texts=own_texts)
    queries = inputs[3] if crops else None
    found = layer.training_cosines(*inputs[:3], queries)
    ours = [found.labels, found.negatives, found.kept_labels, found.kept_negatives]
    wanted = slow_cosines(*maps, *inputs[:3], queries)
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.expand_as(other), other, rtol=0, atol=1e-12)
    if not crops:
        forward = layer(*inputs[:3])
        assert all(torch.equal(one, other) for one, other in zip(forward, ours[:2], strict=True))
    # Any function of all four whose gradients are not symmetric.
    losses = [
        sum((parts[i] ** 2 * (i + 1) + parts[i] * torch.arange(parts[i].shape[-1])).mean() for i in range(4))
        for parts in ([one.expand_as(other) for one, other in zip(ours, wanted, strict=True)], wanted)
    ]
    trained = [*parameters_of(layer).values(), *(inputs[1:] if crops else inputs[:3])]
    grads, wanted_grads = (torch.autograd.grad(loss, trained) for loss in losses)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert wanted_grad.any()
        torch.testing.assert_close(grad, wanted_grad, rtol=0, atol=1e-9)
