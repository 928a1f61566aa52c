"""Task residuals: what is added to the labels, and that it belongs to them."""

import pytest
import torch
from peft import get_peft_model
from slow_feature_maps import assert_layer_equals, layer_for
from slow_nft import cosines_of, parameters_of

from hf_oodclip import TaskResidualConfig
from hf_oodclip.adapters.task_residual import TaskResidualLayer
from hf_oodclip.errors import AdapterError
from hf_oodclip.similarity import OODSimilarity


@pytest.mark.parametrize("own_texts", [False, True], ids=["shared texts", "texts of every image"])
@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
def test_values_and_gradients_equal_one_at_a_time(crops, own_texts):
    layer = layer_for(TaskResidualLayer, TaskResidualConfig(residual_scale=0.7))
    vectors = parameters_of(layer)["residual_labels"]
    maps = (lambda f: f, lambda c, row: c + 0.7 * vectors[row], lambda c, row: c)
    assert_layer_equals(layer, maps, crops, own_texts)


@pytest.mark.parametrize("average", ["normalized", "unnormalized"])
def test_a_new_adapter_changes_nothing(tiny, image_embeds, average):
    tiny.set_labels(tiny.labels, "tip7", average=average)
    before = cosines_of(tiny, image_embeds)
    get_peft_model(tiny, TaskResidualConfig())
    assert isinstance(tiny.similarity, TaskResidualLayer)
    assert torch.equal(cosines_of(tiny, image_embeds), before)


def test_it_is_added_to_what_the_bank_stores(tiny, image_embeds):
    """To the mean over templates before normalisation, where the bank has that: the paper's form."""
    tiny.set_labels(tiny.labels, "tip7", average="unnormalized")
    bank = tiny.text_bank.label_embeds.clone()
    assert not torch.allclose(bank.norm(dim=-1), torch.ones(20), atol=0.05)
    model = get_peft_model(tiny, TaskResidualConfig())
    before = cosines_of(model, image_embeds)
    with torch.no_grad():
        tiny.similarity.residual_labels["default"][3] = torch.arange(24) / 10
    moved = bank[3] + 0.5 * torch.arange(24) / 10
    found = cosines_of(model, image_embeds)
    wanted = torch.stack([image @ moved / image.norm() / moved.norm() for image in image_embeds])
    torch.testing.assert_close(found[:, 3], wanted, rtol=0, atol=1e-6)
    others = [column for column in range(found.shape[1]) if column != 3]
    assert torch.equal(found[:, others], before[:, others])


def test_parameter_count(tiny):
    assert TaskResidualConfig(num_labels=1000).parameter_shapes(512) == {"residual_labels": (1000, 512)}
    model = get_peft_model(tiny, TaskResidualConfig())
    assert model.get_nb_trainable_parameters()[0] == 20 * 24
    assert model.peft_config["default"].num_labels == 20


def test_it_belongs_to_its_labels(tiny, image_embeds):
    with pytest.raises(AdapterError, match=r"class-specific Task residual adapter is for 3 labels, not for 20\."):
        get_peft_model(tiny, TaskResidualConfig(num_labels=3))
    get_peft_model(tiny, TaskResidualConfig())
    bank = tiny.text_bank
    with pytest.raises(AdapterError, match=r"for 20 labels, not for 2\."):
        tiny.similarity(image_embeds, bank.label_embeds[:2], bank.negative_embeds)
    labels, negatives = tiny.similarity(image_embeds, bank.label_embeds, bank.negative_embeds[:1])
    assert (labels.shape, negatives.shape) == ((6, 20), (6, 1))


@pytest.mark.parametrize("scale", [0, True, "1", float("nan"), float("inf")], ids=str)
def test_config_errors(scale):
    with pytest.raises(AdapterError, match=r"Task residual: residual_scale must be a number, finite and not 0, got"):
        TaskResidualConfig(residual_scale=scale)


@pytest.mark.parametrize("count", [0, True, "3", 2.0], ids=str)
def test_count_errors(count):
    with pytest.raises(AdapterError, match=r"num_labels must be a whole number, at least 1, got"):
        TaskResidualConfig(num_labels=count)


def test_the_number_of_labels_must_be_known():
    with pytest.raises(AdapterError, match=r"needs num_labels; set labels on the model first"):
        TaskResidualLayer(OODSimilarity(12), "default", TaskResidualConfig())
