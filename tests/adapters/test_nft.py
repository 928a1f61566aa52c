"""NFT as a PEFT tuner: its mathematics, what it trains, switching, composition."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from slow_nft import cosines_of, layer_of, parameters_of, randomise, slow_cosines
from torch.nn.functional import cross_entropy
from transformers import CLIPModel

from hf_oodclip import NFTConfig, OODCLIPForImageClassification
from hf_oodclip.adapters.nft import NFTLayer
from hf_oodclip.errors import AdapterError, UnknownNameError
from hf_oodclip.similarity import OODSimilarity

DIM, LABELS, NEGATIVES = 12, 7, 9


def layer_for(config, dtype=torch.float64, seed=0):
    config.settle_classes(LABELS, NEGATIVES)
    return randomise(NFTLayer(OODSimilarity(DIM), "default", config), seed).to(dtype)


def embeds(seed=0, dtype=torch.float64, crops=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, DIM), (LABELS, DIM), (NEGATIVES, DIM), (5, crops, DIM)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


# ---------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("crops", [False, True], ids=["images", "crops"])
def test_values_and_gradients_equal_one_image_at_a_time(config, crops):
    layer, inputs = layer_for(config), embeds()
    found = layer.training_cosines(*inputs[:3], queries=inputs[3] if crops else None)
    parameters = parameters_of(layer)
    wanted = slow_cosines(parameters, config, *inputs[:3], queries=inputs[3] if crops else None)
    ours = [found.labels, found.negatives, found.kept_labels, found.kept_negatives]
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one.expand_as(other), other, rtol=0, atol=1e-12)

    def loss(labels, negatives, kept_labels, kept_negatives):
        logits = 10 * torch.cat([labels, negatives], dim=-1).flatten(0, -2)
        targets = torch.arange(len(logits)) % LABELS
        return cross_entropy(logits, targets) + 3 * (1 - kept_labels.mean()) + 2 * (1 - kept_negatives.mean())

    trained = [*parameters.values(), *(inputs if crops else inputs[:3])]
    grads = torch.autograd.grad(loss(*ours), trained, allow_unused=True)
    wanted_grads = torch.autograd.grad(loss(*wanted), trained, allow_unused=True)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert (grad is None) == (wanted_grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, wanted_grad, rtol=0, atol=1e-9)


def test_forward_equals_training_cosines(config):
    layer, inputs = layer_for(config, torch.float32), embeds(dtype=torch.float32)
    labels, negatives = layer(*inputs[:3])
    trained = layer.training_cosines(*inputs[:3])
    assert torch.equal(labels, trained.labels)
    assert torch.equal(negatives, trained.negatives)
    assert labels.dtype == torch.float32


def test_crops_equal_images_that_share_a_condition(config):
    layer, (images, labels, negatives, crops) = layer_for(config), embeds()
    together = layer.training_cosines(images, labels, negatives, crops)
    for index in range(crops.shape[1]):
        one = layer.training_cosines(images, labels, negatives, crops[:, index : index + 1])
        torch.testing.assert_close(together.labels[:, index], one.labels[:, 0], rtol=0, atol=1e-14)
    itself = layer.training_cosines(images, labels, negatives, images.unsqueeze(1))
    torch.testing.assert_close(itself.labels[:, 0], layer(images, labels, negatives)[0], rtol=0, atol=1e-14)


def test_a_batch_equals_one_by_one(config):
    layer, inputs = layer_for(config), embeds()
    together = layer(*inputs[:3])
    for index in range(len(inputs[0])):
        alone = layer(inputs[0][index : index + 1], *inputs[1:3])
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], other[index], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(config, dtype):
    layer = layer_for(config, torch.float32)
    inputs = [tensor.detach().to(dtype) for tensor in embeds()]
    labels, negatives = layer(*inputs[:3])
    assert labels.dtype == negatives.dtype == torch.promote_types(dtype, torch.float32)
    wanted = slow_cosines(
        {name: value.double() for name, value in parameters_of(layer).items()},
        config,
        *(tensor.double() for tensor in inputs[:3]),
    )
    torch.testing.assert_close(labels.double(), wanted[0], rtol=0, atol=5e-7)


def test_without_negatives(config):
    if config.variant == "class_specific":
        config.num_labels, config.num_negatives = LABELS, 0
    layer = randomise(NFTLayer(OODSimilarity(DIM), "default", config))
    images, labels, *_ = (tensor.detach().float() for tensor in embeds())
    found = layer(images, labels, labels[:0])
    assert found[0].shape == (5, LABELS)
    assert found[1].shape == (5, 0)


def test_any_embedding_width():
    for dim in (3, 512, 768):
        layer = randomise(NFTLayer(OODSimilarity(dim), "default", NFTConfig()))
        images, labels = torch.randn(2, dim), torch.randn(4, dim)
        wanted = slow_cosines(parameters_of(layer), NFTConfig(), images, labels, labels)
        torch.testing.assert_close(layer(images, labels, labels)[0], wanted[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- a new adapter


def test_a_new_adapter_changes_nothing(config, tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    get_peft_model(tiny, config)
    assert isinstance(tiny.similarity, NFTLayer)
    assert torch.equal(cosines_of(tiny, image_embeds), before)


def test_only_the_adapter_trains(config, tiny):
    model = get_peft_model(tiny, config)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".similarity.tuned_" in name for name in trainable)
    assert model.get_nb_trainable_parameters()[0] == sum(
        value.numel() for value in parameters_of(layer_of(model)).values()
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 36_896),
        ({"hidden_size": 64}, 266_496),
        ({"conditional": False}, 2_048),
        ({"variant": "uni"}, 18_448),
        ({"variant": "constant"}, 17_426),
        ({"variant": "constant", "conditional": False}, 2),
        ({"variant": "class_specific", "num_labels": 10, "num_negatives": 20}, 34_848 + 2 * 30 * 512),
        ({"variant": "mlp"}, 34_848),
    ],
    ids=str,
)
def test_parameter_counts_at_width_512(options, count):
    layer = NFTLayer(OODSimilarity(512), "default", NFTConfig(**options))
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


def test_the_first_network_layer_learns_from_the_second_step_on(case, tiny, image_embeds):
    if not case[1] and case[0] != "mlp":
        pytest.skip("no networks")
    model = get_peft_model(tiny, NFTConfig(variant=case[0], conditional=case[1]))
    layer = layer_of(model)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    bank = tiny.text_bank
    for step in range(2):
        optimizer.zero_grad()
        cosines = layer.training_cosines(image_embeds, bank.label_embeds, bank.negative_embeds)
        cross_entropy(100 * torch.cat([cosines.labels, cosines.negatives], dim=-1), torch.arange(6)).backward()
        grads = {name: value.grad for name, value in parameters_of(layer).items()}
        for name, grad in grads.items():
            assert torch.isfinite(grad).all()
            assert bool(grad.any()) == (step == 1 or "_down_" not in name), (step, name)
        optimizer.step()


def test_the_global_generator_is_used_as_any_torch_layer_does(tiny):
    states = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            states.append(parameters_of(layer_of(get_peft_model(copy.deepcopy(tiny), NFTConfig()))))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    down = states[0]["tuned_scale_down_weight"].detach()
    assert down.abs().max() <= 24**-0.5
    assert float(down.std()) == pytest.approx(24**-0.5 / 3**0.5, rel=0.15)


# ---------------------------------------------------------------- PEFT's verbs


def test_disable(config, tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    model = randomise(get_peft_model(tiny, config))
    tuned = cosines_of(model, image_embeds)
    assert not torch.equal(tuned, before)
    with model.disable_adapter():
        assert torch.equal(cosines_of(model, image_embeds), before)
    assert torch.equal(cosines_of(model, image_embeds), tuned)


def test_disable_by_transformers(tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    tiny.add_adapter(NFTConfig(), "maps")
    tuned = cosines_of(randomise(tiny), image_embeds)
    tiny.disable_adapters()
    assert torch.equal(cosines_of(tiny, image_embeds), before)
    tiny.enable_adapters()
    assert torch.equal(cosines_of(tiny, image_embeds), tuned)


def test_unload(config, tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    unloaded = randomise(get_peft_model(tiny, config)).unload()
    assert type(unloaded.similarity) is OODSimilarity
    assert torch.equal(cosines_of(unloaded, image_embeds), before)


def test_two_adapters_of_different_variants(tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    model = get_peft_model(tiny, NFTConfig(), adapter_name="first")
    randomise(model, seed=1)
    first = cosines_of(model, image_embeds)
    model.add_adapter("second", NFTConfig(variant="mlp", hidden_size=3))
    assert torch.equal(cosines_of(model, image_embeds), first)
    model.set_adapter("second")
    assert torch.equal(cosines_of(model, image_embeds), before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"base_model.model.similarity.{name}.second" for name in parameters_of(layer_of(model), "second")
    }
    model.set_adapter("first")
    assert torch.equal(cosines_of(model, image_embeds), first)
    model.delete_adapter("first")
    assert sorted(layer_of(model).configs) == ["second"]
    assert torch.equal(cosines_of(model, image_embeds), before)
    model.delete_adapter("second")
    assert torch.equal(cosines_of(model, image_embeds), before)
    assert type(model.unload().similarity) is OODSimilarity


def test_two_adapters_by_transformers(tiny, image_embeds):
    before = cosines_of(tiny, image_embeds)
    tiny.add_adapter(NFTConfig(), "first")
    first = cosines_of(randomise(tiny), image_embeds)
    tiny.add_adapter(NFTConfig(variant="uni"), "second")
    assert torch.equal(cosines_of(tiny, image_embeds), before)
    tiny.set_adapter("first")
    assert torch.equal(cosines_of(tiny, image_embeds), first)
    tiny.set_adapter(["first", "second"])
    with pytest.raises(AdapterError, match=r"'first', 'second'.*do not add up.*set_adapter\('first'\)"):
        cosines_of(tiny, image_embeds)
    tiny.delete_adapter("second")
    tiny.set_adapter("first")
    assert torch.equal(cosines_of(tiny, image_embeds), first)
    tiny.delete_adapter("first")
    assert torch.equal(cosines_of(tiny, image_embeds), before)


def test_merging_is_refused_and_leaves_the_model_whole(tiny, image_embeds):
    model = randomise(get_peft_model(tiny, NFTConfig()))
    tuned = cosines_of(model, image_embeds)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(AdapterError, match=r"cannot be merged.*unload\(\)"):
            merge()
    assert torch.equal(cosines_of(model, image_embeds), tuned)


def test_training_cosines_of_a_disabled_adapter_are_those_of_the_base(tiny, image_embeds):
    bank = tiny.text_bank
    wanted = tiny.similarity.training_cosines(image_embeds, bank.label_embeds, bank.negative_embeds)
    model = randomise(get_peft_model(tiny, NFTConfig()))
    with model.disable_adapter():
        found = tiny.similarity.training_cosines(image_embeds, bank.label_embeds, bank.negative_embeds)
    assert torch.equal(found.labels, wanted.labels) and torch.equal(found.negatives, wanted.negatives)
    assert found.kept_labels.tolist() == [[1.0] * 20] and found.kept_negatives.tolist() == [[1.0] * 8]


def test_state_dict_is_flat_and_knows_no_adapter_name(tiny):
    model = get_peft_model(tiny, NFTConfig(), adapter_name="some_name")
    state = get_peft_model_state_dict(model, adapter_name="some_name")
    wanted = NFTConfig().parameter_shapes(24)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        f"base_model.model.similarity.{name}": shape for name, shape in wanted.items()
    }


def test_bf16_base_keeps_an_fp32_adapter(make_model, tiny_clip, image_embeds):
    base = make_model(tiny_clip, dtype=torch.bfloat16)
    before = cosines_of(base, image_embeds)
    model = get_peft_model(base, NFTConfig())
    assert base.clip.dtype == torch.bfloat16
    assert {value.dtype for value in parameters_of(layer_of(model)).values()} == {torch.float32}
    assert torch.equal(cosines_of(model, image_embeds), before)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    output = randomise(model)(pixels, labels=torch.tensor([0, 1]))
    assert output.logits.dtype == torch.float32
    output.loss.backward()
    assert all(
        value.grad is not None and torch.isfinite(value.grad).all()
        for value in parameters_of(layer_of(model)).values()
    )


# ---------------------------------------------------------------- with other adapters


LORA = {"target_modules": r".*vision_model.*self_attn\.(q_proj|v_proj)", "r": 2}


def test_together_with_lora_on_the_vision_tower(tiny, tiny_clip, make_model, tmp_path):
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tiny.add_adapter(NFTConfig(), "maps")
    tiny.add_adapter(LoraConfig(**LORA), "tower")
    tiny.set_adapter(["maps", "tower"])
    tiny.train()
    optimizer = torch.optim.Adam([value for value in tiny.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        tiny(pixels, labels=torch.arange(3)).loss.backward()
        optimizer.step()
    trained = {name for name, value in tiny.named_parameters() if value.grad is not None and value.grad.any()}
    assert any("tuned_scale_down_weight" in name for name in trained)
    assert any("lora_A.tower" in name for name in trained)
    assert all("tuned_" in name or "lora_" in name for name in trained)
    tiny.eval()
    wanted = tiny(pixels).logits
    for name in ("maps", "tower"):
        tiny.set_adapter(name)
        tiny.save_pretrained(tmp_path / name)
    for order in (("maps", "tower"), ("tower", "maps")):
        again = make_model(tiny_clip)
        for name in order:
            again.load_adapter(str(tmp_path / name), name)
        again.set_adapter(["maps", "tower"])
        torch.testing.assert_close(again(pixels).logits, wanted, rtol=0, atol=1e-5)


def test_lora_merged_into_the_tower_first(tiny, image_embeds):
    merged = get_peft_model(tiny, LoraConfig(**LORA)).merge_and_unload()
    model = randomise(get_peft_model(merged, NFTConfig()))
    assert isinstance(model, PeftModel)
    assert not torch.equal(cosines_of(model, image_embeds), cosines_of(model.unload(), image_embeds))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "binery"}, UnknownNameError, r"NFT variant 'binery'. Did you mean 'binary'"),
        ({"hidden_size": 0}, AdapterError, r"hidden_size must be a whole number, at least 1, got 0"),
        ({"hidden_size": "8"}, AdapterError, r"hidden_size.*'8'"),
        ({"hidden_size": True}, AdapterError, r"hidden_size.*True"),
        ({"conditional": "yes"}, AdapterError, r"conditional must be True or False, got 'yes'"),
        ({"residual_scale": 0}, AdapterError, r"residual_scale must be finite and not 0"),
        ({"residual_scale": float("nan")}, AdapterError, r"residual_scale must be finite"),
        ({"residual_scale": "1"}, AdapterError, r"residual_scale must be a number, got '1'"),
        ({"deltas_dtype": "bf16"}, UnknownNameError, r"deltas_dtype 'bf16'. Did you mean 'bfloat16'"),
        ({"num_labels": 3}, AdapterError, r"num_labels belongs to variant 'class_specific'"),
        ({"variant": "class_specific", "num_negatives": -1}, AdapterError, r"num_negatives.*at least 0"),
    ],
    ids=str,
)
def test_config_errors(options, error, message):
    with pytest.raises(error, match=message):
        NFTConfig(**options)


def test_a_plain_clip_is_refused(tiny_clip):
    with pytest.raises(AdapterError, match=r"CLIPModel \(model type 'clip'\).*OODCLIPForImageClassification"):
        get_peft_model(CLIPModel.from_pretrained(tiny_clip), NFTConfig())


def test_another_target_is_refused(tiny):
    with pytest.raises(AdapterError, match=r"'text_bank' is a TextBank.*Leave target_modules out"):
        get_peft_model(tiny, NFTConfig(target_modules=["text_bank"]))


def test_class_specific_takes_its_counts_from_the_model(tiny):
    model = get_peft_model(tiny, NFTConfig(variant="class_specific"))
    saved = model.peft_config["default"]
    assert (saved.num_labels, saved.num_negatives) == (20, 8)


def test_class_specific_refuses_other_classes(tiny, image_embeds):
    with pytest.raises(AdapterError, match=r"for 3 labels and 8 negatives, not for 20 and 8"):
        get_peft_model(tiny, NFTConfig(variant="class_specific", num_labels=3))
    model = get_peft_model(tiny, NFTConfig(variant="class_specific"))
    for change in ({"labels": ["a", "b"]}, {"labels": tiny.labels, "negatives": ["x"]}):
        with pytest.raises(AdapterError, match=r"class-specific.*20 labels and 8 negatives.*any classes"):
            model.set_labels(**change)
    assert len(tiny.labels) == 20
    layer = layer_of(model)
    with pytest.raises(AdapterError, match=r"not for 2 and 8"):
        layer(image_embeds, tiny.text_bank.label_embeds[:2], tiny.text_bank.negative_embeds)


def test_class_specific_needs_classes(tiny_clip):
    base = OODCLIPForImageClassification.from_pretrained(tiny_clip)
    with pytest.raises(AdapterError, match=r"needs num_labels and num_negatives"):
        get_peft_model(base, NFTConfig(variant="class_specific"))


def test_a_class_agnostic_adapter_keeps_its_maps_for_new_labels(tiny, image_embeds):
    model = randomise(get_peft_model(tiny, NFTConfig()))
    kept = {name: value.clone() for name, value in parameters_of(layer_of(model)).items()}
    model.set_labels(["goldfish", "school bus"], negatives=["gravel", "fog", "sand"])
    wanted = slow_cosines(kept, NFTConfig(), image_embeds, tiny.text_bank.label_embeds, tiny.text_bank.negative_embeds)
    found = cosines_of(model, image_embeds)
    assert found.shape == (6, 5)
    torch.testing.assert_close(found, torch.cat(wanted[:2], dim=-1).detach(), rtol=0, atol=1e-6)
