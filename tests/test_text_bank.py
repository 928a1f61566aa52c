"""Texts to embeddings: averaging, batching, pooling, limits; labels; buffers that stay fp32."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from hf_oodclip import TextEncoder, encoders
from hf_oodclip.errors import LabelError, NonFiniteError, TemplateError, UnknownNameError
from hf_oodclip.text_bank import Float32Module, TextBank, check_labels

TEXTS = ["goldfish", "school bus", "tea", "a very long name with many words in it", "cat", "Persian cat"]


@pytest.fixture(scope="module")
def clip(pocket: str) -> CLIPModel:
    return CLIPModel.from_pretrained(pocket).eval()


@pytest.fixture(scope="module")
def tokenizer(pocket: str) -> Any:
    return AutoTokenizer.from_pretrained(pocket)


@pytest.fixture(scope="module")
def encoder(clip: CLIPModel, tokenizer: Any) -> TextEncoder:
    return TextEncoder(clip, tokenizer, cache=False)


@pytest.fixture
def own_clip(clip: CLIPModel) -> CLIPModel:
    """A copy of the model that the test may change."""
    return copy.deepcopy(clip)


@torch.no_grad()
def embed_alone(clip: CLIPModel, tokenizer: Any, prompt: str) -> Tensor:
    """Return the projected feature of one prompt from transformers alone, with nothing padded."""
    return clip.get_text_features(**tokenizer([prompt], return_tensors="pt")).pooler_output[0].double()


@pytest.fixture
def widths(clip: CLIPModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shapes of the token ids the text tower is given."""
    seen: list[tuple[int, int]] = []
    original = clip.get_text_features

    def spy(input_ids: Tensor, **kwargs: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return original(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(clip, "get_text_features", spy)
    return seen


# ---- what an embedding is ------------------------------------------------------------------------


def unit(vector: Tensor) -> Tensor:
    return vector / vector.pow(2).sum().sqrt()


AVERAGES = {
    "normalized": lambda vectors: unit(sum(unit(vector) for vector in vectors) / len(vectors)),
    "raw": lambda vectors: unit(sum(vectors) / len(vectors)),
    "unnormalized": lambda vectors: sum(vectors) / len(vectors),
}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("templates", [["a photo of a {}."], ["{}", "a bad photo of the {}.", "art of the {}"]])
def test_embeddings_equal_single_prompts_averaged_by_hand(
    average: Any, templates: list[str], encoder: TextEncoder, clip: CLIPModel, tokenizer: Any
) -> None:
    embeds = encoder.embed(TEXTS, templates, average)
    assert embeds.dtype == torch.float32
    for text, embed in zip(TEXTS, embeds.double(), strict=True):
        alone = [embed_alone(clip, tokenizer, template.replace("{}", text)) for template in templates]
        torch.testing.assert_close(embed, AVERAGES[average](alone), rtol=1e-5, atol=1e-5)


def test_the_three_averages_differ(encoder: TextEncoder) -> None:
    by_average = {average: encoder.embed(TEXTS, "tip7", average) for average in AVERAGES}  # type: ignore[arg-type]
    norms = by_average["unnormalized"].norm(dim=-1)
    assert (norms - 1).abs().min() > 0.01
    torch.testing.assert_close(by_average["raw"], normalize(by_average["unnormalized"], dim=-1))
    assert (by_average["raw"] - by_average["normalized"]).abs().max() > 1e-4


def test_the_defaults_are_photo_and_normalized(encoder: TextEncoder) -> None:
    expected = encoder.embed(TEXTS, ["a photo of a {}."], "normalized")
    torch.testing.assert_close(encoder.embed(TEXTS), expected)
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(len(TEXTS)))


def test_an_unknown_average_suggests_the_nearest(encoder: TextEncoder) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'normalized'"):
        encoder.embed(TEXTS, "photo", "normalised")  # type: ignore[arg-type]


def test_a_trailing_full_stop_changes_the_embedding(encoder: TextEncoder) -> None:
    change = encoder.embed(TEXTS, "nice") - encoder.embed(TEXTS, "nice_period")
    assert change.norm(dim=-1).min() > 0.02


def test_capitals_and_outer_spaces_change_nothing(encoder: TextEncoder) -> None:
    torch.testing.assert_close(encoder.embed(["The nice CAT "], "{}"), encoder.embed(["the nice cat"], "{}"))


@pytest.mark.parametrize("label", ["a {weird} label", "{}", "{0}", "{", "100 % \\1 $x"])
def test_labels_with_braces_are_taken_literally(
    label: str, encoder: TextEncoder, clip: CLIPModel, tokenizer: Any
) -> None:
    expected = unit(embed_alone(clip, tokenizer, "a photo of a " + label + "."))
    torch.testing.assert_close(encoder.embed([label])[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_an_fp64_text_tower_gives_fp64_embeddings(own_clip: CLIPModel, tokenizer: Any, encoder: TextEncoder) -> None:
    embeds = TextEncoder(own_clip.double(), tokenizer).embed(TEXTS)
    assert embeds.dtype == torch.float64
    torch.testing.assert_close(embeds, encoder.embed(TEXTS).double(), rtol=1e-5, atol=1e-5)


def test_a_bf16_text_tower_gives_fp32_embeddings_of_length_one(own_clip: CLIPModel, tokenizer: Any) -> None:
    embeds = TextEncoder(own_clip.bfloat16(), tokenizer).embed(TEXTS, "tip7")
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(TEXTS)), rtol=1e-6, atol=1e-6)


# ---- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4, 256])
def test_order_and_batch_size_change_nothing(batch_size: int, clip: CLIPModel, tokenizer: Any) -> None:
    expected = TextEncoder(clip, tokenizer, cache=False).embed(TEXTS)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = TextEncoder(clip, tokenizer, batch_size, cache=False).embed([TEXTS[index] for index in order])
    torch.testing.assert_close(shuffled, expected[order], rtol=1e-5, atol=1e-5)


def test_prompts_are_padded_to_the_longest_of_their_batch(
    clip: CLIPModel, tokenizer: Any, widths: list[tuple[int, int]]
) -> None:
    TextEncoder(clip, tokenizer, batch_size=2, cache=False).embed(TEXTS)
    lengths = sorted(len(ids) for ids in tokenizer([f"a photo of a {text}." for text in TEXTS])["input_ids"])
    assert widths == [(2, lengths[1]), (2, lengths[3]), (2, lengths[5])]
    assert max(width for _, width in widths) < encoders.context_length(clip)


def test_the_models_mode_is_left_as_it_was(own_clip: CLIPModel, tokenizer: Any) -> None:
    own_clip.config.text_config.attention_dropout = 0.5
    own_clip = CLIPModel.from_pretrained(own_clip.config._name_or_path, config=own_clip.config)
    encoder = TextEncoder(own_clip.train(), tokenizer, cache=False)
    first = encoder.embed(TEXTS)
    assert own_clip.training
    # Dropout is off while texts are embedded.
    torch.testing.assert_close(encoder.embed(TEXTS), first)
    TextEncoder(own_clip.eval(), tokenizer, cache=False).embed(TEXTS)
    assert not own_clip.training


def test_no_gradients_and_no_graph(encoder: TextEncoder) -> None:
    assert not encoder.embed(TEXTS).requires_grad


def test_no_texts_give_no_rows(encoder: TextEncoder) -> None:
    assert encoder.embed([]).shape == (0, 256)


def test_a_string_instead_of_a_list_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(LabelError, match="goldfish"):
        encoder.embed("goldfish")


# ---- pooling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["first end token", "highest id"])
@pytest.mark.parametrize("padding", ["max_length", "longest"])
@torch.no_grad()
def test_both_pooling_rules_equal_clip_with_its_usual_padding(
    pooling: str, padding: str, own_clip: CLIPModel, tokenizer: Any
) -> None:
    if pooling == "highest id":
        # The config of every OpenAI checkpoint on the Hub says 2, which is no end token.
        own_clip.config.text_config.eos_token_id = own_clip.text_model.eos_token_id = 2
    prompts = [f"a photo of a {text}." for text in TEXTS]
    tokens = tokenizer(prompts, padding=padding, max_length=encoders.context_length(own_clip), return_tensors="pt")
    usual = own_clip.get_text_features(**tokens).pooler_output
    embeds = TextEncoder(own_clip, tokenizer, cache=False).embed(TEXTS, average="unnormalized")
    torch.testing.assert_close(embeds, usual, rtol=1e-5, atol=1e-5)
    # The pooled token matters: that of another prompt's end is something else.
    assert (usual[0] - usual[3]).abs().max() > 0.1


def test_legacy_checkpoints_survive_loading(pocket_copy: Path, encoder: TextEncoder) -> None:
    config = json.loads((pocket_copy / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] > 1000
    config["text_config"]["eos_token_id"] = 2
    (pocket_copy / "config.json").write_text(json.dumps(config))
    legacy = TextEncoder(CLIPModel.from_pretrained(pocket_copy), AutoTokenizer.from_pretrained(pocket_copy))
    assert legacy.clip.text_model.eos_token_id == 2
    torch.testing.assert_close(legacy.embed(TEXTS), encoder.embed(TEXTS), rtol=1e-5, atol=1e-5)


# ---- limits and damage ------------------------------------------------------------------------------


def long_label(tokenizer: Any, num_tokens: int) -> str:
    """Return a label of exactly this many tokens, start and end not counted."""
    label = " ".join(["cat"] * num_tokens)
    assert len(tokenizer([label])["input_ids"][0]) == num_tokens + 2
    return label


def test_a_prompt_of_exactly_the_context_length_fits(encoder: TextEncoder, clip: CLIPModel, tokenizer: Any) -> None:
    label = long_label(tokenizer, encoders.context_length(clip) - 2)
    expected = unit(embed_alone(clip, tokenizer, label))
    torch.testing.assert_close(encoder.embed([label], "{}")[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_longer_prompt_is_refused_by_name(encoder: TextEncoder, clip: CLIPModel, tokenizer: Any) -> None:
    limit = encoders.context_length(clip)
    label = long_label(tokenizer, limit - 1)
    with pytest.raises(LabelError, match=f"1 of 3 prompts are longer than the {limit} tokens") as caught:
        encoder.embed(["cat", label, "dog"], "{}")
    assert repr(label) in str(caught.value)
    assert f"with {limit + 1}" in str(caught.value)
    with pytest.raises(LabelError, match="2 of 2 prompts"):
        encoder.embed([label, label], ["{}", "a photo of a {}."])


def test_overlong_texts_are_found_under_the_longest_template(encoder: TextEncoder, tokenizer: Any) -> None:
    # Start and end take 2 of the 32 positions.
    template = len(tokenizer("the nice").input_ids) - 2
    texts = ["cat", *(long_label(tokenizer, count) for count in (30 - template, 31, 30))]
    assert encoder.overlong(texts, "{}") == {2}
    assert encoder.overlong(texts, ["{}", "the nice {}"]) == {2, 3}
    assert encoder.overlong(texts, ["the nice {}.", "{}"]) == {1, 2, 3}
    assert encoder.overlong(texts[:1], "tip7") == set()


def test_a_template_without_a_place_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(TemplateError, match="'a photo'"):
        encoder.embed(TEXTS, ["a photo"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_the_text_tower_is_named(bad: float, own_clip: CLIPModel, tokenizer: Any) -> None:
    with torch.no_grad():
        own_clip.text_projection.weight[3, 5] = bad
    with pytest.raises(NonFiniteError, match="text tower"):
        TextEncoder(own_clip, tokenizer, cache=False).embed(TEXTS)
    assert not own_clip.training


def test_overflow_in_fp16_is_named(own_clip: CLIPModel, tokenizer: Any) -> None:
    with torch.no_grad():
        own_clip.text_projection.weight.mul_(1e5)
    with pytest.raises(NonFiniteError, match=r"torch\.float16.*dtype=torch\.float32"):
        TextEncoder(own_clip.half(), tokenizer, cache=False).embed(TEXTS)


# ---- labels ------------------------------------------------------------------------------------------


def test_labels_come_back_as_a_list_in_order() -> None:
    labels = ("dog", "cat", "dog", "{}", " padded ")
    assert check_labels(labels) == list(labels)
    assert check_labels(label for label in labels) == list(labels)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([], "empty"),
        ("cat", r"string 'cat'; write \['cat'\]"),
        (["cat", ""], "Label 1 is ''"),
        (["cat", "dog", " \t\n"], "Label 2 is"),
        (["cat", 7], "Label 1 is 7"),
        ([None], "Label 0 is None"),
        ([b"cat"], "Label 0 is b'cat'"),
        ([["cat"]], "Label 0 is"),
        (None, "labels must be a list"),
        (7, "labels must be a list"),
    ],
)
def test_labels_that_cannot_be_used_are_told_apart(labels: Any, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        check_labels(labels)


# ---- buffers -----------------------------------------------------------------------------------------


class Buffers(Float32Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor([1 / 3, 1e-6, 70000.0]))
        self.register_buffer("counts", torch.tensor([1, 2]))


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.buffers_ = Buffers()


CASTS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to half": lambda module: module.to(torch.float16),
    "to bfloat16": lambda module: module.to(torch.bfloat16),
    "to device and dtype": lambda module: module.to("cpu", torch.bfloat16),
    "twice": lambda module: module.half().to(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=list(CASTS))
def test_buffers_stay_fp32_to_the_last_bit_when_the_model_is_cast_down(cast: Any) -> None:
    holder = cast(Holder())
    assert holder.linear.weight.dtype in (torch.float16, torch.bfloat16)
    assert holder.buffers_.values.dtype == torch.float32
    assert torch.equal(holder.buffers_.values, torch.tensor([1 / 3, 1e-6, 70000.0]))
    assert torch.equal(holder.buffers_.counts, torch.tensor([1, 2]))
    assert set(holder.state_dict()) >= {"buffers_.values", "buffers_.counts"}


def test_buffers_follow_to_fp64_and_back_no_further_than_fp32() -> None:
    holder = Holder().double()
    assert holder.buffers_.values.dtype == torch.float64
    assert holder.float().buffers_.values.dtype == torch.float32
    assert holder.double().half().buffers_.values.dtype == torch.float32


def test_buffers_follow_the_device() -> None:
    for dtype in (None, torch.bfloat16):
        holder = Holder().to("meta", dtype)
        assert holder.buffers_.values.device.type == "meta"
        assert holder.buffers_.values.dtype == torch.float32


def test_a_text_bank_has_the_asked_shape_and_replaces_either_part() -> None:
    bank = TextBank(3, 2, 4)
    assert bank.label_embeds.shape == (3, 4)
    assert bank.negative_embeds.shape == (2, 4)
    labels, negatives = torch.randn(5, 4), torch.randn(1, 4)
    bank.update(label_embeds=labels)
    assert torch.equal(bank.label_embeds, labels)
    assert torch.equal(bank.negative_embeds, torch.zeros(2, 4))
    bank.update(negative_embeds=negatives)
    assert torch.equal(bank.label_embeds, labels)
    assert torch.equal(bank.negative_embeds, negatives)
    assert list(bank.state_dict()) == ["label_embeds", "negative_embeds"]


def test_a_text_bank_keeps_a_copy_without_a_graph() -> None:
    bank, labels = TextBank(2, 0, 4), torch.ones(2, 4, requires_grad=True)
    bank.update(labels * 2)
    assert not bank.label_embeds.requires_grad
    plain = torch.ones(2, 4)
    bank.update(plain)
    plain.zero_()
    assert torch.equal(bank.label_embeds, torch.ones(2, 4))


def test_a_text_bank_keeps_its_device() -> None:
    bank = TextBank(2, 1, 4).to("meta")
    bank.update(torch.ones(3, 4))
    assert bank.label_embeds.device.type == "meta"
    assert bank.label_embeds.shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_text_bank_takes_half_precision_as_fp32(dtype: torch.dtype) -> None:
    bank = TextBank(2, 1, 4)
    bank.update(torch.ones(2, 4, dtype=dtype), torch.ones(1, 4, dtype=dtype))
    assert bank.label_embeds.dtype == bank.negative_embeds.dtype == torch.float32
