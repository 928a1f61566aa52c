"""SSF on features: its map, its start, and which features it acts on."""

import pytest
import torch
from peft import get_peft_model
from slow_feature_maps import assert_layer_equals, embeds, layer_for, unit
from slow_nft import cosines_of, parameters_of

from hf_oodclip import SSFConfig
from hf_oodclip.adapters.ssf import SSFLayer
from hf_oodclip.errors import AdapterError, UnknownNameError
from hf_oodclip.similarity import OODSimilarity

on_each = pytest.mark.parametrize("on", ["image", "text", "both"])


@on_each
@pytest.mark.parametrize("own_texts", [False, True], ids=["shared texts", "texts of every image"])
@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
def test_values_and_gradients_equal_one_at_a_time(on, crops, own_texts):
    layer = layer_for(SSFLayer, SSFConfig(on=on))
    values = parameters_of(layer)

    def mapped(feature, what):
        if on not in (what, "both"):
            return feature
        return (1 + values[f"ssf_{what}_scale"]) * unit(feature) + values[f"ssf_{what}_shift"]

    def map_text(feature, row):
        return mapped(feature, "text")

    assert_layer_equals(layer, (lambda f: mapped(f, "image"), map_text, map_text), crops, own_texts)


@on_each
def test_the_length_of_features_does_not_matter(on):
    layer = layer_for(SSFLayer, SSFConfig(on=on))
    images, labels, negatives, _ = embeds()
    wanted = layer(images, labels, negatives)
    for one, other in zip(layer(7 * images, labels / 5, 3 * negatives), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@on_each
@pytest.mark.parametrize("average", ["normalized", "unnormalized"])
def test_a_new_adapter_changes_nothing(tiny, image_embeds, on, average):
    tiny.set_labels(tiny.labels, "tip7", average=average)
    before = cosines_of(tiny, image_embeds)
    get_peft_model(tiny, SSFConfig(on=on))
    assert isinstance(tiny.similarity, SSFLayer)
    assert torch.equal(cosines_of(tiny, image_embeds), before)


def test_a_random_start(tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SSFLayer(OODSimilarity(4096), "default", SSFConfig(init_std=0.02))
        get_peft_model(tiny, SSFConfig(init_std=0.001))
    for value in parameters_of(layer).values():
        assert float(value.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert abs(float(value.detach().mean())) < 0.002
    found = cosines_of(tiny, image_embeds)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, before, rtol=0, atol=0.02)


@pytest.mark.parametrize(("on", "count"), [("image", 1024), ("text", 1024), ("both", 2048)])
def test_parameter_counts_at_width_512(on, count):
    layer = SSFLayer(OODSimilarity(512), "default", SSFConfig(on=on))
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


def test_a_zero_feature_has_finite_gradients():
    layer = layer_for(SSFLayer, SSFConfig())
    images, labels, negatives, _ = (tensor.detach() for tensor in embeds())
    images[0] = 0
    images.requires_grad_()
    layer(images, labels, negatives)[0].sum().backward()
    assert torch.isfinite(images.grad).all()
    assert all(torch.isfinite(value.grad).all() for value in parameters_of(layer).values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"on": "images"}, UnknownNameError, r"SSF features \(on\) 'images'. Did you mean 'image'"),
        ({"init_std": -1}, AdapterError, r"SSF: init_std must be a finite number, at least 0, got -1"),
        ({"init_std": float("nan")}, AdapterError, r"init_std.*got nan"),
        ({"init_std": float("inf")}, AdapterError, r"init_std.*got inf"),
        ({"init_std": "0"}, AdapterError, r"init_std.*got '0'"),
        ({"init_std": True}, AdapterError, r"init_std.*got True"),
    ],
    ids=str,
)
def test_config_errors(options, error, message):
    with pytest.raises(error, match=message):
        SSFConfig(**options)
