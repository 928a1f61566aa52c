"""What every adapter of this package promises, whatever it does: one list of tests, run for each in `ADAPTERS`."""

from itertools import combinations

import pytest
import torch
from contract import CLASSES, PLACES, adapted, cosines_of, each_adapter, layer_of, new_config, randomise
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from slow_nft import parameters_of
from transformers import CLIPModel

from hf_oodclip import ContextPromptConfig, OODCLIPForImageClassification
from hf_oodclip.adapters import ADAPTERS
from hf_oodclip.errors import AdapterError

LORA = {"target_modules": r".*vision_model.*self_attn\.(q_proj|v_proj)", "r": 2}
TOGETHER = [pair for pair in combinations(ADAPTERS, 2) if PLACES[pair[0]] != PLACES[pair[1]]]
ON_ONE_PLACE = [pair for pair in combinations(ADAPTERS, 2) if PLACES[pair[0]] == PLACES[pair[1]]]


@pytest.fixture(autouse=True)
def same_start():
    """Adapters that start at random start the same in every test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def pixels():
    """Three random images for the tiny model."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- what trains, what does not


@each_adapter
def test_only_the_adapter_trains(name, tiny, pixels):
    model = adapted(tiny, name)
    prefix = f"base_model.model.{PLACES[name]}.{CLASSES[name][1].prefix}"
    trainable = {key: value for key, value in model.named_parameters() if value.requires_grad}
    shapes = model.peft_config["default"].parameter_shapes(24, 32)
    assert {key: tuple(value.shape) for key, value in trainable.items()} == {
        f"base_model.model.{PLACES[name]}.{key}.default": shape for key, shape in shapes.items()
    }
    assert all(key.startswith(prefix) for key in trainable)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model(pixels, labels=torch.arange(3)).loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert changed <= trainable.keys()


@each_adapter
def test_bf16_base_keeps_an_fp32_adapter(name, make_model, tiny_clip, pixels):
    base = make_model(tiny_clip, dtype=torch.bfloat16)
    model = adapted(base, name)
    assert base.clip.dtype == torch.bfloat16
    output = model(pixels.bfloat16(), labels=torch.tensor([0, 1, 2]))
    assert output.logits.dtype == torch.float32
    output.loss.backward()
    for value in parameters_of(layer_of(model, name)).values():
        assert value.dtype == torch.float32
        assert value.grad is None or torch.isfinite(value.grad).all()
    torch.manual_seed(0)
    wanted = adapted(make_model(tiny_clip), name)(pixels).logits
    torch.testing.assert_close(output.logits, wanted, rtol=0, atol=0.02 * base.clip.logit_scale.exp().item())


@each_adapter
def test_state_dict_is_flat_and_knows_no_adapter_name(name, tiny):
    model = get_peft_model(tiny, new_config(name), adapter_name="some_name")
    shapes = model.peft_config["some_name"].parameter_shapes(24, 32)
    state = get_peft_model_state_dict(model, adapter_name="some_name")
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        f"base_model.model.{PLACES[name]}.{key}": shape for key, shape in shapes.items()
    }


# ---------------------------------------------------------------- cosines


@each_adapter
def test_a_batch_equals_one_by_one(name, tiny, image_embeds):
    model = adapted(tiny, name)
    alone = torch.cat([cosines_of(model, image_embeds[i : i + 1]) for i in range(len(image_embeds))])
    torch.testing.assert_close(cosines_of(model, image_embeds), alone, rtol=0, atol=2e-6)


@each_adapter
@pytest.mark.parametrize("negatives", [True, False], ids=["negatives", "no negatives"])
def test_training_cosines_are_those_of_inference(name, negatives, make_model, tiny_clip, image_embeds):
    tiny = make_model(tiny_clip, negatives=None) if not negatives else make_model(tiny_clip)
    model = adapted(tiny, name)
    wanted = cosines_of(model, image_embeds).split([20, 8 if negatives else 0], dim=1)
    found = tiny.training_cosines(image_embeds)
    crops = tiny.training_cosines(image_embeds, image_embeds.unsqueeze(1).repeat(1, 2, 1))
    without = tiny.training_cosines(image_embeds, with_negatives=False)
    for one, other, crop in zip((found.labels, found.negatives), wanted, (crops.labels, crops.negatives), strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=0, atol=2e-6)
        assert crop.shape == (6, 2, other.shape[1])
        torch.testing.assert_close(crop[:, 1].detach(), other, rtol=0, atol=2e-6)
    assert without.negatives.shape == (6, 0)
    torch.testing.assert_close(without.labels.detach(), wanted[0], rtol=0, atol=2e-6)
    for kept, count in ((found.kept_labels, 20), (found.kept_negatives, wanted[1].shape[1])):
        assert kept.shape in ((1, count), (6, count))
        assert (kept <= 1 + 1e-6).all()


@each_adapter
def test_other_labels(name, tiny, image_embeds):
    model = adapted(tiny, name)
    labels, negatives = ["goldfish", "school bus"], ["gravel", "fog", "sand"]
    if model.peft_config["default"].is_class_specific:
        before = cosines_of(model, image_embeds)
        with pytest.raises(AdapterError, match=r"(?i)class-specific.*for 20 labels, not for 2\."):
            model.set_labels(labels, negatives=negatives)
        with pytest.raises(AdapterError, match="belongs to the labels it was trained with"):
            model.set_labels(tiny.labels[::-1])
        assert torch.equal(cosines_of(model, image_embeds), before)
        model.set_labels(tiny.labels, negatives=negatives)
        assert torch.equal(cosines_of(model, image_embeds)[:, :20], before[:, :20])
    else:
        before = cosines_of(model, image_embeds)
        model.set_labels([*labels, *tiny.labels], negatives=negatives)
        found = cosines_of(model, image_embeds)
        assert found.shape == (6, 25)
        torch.testing.assert_close(found[:, 2:22], before[:, :20], rtol=0, atol=2e-6)


# ---------------------------------------------------------------- PEFT's verbs


@each_adapter
def test_disable_and_unload(name, tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    base_class = type(getattr(tiny, PLACES[name]))
    model = adapted(tiny, name)
    tuned = cosines_of(model, image_embeds)
    assert not torch.allclose(tuned, before, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(cosines_of(model, image_embeds), before)
    assert torch.equal(cosines_of(model, image_embeds), tuned)
    unloaded = model.unload()
    assert type(getattr(unloaded, PLACES[name])) is base_class
    assert torch.equal(cosines_of(unloaded, image_embeds), before)


@each_adapter
def test_disable_by_transformers(name, tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    tiny.add_adapter(new_config(name), "mine")
    tuned = cosines_of(randomise(tiny, name, "mine"), image_embeds)
    tiny.disable_adapters()
    assert torch.equal(cosines_of(tiny, image_embeds), before)
    tiny.enable_adapters()
    assert torch.equal(cosines_of(tiny, image_embeds), tuned)
    tiny.delete_adapter("mine")
    assert torch.equal(cosines_of(tiny, image_embeds), before)


@each_adapter
def test_two_adapters_switched(name, tiny, image_embeds):
    tiny.add_adapter(new_config(name), "first")
    first = cosines_of(randomise(tiny, name, "first", seed=1), image_embeds)
    tiny.add_adapter(new_config(name), "second")
    second = cosines_of(randomise(tiny, name, "second", seed=2), image_embeds)
    assert not torch.allclose(first, second, atol=1e-4)
    for adapter_name, wanted in (("first", first), ("second", second), ("first", first)):
        tiny.set_adapter(adapter_name)
        assert torch.equal(cosines_of(tiny, image_embeds), wanted)
    tiny.set_adapter(["first", "second"])
    with pytest.raises(AdapterError, match=r"'first', 'second'.*do not add up.*set_adapter\('first'\)"):
        cosines_of(tiny, image_embeds)


@each_adapter
def test_merging_is_refused_and_leaves_the_model_whole(name, tiny, image_embeds):
    model = adapted(tiny, name)
    tuned = cosines_of(model, image_embeds)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(AdapterError, match=r"cannot be merged.*unload\(\)"):
            merge()
    assert torch.equal(cosines_of(model, image_embeds), tuned)


# ---------------------------------------------------------------- with other adapters


@each_adapter
def test_together_with_lora_on_the_vision_tower(name, tiny, make_model, tiny_clip, pixels, tmp_path):
    tiny.add_adapter(new_config(name), "mine")
    tiny.add_adapter(LoraConfig(**LORA), "tower")
    tiny.set_adapter(["mine", "tower"])
    randomise(tiny, name, "mine")
    optimizer = torch.optim.Adam([value for value in tiny.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        tiny(pixels, labels=torch.arange(3)).loss.backward()
        optimizer.step()
    trained = {key for key, value in tiny.named_parameters() if value.grad is not None and value.grad.any()}
    prefix = CLASSES[name][1].prefix
    assert any(f".{prefix}" in key for key in trained)
    assert any("lora_A.tower" in key for key in trained)
    assert all(f".{prefix}" in key or "lora_" in key for key in trained)
    tiny.eval()
    wanted = tiny(pixels).logits
    for adapter_name in ("mine", "tower"):
        tiny.set_adapter(adapter_name)
        tiny.save_pretrained(tmp_path / adapter_name)
    for order in (("mine", "tower"), ("tower", "mine")):
        again = make_model(tiny_clip)
        for adapter_name in order:
            again.load_adapter(str(tmp_path / adapter_name), adapter_name)
        again.set_adapter(["mine", "tower"])
        torch.testing.assert_close(again(pixels).logits, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pair", TOGETHER, ids="+".join)
def test_two_kinds_on_different_places(pair, tiny, pixels, image_embeds):
    alone = []
    for name in pair:
        tiny.add_adapter(new_config(name), f"the_{name}")
        alone.append(cosines_of(randomise(tiny, name, f"the_{name}"), image_embeds))
    tiny.set_adapter([f"the_{name}" for name in pair])
    both = cosines_of(tiny, image_embeds)
    assert all(not torch.allclose(both, one, atol=1e-4) for one in alone)
    tiny(pixels, labels=torch.arange(3)).loss.backward()
    for name in pair:
        grads = [value.grad for value in parameters_of(layer_of(tiny, name), f"the_{name}").values()]
        assert any(grad is not None and grad.any() for grad in grads), name
        tiny.set_adapter(f"the_{name}")
        assert torch.equal(cosines_of(tiny, image_embeds), alone[pair.index(name)])


@pytest.mark.parametrize("negative_context", ["none", "separate"])
@pytest.mark.parametrize("name", [name for name in ADAPTERS if PLACES[name] == "similarity"])
def test_with_prompts_that_every_image_moves(name, negative_context, tiny, image_embeds):
    """Then every image has text features of its own: the same numbers as one image at a time."""
    prompts = ContextPromptConfig(num_context=3, conditional=True, negative_context=negative_context)
    tiny.add_adapter(prompts, "words")
    tiny.add_adapter(new_config(name), "features")
    randomise(randomise(tiny, "context_prompt", "words"), name, "features")
    tiny.set_adapter(["words", "features"])
    together = cosines_of(tiny, image_embeds)
    alone = torch.cat([cosines_of(tiny, image_embeds[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    found = tiny.training_cosines(image_embeds, image_embeds.unsqueeze(1))
    torch.testing.assert_close(found.labels[:, 0].detach(), together[:, :20], rtol=0, atol=2e-6)
    torch.testing.assert_close(found.negatives[:, 0].detach(), together[:, 20:], rtol=0, atol=2e-6)
    found.labels.sum().backward()
    for layer in ("context_prompt", name):
        adapter_name = "words" if layer == "context_prompt" else "features"
        assert any(value.grad is not None for value in parameters_of(layer_of(tiny, layer), adapter_name).values())


@pytest.mark.parametrize("pair", ON_ONE_PLACE, ids="+".join)
def test_two_kinds_on_one_place_are_refused(pair, tiny, image_embeds):
    first, second = pair
    tiny.add_adapter(new_config(first), "first")
    before = cosines_of(randomise(tiny, first, "first"), image_embeds)
    with pytest.raises(AdapterError, match=rf"acts on the `{PLACES[second]}`.*no adapter of another kind"):
        tiny.add_adapter(new_config(second), "second")
    assert torch.equal(cosines_of(tiny, image_embeds), before)


# ---------------------------------------------------------------- what is refused


@each_adapter
def test_a_plain_clip_and_another_target_are_refused(name, tiny, tiny_clip):
    with pytest.raises(AdapterError, match=r"CLIPModel \(model type 'clip'\).*OODCLIPForImageClassification"):
        get_peft_model(CLIPModel.from_pretrained(tiny_clip), new_config(name))
    config = CLASSES[name][0](target_modules=["text_bank"])
    with pytest.raises(AdapterError, match=r"'text_bank' is a TextBank.*Leave target_modules out"):
        get_peft_model(tiny, config)


@each_adapter
def test_without_labels(name, tiny_clip, make_model):
    """A class-specific adapter needs to know them; the others act on whatever labels come later."""
    base = OODCLIPForImageClassification.from_pretrained(tiny_clip)
    if new_config(name).is_class_specific:
        with pytest.raises(AdapterError, match=r"set labels on the model first"):
            get_peft_model(base, new_config(name))
    else:
        model = adapted(base, name)
        model.set_labels(["goldfish", "school bus"])
        assert cosines_of(model, torch.ones(1, 24)).shape == (1, 2)


def test_every_pair_is_one_or_the_other():
    assert len(TOGETHER) + len(ON_ONE_PLACE) == len(list(combinations(ADAPTERS, 2)))
    assert set(PLACES.values()) == {"similarity", "prompt_learner"}
