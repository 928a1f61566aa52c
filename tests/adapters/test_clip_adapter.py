"""CLIP-Adapter: its network, its start, which is not the identity, and that text features stay."""

import pytest
import torch
from peft import get_peft_model
from slow_feature_maps import DIM, assert_layer_equals, embeds, layer_for
from slow_nft import cosines_of, parameters_of

from hf_oodclip import CLIPAdapterConfig
from hf_oodclip.adapters.clip_adapter import CLIPAdapterLayer
from hf_oodclip.errors import AdapterError
from hf_oodclip.similarity import OODSimilarity


def mapped(values, ratio, feature):
    """`ratio * A(f) + (1 - ratio) * f` of one image, a number at a time."""
    down, up = values["clip_adapter_down"], values["clip_adapter_up"]
    hidden = [torch.relu(sum(weight * x for weight, x in zip(row, feature, strict=True))) for row in down]
    out = [torch.relu(sum(weight * x for weight, x in zip(row, hidden, strict=True))) for row in up]
    return torch.stack([ratio * a + (1 - ratio) * f for a, f in zip(out, feature, strict=True)])


@pytest.mark.parametrize("own_texts", [False, True], ids=["shared texts", "texts of every image"])
@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
def test_values_and_gradients_equal_one_at_a_time(crops, own_texts):
    layer = layer_for(CLIPAdapterLayer, CLIPAdapterConfig(ratio=0.4, reduction=3), size=0.5)
    values = parameters_of(layer)
    assert values["clip_adapter_down"].shape == (4, DIM)
    maps = (lambda f: mapped(values, 0.4, f), lambda c, row: c, lambda c, row: c)
    assert_layer_equals(layer, maps, crops, own_texts)


def test_the_length_of_features_does_not_matter():
    """Without biases the network scales with its input: cached unit-length features are as good as raw ones."""
    layer = layer_for(CLIPAdapterLayer, CLIPAdapterConfig())
    images, labels, negatives, _ = embeds()
    for factor in (0.01, 7, 1000):
        for one, other in zip(
            layer(factor * images, labels, negatives), layer(images, labels, negatives), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_a_new_adapter_is_not_the_identity_but_near_it(tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(tiny, CLIPAdapterConfig())
    found = cosines_of(tiny, image_embeds)
    assert not torch.allclose(found, before, atol=1e-4)
    torch.testing.assert_close(found, before, rtol=0, atol=0.1)


def test_the_start_is_that_of_linear_layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = CLIPAdapterLayer(OODSimilarity(512), "default", CLIPAdapterConfig())
        linear = torch.nn.Linear(128, 512, bias=False)
    for value, bound in (
        (layer.clip_adapter_down["default"], 512**-0.5),
        (layer.clip_adapter_up["default"], 128**-0.5),
    ):
        assert bound * 0.99 < value.abs().max() <= bound
        assert float(value.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert float(linear.weight.std()) == pytest.approx(float(layer.clip_adapter_up["default"].std()), rel=0.02)


@pytest.mark.parametrize(
    ("options", "dim", "count"),
    [({}, 512, 131_072), ({"reduction": 1}, 512, 524_288), ({"reduction": 16}, 512, 32_768), ({}, 3, 6)],
    ids=str,
)
def test_parameter_counts(options, dim, count):
    layer = CLIPAdapterLayer(OODSimilarity(dim), "default", CLIPAdapterConfig(**options))
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, r"CLIP-Adapter: ratio must be a number above 0 and at most 1, got 0"),
        ({"ratio": 1.1}, r"ratio.*got 1.1"),
        ({"ratio": float("nan")}, r"ratio.*got nan"),
        ({"ratio": "0.2"}, r"ratio.*got '0.2'"),
        ({"ratio": True}, r"ratio.*got True"),
        ({"reduction": 0}, r"reduction must be a whole number, at least 1, got 0"),
        ({"reduction": 4.0}, r"reduction.*got 4.0"),
    ],
    ids=str,
)
def test_config_errors(options, message):
    with pytest.raises(AdapterError, match=message):
        CLIPAdapterConfig(**options)
