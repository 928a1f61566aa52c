"""Text features under adapters: made once, made again when they change, and never of a state that is past."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from hf_oodclip import Negatives, NFTConfig, OODCLIPForImageClassification
from hf_oodclip.adapters.context_prompt import ContextPromptConfig
from hf_oodclip.adapters.ssf import SSFConfig
from hf_oodclip.text_bank import TextEncoder

LABELS = ["goldfish", "school bus", "dining table"]
WORDS = ["gravel", "tax law"]
TEXT_LORA = {"r": 2, "target_modules": r".*text_model.*(q_proj|v_proj)", "init_lora_weights": False}
VISION_LORA = {"r": 2, "target_modules": r".*vision_model.*(q_proj|v_proj)", "init_lora_weights": False}


@pytest.fixture
def model(make_model, tiny_clip):
    """A fresh tiny model of 3 labels and 2 negatives."""
    return make_model(tiny_clip, labels=LABELS, negatives=WORDS)


@pytest.fixture
def images():
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def passes(model):
    """The prompts of every pass of the model's text tower so far."""
    rows = []
    model.clip.text_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    return rows


def add_context(model, name="prompt", **options):
    options = {"num_context": 2, "negative_context": "separate", "init_std": 0.3, **options}
    model.add_adapter(ContextPromptConfig(**options), name)
    return [value for key, value in model.prompt_learner.named_parameters() if key.endswith(name)]


def cosines(model, images):
    with torch.no_grad():
        return torch.cat(model.cosines(images), dim=-1)


def made_anew(model, images):
    """The cosines of a copy of the model that has kept nothing."""
    twin = copy.deepcopy(model)
    twin._adapted.clear()
    return cosines(twin, images)


def assert_fresh(model, images, other_than=None):
    """Assert that the cosines are those of the present state, and that this state differs from an earlier one."""
    found = cosines(model, images)
    torch.testing.assert_close(found, made_anew(model, images), rtol=0, atol=1e-6)
    if other_than is not None:
        assert (found - other_than).abs().max() > 1e-4
    return found


# ---------------------------------------------------------------- made once


@pytest.mark.parametrize("kind", ["context", "lora"])
def test_made_once_not_for_every_batch(model, images, passes, kind):
    if kind == "context":
        add_context(model)
    else:
        model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    passes.clear()
    first = cosines(model, images)
    assert passes == [3, 2]
    assert torch.equal(cosines(model, images), first)
    torch.testing.assert_close(cosines(model, images[:2]), first[:2])
    with torch.inference_mode():
        model.cosines(images)
    assert passes == [3, 2]


def test_frozen_prompts_are_made_once_in_training_too(model, images, passes):
    for value in add_context(model):
        value.requires_grad_(False)
    model.train()
    first = model.training_cosines(images)
    again = model.training_cosines(images)
    assert passes == [3, 2]
    assert torch.equal(first.labels, again.labels)
    assert model.clip.training


def test_prompts_that_learn_are_made_for_every_batch_of_training(model, images, passes):
    parameters = add_context(model)
    for _ in range(2):
        model.training_cosines(images).labels.sum().backward()
    assert passes == [3, 2, 3, 2]
    assert parameters[0].grad.abs().max() > 0


def test_negatives_that_no_adapter_changes_are_those_of_the_bank(model, images, passes):
    add_context(model, negative_context="none")
    bank = model.text_bank.negative_embeds
    assert model.text_features()[1] is bank
    with torch.no_grad():
        assert model.text_features()[1] is bank
    assert passes == [3, 3]


def test_adapters_elsewhere_leave_the_bank(model, images, passes):
    bank = model.text_bank
    model.add_adapter(LoraConfig(**VISION_LORA), "vision")
    model.add_adapter(NFTConfig(), "feature_map")
    for names in (["vision"], ["feature_map"], ["vision", "feature_map"]):
        model.set_adapter(names)
        labels, negatives = model.text_features()
        assert labels is bank.label_embeds and negatives is bank.negative_embeds
        model.training_cosines(images)
    assert passes == []


# ---------------------------------------------------------------- made again


OPTIMIZERS = {
    "adamw": lambda values: torch.optim.AdamW(values, lr=0.1, foreach=False),
    "foreach adamw": lambda values: torch.optim.AdamW(values, lr=0.1, foreach=True),
    # What 🤗 Trainer uses; it leaves no trace in the version of a parameter.
    "fused adamw": lambda values: torch.optim.AdamW(values, lr=0.1, fused=True),
    "fused sgd": lambda values: torch.optim.SGD(values, lr=10.0, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["context", "lora", "projection"])
def test_made_again_after_a_step(model, images, kind, optimizer):
    if kind == "context":
        add_context(model)
    else:
        target = TEXT_LORA if kind == "lora" else {**TEXT_LORA, "target_modules": ["text_projection"]}
        model.add_adapter(LoraConfig(**target), "tower")
    before = cosines(model, images)
    learnt = OPTIMIZERS[optimizer]([value for value in model.parameters() if value.requires_grad])
    model.training_cosines(images).labels[:, 0].sum().backward()
    learnt.step()
    assert_fresh(model, images, other_than=before)


@pytest.mark.parametrize("how", ["no_grad", "data", "state_dict", "peft", "load_state_dict", "assign"])
def test_made_again_after_weights_are_replaced(model, images, how):
    add_context(model, "prompt")
    before = cosines(model, images)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = {
            name: torch.randn_like(value)
            for name, value in get_peft_model_state_dict(model, adapter_name="prompt").items()
        }
    values = {name: value for name, value in model.named_parameters() if "context_" in name}
    if how == "peft":
        set_peft_model_state_dict(model, state, adapter_name="prompt")
    elif how in ("load_state_dict", "assign"):
        full = {f"{name}.prompt": value for name, value in state.items()}
        assert not model.load_state_dict(full, strict=False, assign=how == "assign").unexpected_keys
    else:
        for name, value in values.items():
            new = state[name.removesuffix(".prompt")]
            if how == "no_grad":
                with torch.no_grad():
                    value.copy_(new)
            elif how == "data":
                value.data.copy_(new)
            else:
                value.data = new
    assert_fresh(model, images, other_than=before)


def test_an_adapter_of_the_same_name(model, images):
    before = None
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            add_context(model, "prompt")
        before = assert_fresh(model, images, other_than=before)
        model.delete_adapter("prompt")
    torch.testing.assert_close(cosines(model, images), cosines_of_bank(model, images), rtol=0, atol=1e-6)


def cosines_of_bank(model, images):
    bank = model.text_bank
    return normalize(images, dim=-1) @ torch.cat([bank.label_embeds, bank.negative_embeds]).T


def test_switching_adapters(model, images, make_model, tiny_clip):
    bare = cosines(model, images)
    bank = model.text_bank.label_embeds.clone()
    add_context(model, "first_prompt")
    first = assert_fresh(model, images, other_than=bare)
    add_context(model, "second_prompt")
    second = assert_fresh(model, images, other_than=first)
    model.set_adapter("first_prompt")
    assert torch.equal(cosines(model, images), first)
    model.disable_adapters()
    assert torch.equal(cosines(model, images), bare)
    model.enable_adapters()
    assert torch.equal(cosines(model, images), first)
    model.set_adapter("second_prompt")
    assert torch.equal(cosines(model, images), second)
    assert torch.equal(model.text_bank.label_embeds, bank)


@pytest.mark.parametrize("kind", ["context", "lora"])
def test_made_again_for_other_texts(model, images, kind):
    if kind == "context":
        add_context(model)
    else:
        model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    before = cosines(model, images)
    model.set_labels(["goldfish", "tabby cat", "dining table"], negatives=WORDS)
    found = assert_fresh(model, images, other_than=before)
    torch.testing.assert_close(found[:, [0, 2, 3, 4]], before[:, [0, 2, 3, 4]], rtol=0, atol=1e-6)
    model.set_labels(model.labels, negatives=["sand", "tax law"])
    found = assert_fresh(model, images, other_than=found)
    for average in ("raw", "normalized"):
        model.set_labels(model.labels, templates=["a painting of a {}", "{}"], average=average)
        again = assert_fresh(model, images)
        # Learnt words stand in place of templates; a tuned tower reads them.
        assert ((again - found)[:, :3].abs().max() > 1e-4) == (kind == "lora")
        found = again


def test_made_again_when_the_tower_itself_changes(model, images):
    add_context(model)
    before = cosines(model, images)
    with torch.no_grad():
        model.clip.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    found = assert_fresh(model, images, other_than=before)
    model.clip.text_projection.weight = torch.nn.Parameter(-model.clip.text_projection.weight, requires_grad=False)
    torch.testing.assert_close(cosines(model, images), -found, rtol=0, atol=1e-6)


def test_made_again_for_another_config(model, images):
    add_context(model)
    before = cosines(model, images)
    model.delete_adapter("prompt")
    model.add_adapter(ContextPromptConfig(num_context=2, negative_context="separate", position="front"), "prompt")
    assert_fresh(model, images, other_than=before)


def test_dtype_moves_with_the_model(model, images):
    add_context(model)
    cosines(model, images)
    found = cosines(model.double(), images.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, made_anew(model, images.double()), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- what must not be kept


@pytest.mark.parametrize("with_context", [False, True])
def test_dropout_is_not_kept(model, images, with_context):
    if with_context:
        add_context(model, "prompt")
    model.add_adapter(LoraConfig(**TEXT_LORA, lora_dropout=0.5), "tower")
    model.set_adapter(["prompt", "tower"] if with_context else "tower")
    model.eval()
    wanted = cosines(model, images)
    model._adapted.clear()
    model.train()
    assert torch.equal(cosines(model, images), wanted)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = model.training_cosines(images).labels, model.training_cosines(images).labels
    assert not torch.equal(one, other)
    model.eval()
    assert torch.equal(cosines(model, images), wanted)


@pytest.mark.parametrize("kind", ["context", "lora"])
def test_low_precision_is_not_kept(model, images, kind):
    if kind == "context":
        add_context(model)
    else:
        model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    with torch.autocast("cpu", torch.bfloat16):
        first = cosines(model, images)
    assert torch.equal(cosines(model, images), first)
    torch.testing.assert_close(first, made_anew(model, images), rtol=0, atol=1e-6)


def test_features_kept_in_inference_mode_serve_training(model, images):
    add_context(model, "prompt")
    model.add_adapter(SSFConfig(), "feature_map")
    model.set_adapter(["prompt", "feature_map"])
    for value in model.prompt_learner.parameters():
        value.requires_grad_(False)
    with torch.inference_mode():
        model.cosines(images)
    # The gradient of a scale needs the kept text features in the backward.
    model.training_cosines(images).labels[:, 0].sum().backward()
    assert all(value.grad is not None for value in model.similarity.parameters())


# ---------------------------------------------------------------- LoRA in the text tower


def plain_features(folder, texts, templates, average="normalized", lora_from=None):
    """Text features of an unmodified CLIP, one prompt a pass, with the change LoRA of a model makes to its weights."""
    clip, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    if lora_from is not None:
        for name, module in lora_from.clip.named_modules():
            for adapter in getattr(module, "lora_A", {}):
                change = module.scaling[adapter] * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
                clip.get_submodule(name).weight.data += change.detach()
    rows = []
    with torch.no_grad():
        for text in texts:
            found = [
                clip.get_text_features(**tokenizer(template.replace("{}", text), return_tensors="pt")).pooler_output[0]
                for template in templates
            ]
            found = [normalize(each, dim=-1) if average == "normalized" else each for each in found]
            rows.append(normalize(torch.stack(found).mean(0), dim=-1))
    return torch.stack(rows)


@pytest.mark.parametrize("average", ["normalized", "raw"])
def test_lora_against_merged_weights(model, tiny_clip, average):
    negatives = Negatives(
        {"noun": ["gravel"], "adjective": ["very old"]}, {"noun": ["the nice {}"], "adjective": ["a {} one", "{}"]}
    )
    templates = ["a photo of a {}.", "art of the {}"]
    model.set_labels(LABELS, templates, negatives, average=average)
    bank = [model.text_bank.label_embeds.clone(), model.text_bank.negative_embeds.clone()]
    model.add_adapter(LoraConfig(**{**TEXT_LORA, "target_modules": r".*text_(model.*q_proj|projection)"}), "tower")

    def by_hand(lora_from):
        return [
            plain_features(tiny_clip, LABELS, templates, average, lora_from),
            torch.cat(
                [
                    plain_features(tiny_clip, ["gravel"], ["the nice {}"], average, lora_from),
                    plain_features(tiny_clip, ["very old"], ["a {} one", "{}"], average, lora_from),
                ]
            ),
        ]

    with torch.no_grad():
        kept = model.text_features()
    for wanted, without, found, learning, stored in zip(
        by_hand(model), by_hand(None), kept, model.text_features(), bank, strict=True
    ):
        assert (wanted - without).abs().max() > 1e-2
        torch.testing.assert_close(stored, without, rtol=0, atol=1e-6)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(learning.detach(), wanted, rtol=0, atol=1e-6)
        assert learning.requires_grad
    assert torch.equal(model.text_bank.label_embeds, bank[0])
    # Labels set anew: the bank still is that of the bare tower, the cosines are not.
    model.set_labels(LABELS, templates, negatives)
    torch.testing.assert_close(model.text_bank.label_embeds, bank[0], rtol=0, atol=1e-7)
    with torch.no_grad():
        assert torch.equal(model.text_features()[0], kept[0])


@pytest.mark.parametrize("average", ["normalized", "raw", "unnormalized"])
def test_gradients_of_lora(model, tiny_clip, average):
    model.set_labels(LABELS, ["a photo of a {}.", "art of the {}"], average=average)
    model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    model.double()
    images = torch.randn(4, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    learnt = [value for value in model.parameters() if value.requires_grad]
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip)
    rows = []
    for label in LABELS:
        prompts = [f"a photo of a {label}.", f"art of the {label}"]
        found = [model.clip.get_text_features(**tokenizer(p, return_tensors="pt")).pooler_output[0] for p in prompts]
        found = [normalize(each, dim=-1) if average == "normalized" else each for each in found]
        rows.append(normalize(torch.stack(found).mean(0), dim=-1))
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    slow = torch.autograd.grad((normalize(images, dim=-1) @ torch.stack(rows).T * weights).sum(), learnt)
    found = model.training_cosines(images, with_negatives=False)
    grads = torch.autograd.grad((found.labels * weights).sum(), learnt)
    for grad, wanted in zip(grads, slow, strict=True):
        assert wanted.abs().max() > 1e-6
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)


def test_cosines_follow_lora_merged_and_unmerged(model, images, tiny_clip):
    bare = cosines(model, images)
    wrapped = get_peft_model(model, LoraConfig(**TEXT_LORA))
    tuned = assert_fresh(model, images, other_than=bare)
    wrapped.merge_adapter()
    torch.testing.assert_close(cosines(model, images), tuned, rtol=0, atol=1e-6)
    model.set_labels(LABELS, negatives=WORDS)
    torch.testing.assert_close(cosines_of_bank(model, images), bare, rtol=0, atol=1e-6)
    torch.testing.assert_close(assert_fresh(model, images), tuned, rtol=0, atol=1e-6)
    wrapped.unmerge_adapter()
    torch.testing.assert_close(assert_fresh(model, images), tuned, rtol=0, atol=1e-6)
    with wrapped.disable_adapter():
        torch.testing.assert_close(cosines(model, images), bare, rtol=0, atol=1e-6)
    torch.testing.assert_close(assert_fresh(model, images), tuned, rtol=0, atol=1e-6)


def test_lora_that_is_merged_for_good(model, images, tmp_path):
    model.set_labels(LABELS, ["a photo of a {}.", "art of the {}"], WORDS)
    wrapped = get_peft_model(model, LoraConfig(**TEXT_LORA))
    tuned = cosines(model, images)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(cosines(merged, images), tuned, rtol=0, atol=1e-6)
    merged.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(cosines(loaded, images), tuned, rtol=0, atol=1e-6)
    with_map = get_peft_model(loaded, NFTConfig())
    torch.testing.assert_close(cosines(with_map, images), tuned, rtol=0, atol=1e-6)


def test_lora_that_is_taken_off(model, images):
    bare, bank = cosines(model, images), model.text_bank.label_embeds.clone()
    wrapped = get_peft_model(model, LoraConfig(**TEXT_LORA))
    assert_fresh(model, images, other_than=bare)
    assert torch.equal(cosines(wrapped.unload(), images), bare)
    assert torch.equal(model.text_bank.label_embeds, bank)
    for name in ("first", "second"):
        model.add_adapter(LoraConfig(**TEXT_LORA), name)
    second = assert_fresh(model, images, other_than=bare)
    model.set_adapter("first")
    assert_fresh(model, images, other_than=second)
    model.delete_adapter("first")
    model.delete_adapter("second")
    torch.testing.assert_close(cosines(model, images), bare, rtol=0, atol=1e-6)


def test_unloading_without_a_tokenizer(model, images, tmp_path, warned):
    model.save_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    wanted = cosines(loaded, images)
    assert torch.equal(cosines(get_peft_model(loaded, NFTConfig()).unload(), images), wanted)
    assert len(warned) == 1 and "call set_labels again" in warned[0] and "no tokenizer" in warned[0]


def test_long_lists_under_lora(model, images):
    """Embeddings of 256 prompts and more are kept on disk, by the state of the tower."""
    words = [f"{first} {second}" for first in ("gravel", "tax", "foggy", "very old") for second in range(70)]
    model.set_labels(LABELS, negatives=words)
    bare = cosines(model, images)
    model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    for step in range(3):
        found = cosines(model, images)
        assert (found - bare).abs().max() > 1e-3
        embeds = TextEncoder(model.clip, model.tokenizer, cache=False).embed(words, "photo")
        torch.testing.assert_close(found[:, 3:], normalize(images, dim=-1) @ embeds.T, rtol=0, atol=1e-6)
        model.disable_adapters()
        assert torch.equal(cosines(model, images), bare)
        model.enable_adapters()
        bank = model.text_bank.negative_embeds.clone()
        model.set_labels(LABELS)
        assert torch.equal(model.text_bank.negative_embeds, bank)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 * step * value.requires_grad)


def test_lora_folder(model, images, tmp_path, make_model, tiny_clip):
    wrapped = get_peft_model(model, LoraConfig(**TEXT_LORA))
    wanted = cosines(model, images)
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make_model(tiny_clip, labels=LABELS, negatives=WORDS), tmp_path)
    torch.testing.assert_close(cosines(again, images), wanted, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- all at once


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_everything_learns_together(model, images, conditional, autocast):
    add_context(model, "prompt", conditional=conditional, negative_context="separate")
    model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    model.add_adapter(NFTConfig(), "feature_map")
    model.set_adapter(["prompt", "tower", "feature_map"])
    with torch.no_grad():
        # Past the start, where the second layers are zero and shut off the first.
        for name, value in model.named_parameters():
            if value.requires_grad and ("tuned_" in name or "context_" in name):
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    model.train()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found = model.training_cosines(images)
    loss = (
        found.labels[:, 0].sum() - found.negatives[:, 0].sum() + found.kept_labels.sum() + found.kept_negatives.sum()
    )
    loss.backward()
    learnt = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    assert {part for part in ("context_", "lora_", "tuned_") if any(part in name for name in learnt)} == {
        "context_",
        "lora_",
        "tuned_",
    }
    for name, grad in learnt.items():
        assert grad is not None and grad.abs().max() > 0, name
    with torch.no_grad():
        for part, wanted in zip(model.cosines(images), (found.labels, found.negatives), strict=True):
            torch.testing.assert_close(part, wanted, rtol=0, atol=2e-2 if autocast else 1e-5)


def test_the_pieces_can_be_switched_one_by_one(model, images):
    bare = cosines(model, images)
    add_context(model, "prompt")
    model.add_adapter(LoraConfig(**TEXT_LORA), "tower")
    found = {}
    for names in (("prompt",), ("tower",), ("prompt", "tower"), ("prompt",), ("tower",)):
        model.set_adapter(list(names))
        now = assert_fresh(model, images, other_than=bare)
        torch.testing.assert_close(now, found.setdefault(names, now), rtol=0, atol=1e-7)
    values = list(found.values())
    assert all((values[i] - values[j]).abs().max() > 1e-3 for i in range(3) for j in range(i))
