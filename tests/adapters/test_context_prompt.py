"""Context prompts against prompts put together by hand and run through an unmodified CLIP."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from slow_context import encode, layer_of, moves, ordered, plain_clip, randomise
from slow_nft import parameters_of, slow_cosines
from slow_nft import randomise as randomise_nft
from torch.nn.functional import normalize

from hf_oodclip import Negatives, NFTConfig, adapted_text
from hf_oodclip.adapters.context_prompt import ContextPromptConfig
from hf_oodclip.adapters.nft import NFTLayer
from hf_oodclip.errors import AdapterError, LabelError, UnknownNameError

LABELS = ["goldfish", "school bus", "dining table"]
NEGATIVES = ["gravel", "tax law"]
COCOOP = {"conditional": True, "context_words": "a photo of a", "hidden_size": 5}


@pytest.fixture
def small(make_model, tiny_clip):
    """A fresh tiny model of 3 labels, 2 of them of several tokens, and 2 negatives."""
    return make_model(tiny_clip, labels=LABELS, negatives=NEGATIVES)


@pytest.fixture
def small_double(make_model, tiny_clip):
    """The same in float64."""
    return make_model(tiny_clip, labels=LABELS, negatives=NEGATIVES, dtype=torch.float64)


@pytest.fixture
def count_rows(monkeypatch):
    """Counts the prompts of every pass of a model's text tower."""

    def count(model):
        rows = []
        model.clip.text_model.encoder.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
        return rows

    return count


def with_context(model, name="default", **options):
    model.add_adapter(ContextPromptConfig(**options), name)
    return model


def cosines(model, images):
    with torch.no_grad():
        return torch.cat(model.cosines(images), dim=-1)


# ---------------------------------------------------------------- what a prompt is


def test_the_words_of_a_template_are_the_template(make_model, pixel_values):
    labels = ["goldfish", "school bus", "golden retriever dog", "cup (of tea)", "U.S. flag", "no. 5"]
    negatives = ["gravel", "tax law"]
    wanted = make_model(labels=labels, negatives=negatives)
    model = make_model(labels=labels, negatives=negatives)
    with_context(model, context_words="a photo of a", negative_context="shared")
    assert layer_of(model).context_labels["default"].shape == (4, 160)
    with torch.no_grad():
        for found, bank in zip(model.text_features(), wanted.text_features(), strict=True):
            torch.testing.assert_close(found, bank, rtol=0, atol=1e-6)
        found, plain = model(pixel_values), wanted(pixel_values)
    torch.testing.assert_close(found.logits, plain.logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(found.ood_score, plain.ood_score, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".", "", " on a table!"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_positions_against_prompts_by_hand(small, tiny_clip, position, suffix):
    with_context(small, num_context=3, position=position, suffix=suffix, negative_context="separate")
    layer = layer_of(randomise(small))
    clip, tokenizer = plain_clip(tiny_clip)
    with torch.no_grad():
        found = small.text_features()
        for texts, vectors, features in zip(
            (LABELS, NEGATIVES), (layer.context_labels, layer.context_negatives), found, strict=True
        ):
            parts = [ordered(vectors["default"], text, position, suffix) for text in texts]
            wanted = torch.stack([encode(clip, tokenizer, each) for each in parts])
            torch.testing.assert_close(features, wanted, rtol=0, atol=1e-6)


def test_words_of_every_label_its_own(small, tiny_clip):
    with_context(small, num_context=2, class_specific=True, negative_context="separate")
    layer = layer_of(randomise(small))
    vectors = layer.context_labels["default"]
    assert vectors.shape == (3, 2, 32)
    assert layer.context_negatives["default"].shape == (2, 32)
    assert small.peft_config["default"].num_labels == 3
    clip, tokenizer = plain_clip(tiny_clip)
    with torch.no_grad():
        parts = [ordered(own, label, "end") for own, label in zip(vectors, LABELS, strict=True)]
        wanted = torch.stack([encode(clip, tokenizer, each) for each in parts])
        torch.testing.assert_close(small.text_features()[0], wanted, rtol=0, atol=1e-6)


def test_words_of_every_label_are_chunked_with_their_labels(small, monkeypatch):
    randomise(with_context(small, num_context=2, class_specific=True, conditional=True))
    images = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    wanted = cosines(small, images)
    monkeypatch.setattr(adapted_text, "MAX_PROMPTS", 2)
    torch.testing.assert_close(cosines(small, images), wanted, rtol=0, atol=1e-6)


def test_what_negatives_become(small, tiny_clip):
    words = {"noun": ["gravel", "tax law"], "adjective": ["foggy", "very old"]}
    templates = {"noun": ["the nice {}", "a {}."], "adjective": ["This is a {} photo"]}
    small.set_labels(LABELS, negatives=Negatives(words, templates))
    bank = small.text_bank.negative_embeds.clone()
    clip, tokenizer = plain_clip(tiny_clip)
    for name in ("none", "shared", "separate"):
        with_context(small, f"prompt_{name}", num_context=2, negative_context=name)
    layer = layer_of(randomise(small))
    with torch.no_grad():
        for name, vectors in (("shared", layer.context_labels), ("separate", layer.context_negatives)):
            small.set_adapter(f"prompt_{name}")
            parts = [
                ordered(vectors[f"prompt_{name}"], word, "end") for word in ["gravel", "tax law", "foggy", "very old"]
            ]
            wanted = torch.stack([encode(clip, tokenizer, each) for each in parts])
            torch.testing.assert_close(small.text_features()[1], wanted, rtol=0, atol=1e-6)
        small.set_adapter("prompt_none")
        assert torch.equal(small.text_features()[1], bank)
    assert "prompt_none" not in layer.context_negatives and "prompt_shared" not in layer.context_negatives
    by_hand = [
        normalize((encode(clip, tokenizer, [f"the nice {w}"]) + encode(clip, tokenizer, [f"a {w}."])) / 2, dim=-1)
        for w in words["noun"]
    ] + [encode(clip, tokenizer, [f"This is a {w} photo"]) for w in words["adjective"]]
    torch.testing.assert_close(bank, torch.stack(by_hand).detach(), rtol=0, atol=1e-6)


def test_no_negatives(make_model, tiny_clip, image_embeds):
    for options in ({"negative_context": "separate"}, {"negative_context": "shared", "conditional": True}):
        model = make_model(tiny_clip, labels=LABELS, negatives=None)
        randomise(with_context(model, num_context=2, **options))
        found = model.training_cosines(image_embeds)
        assert found.labels.shape == (6, 3)
        assert found.negatives.shape == (6, 0)
        assert found.kept_negatives.shape[-1] == 0
        with torch.no_grad():
            assert [part.shape for part in model.cosines(image_embeds)] == [(6, 3), (6, 0)]
            assert model.score(model.score_inputs(image_embeds=image_embeds)).shape == (6,)


@pytest.fixture
def merging_clip(tiny_clip, tmp_path):
    """The tiny CLIP with a tokenizer like OpenAI's: `).` at the end of a word is one token, and so is `)).`."""
    folder = shutil.copytree(tiny_clip, tmp_path / "merging")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    spare = [token for token in vocab if len(token) > 6 and not token.startswith("<|")][-2:]
    # Merges that made the spare tokens, or go on from them, would name tokens that are gone.
    kept = [pair for pair in merges if not {*pair, "".join(pair)} & set(spare)]
    for token, new in zip(spare, (").</w>", ")).</w>"), strict=True):
        vocab[new] = vocab.pop(token)
    content["model"]["merges"] = [[")", ".</w>"], [")", ").</w>"], *kept]
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_suffix_that_merges_with_the_name(make_model, merging_clip, position):
    label = "cup (of (tea))"
    model = make_model(merging_clip, labels=[label, "cup"], negatives=None)
    clip, tokenizer = plain_clip(merging_clip)
    assert len(tokenizer(label + ".")["input_ids"]) < len(tokenizer(label)["input_ids"])
    with_context(model, num_context=2, position=position)
    layer = layer_of(randomise(model))
    # The suffix cannot be told from the name, and goes with it.
    parts = ordered(layer.context_labels["default"], label + ".", position, suffix="")
    with torch.no_grad():
        found = model.text_features()[0][0]
        torch.testing.assert_close(found, encode(clip, tokenizer, parts), rtol=0, atol=1e-6)


def test_words_of_a_template_with_a_merging_suffix(make_model, merging_clip):
    model = make_model(merging_clip, labels=["cup (of (tea))", "cup (of tea)"], negatives=None)
    with_context(model, context_words="a photo of a")
    with torch.no_grad():
        torch.testing.assert_close(model.text_features()[0], model.text_bank.label_embeds, rtol=0, atol=1e-6)


def test_a_prompt_that_is_too_long(small):
    with_context(small, num_context=26)
    with torch.no_grad():
        assert small.text_features()[0].shape == (3, 24)
    small.set_labels(["goldfish", "a b c d e f"])
    with pytest.raises(LabelError, match=r"1 of 2 prompts are longer than the 32 tokens") as raised, torch.no_grad():
        small.text_features()
    assert "26 learnt words and 'a b c d e f.'" in str(raised.value)
    assert "with 35" in str(raised.value)


# ---------------------------------------------------------------- how it starts


def test_a_random_start(tiny):
    with_context(tiny, "small_std", num_context=400, negative_context="separate")
    with_context(tiny, "large_std", num_context=400, init_std=0.5)
    with_context(tiny, "no_std", num_context=4, init_std=0)
    layer = layer_of(tiny)
    for values, std in (
        (layer.context_labels["small_std"], 0.02),
        (layer.context_negatives["small_std"], 0.02),
        (layer.context_labels["large_std"], 0.5),
    ):
        # 12,800 normal values: their mean and deviation lie within 5 standard errors.
        assert abs(values.mean()) < 5 * std / 12800**0.5
        assert values.std().item() == pytest.approx(std, rel=5 / (2 * 12800) ** 0.5)
        assert 0.66 < (values.abs() < std).float().mean() < 0.71
    assert layer.context_labels["no_std"].count_nonzero() == 0
    assert not torch.equal(layer.context_labels["small_std"], layer.context_negatives["small_std"])


def test_a_start_follows_the_global_seed_as_torch_layers_do(make_model, tiny_clip):
    def start(seed):
        torch.manual_seed(seed)
        return layer_of(with_context(make_model(tiny_clip), num_context=2)).context_labels["default"]

    with torch.random.fork_rng():
        assert torch.equal(start(1), start(1))
        assert not torch.equal(start(1), start(2))


def test_the_image_network_starts_without_effect(small, image_embeds):
    with_context(small, num_context=2, conditional=True, hidden_size=50, negative_context="separate")
    layer = layer_of(small)
    down = layer.context_down_weight["default"]
    assert down.shape == (50, 24)
    assert down.abs().max() <= 24**-0.5 < 1.02 * down.abs().max()
    assert layer.context_up_weight["default"].count_nonzero() == 0
    assert layer.context_up_bias["default"].count_nonzero() == 0
    with torch.no_grad():
        labels, negatives = small.text_features()
        wanted = normalize(image_embeds, dim=-1) @ torch.cat([labels, negatives]).T
    torch.testing.assert_close(cosines(small, image_embeds), wanted, rtol=0, atol=1e-6)


def test_default_width_of_the_image_network(make_model):
    model = with_context(make_model(), num_context=2, conditional=True)
    assert layer_of(model).context_down_weight["default"].shape == (16, 256)


def test_words_give_their_number(small):
    with_context(small, context_words="a photo of a dining table")
    assert small.peft_config["default"].num_context == 6
    embedding = small.clip.text_model.embeddings.token_embedding
    ids = small.tokenizer("a photo of a dining table")["input_ids"][1:-1]
    assert torch.equal(layer_of(small).context_labels["default"], embedding(torch.tensor(ids)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"position": "middel"}, UnknownNameError, r"'middel'. Did you mean 'middle'"),
        ({"negative_context": "seperate"}, UnknownNameError, r"Did you mean 'separate'"),
        ({"num_context": 0}, AdapterError, r"num_context must be a whole number, at least 1, got 0"),
        ({"num_context": 2.0}, AdapterError, r"num_context.*2\.0"),
        ({"hidden_size": 0}, AdapterError, r"hidden_size.*at least 1"),
        ({"conditional": 1}, AdapterError, r"conditional must be True or False, got 1"),
        ({"class_specific": None}, AdapterError, r"class_specific must be True or False, got None"),
        ({"context_words": "  "}, AdapterError, r"context_words must be words in one string.*'  '"),
        ({"context_words": ["a", "photo"]}, AdapterError, r"context_words must be words in one string"),
        ({"suffix": None}, AdapterError, r"suffix must be a string such as '\.' or '', got None"),
        ({"init_std": -1}, AdapterError, r"init_std must be at least 0, got -1"),
        ({"init_std": float("nan")}, AdapterError, r"init_std must be at least 0, got nan"),
        ({"class_specific": True, "negative_context": "shared"}, AdapterError, r"'separate' or 'none'"),
        ({"num_labels": 3}, AdapterError, r"num_labels belongs to class_specific=True"),
        ({"num_labels": 0, "class_specific": True}, AdapterError, r"num_labels.*at least 1"),
    ],
    ids=str,
)
def test_config_errors(options, error, message):
    with pytest.raises(error, match=message):
        ContextPromptConfig(**options)


def test_class_specific_refuses_other_labels(small, make_model, tiny_clip):
    with_context(small, num_context=2, class_specific=True)
    with pytest.raises(AdapterError, match=r"for 3 labels.*not for 2"):
        small.set_labels(["a", "b"])
    with pytest.raises(AdapterError, match=r"belongs to the labels it was trained with \(goldfish, school bus"):
        small.set_labels(["a", "b", "c"])
    assert small.labels == LABELS
    small.set_labels(LABELS, negatives=["sand"])
    assert small.negatives.texts == ["sand"]
    bare = make_model(tiny_clip, labels=None, negatives=None)
    with pytest.raises(AdapterError, match=r"class_specific needs num_labels; set labels on the model first"):
        with_context(bare, class_specific=True)


# ---------------------------------------------------------------- moved by images


def slow_conditional(model, folder, images, queries=None, position="end"):
    """Cosines `[B, (Q,) N + M]` of a conditional adapter: every prompt of every image in a pass of its own."""
    layer = layer_of(model)
    clip, tokenizer = plain_clip(folder, model.clip.dtype)
    clip.requires_grad_(False)
    config, rows = layer.configs["default"], []
    for row, image in enumerate(images):
        move = moves(layer, image)
        texts = []
        for words, kind in ((model.labels, "labels"), (model.negatives.texts, "negatives")):
            own = kind == "negatives" and config.negative_context == "separate"
            vectors = (layer.context_negatives if own else layer.context_labels)["default"]
            if kind == "negatives" and config.negative_context == "none":
                texts += [encode(clip, tokenizer, [f"a photo of a {word}."]) for word in words]
            else:
                texts += [encode(clip, tokenizer, ordered(vectors + move, word, position)) for word in words]
        asked = image if queries is None else queries[row]
        rows.append(normalize(asked, dim=-1) @ torch.stack(texts).T)
    return torch.stack(rows)


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("negative_context", ["none", "shared", "separate"])
def test_conditional_against_a_loop_over_images(small, tiny_clip, image_embeds, negative_context, position):
    randomise(
        with_context(small, num_context=3, conditional=True, position=position, negative_context=negative_context)
    )
    with torch.no_grad():
        wanted = slow_conditional(small, tiny_clip, image_embeds, position=position)
    assert wanted.std(0).min() > 1e-3
    torch.testing.assert_close(cosines(small, image_embeds), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [1, 2, 5, 13])
def test_chunks_are_bounded_and_without_effect(small, image_embeds, count_rows, monkeypatch, most):
    randomise(with_context(small, negative_context="separate", **COCOOP))
    queries = torch.randn(6, 4, 24, generator=torch.Generator().manual_seed(4))
    rows = count_rows(small)
    wanted = cosines(small, image_embeds)
    wanted_training = small.training_cosines(image_embeds, queries)
    assert rows == [18, 12, 18, 12]
    rows.clear()
    monkeypatch.setattr(adapted_text, "MAX_PROMPTS", most)
    torch.testing.assert_close(cosines(small, image_embeds), wanted, rtol=0, atol=1e-6)
    found = small.training_cosines(image_embeds, queries)
    for name in ("labels", "negatives", "kept_labels", "kept_negatives"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted_training, name), rtol=0, atol=1e-6)
    (found.labels.sum() + found.negatives.sum()).backward()
    assert max(rows) <= most
    # Evaluated, computed for training, and again in its backward: all 30 prompts each time.
    assert sum(rows) == 3 * 30


def test_unconditional_prompts_are_bounded_too(small, count_rows, monkeypatch):
    randomise(with_context(small, num_context=2, negative_context="shared"))
    with torch.no_grad():
        wanted = small.text_features()
    rows = count_rows(small)
    monkeypatch.setattr(adapted_text, "MAX_PROMPTS", 2)
    labels, negatives = small.text_features()
    torch.testing.assert_close(labels, wanted[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(negatives, wanted[1], rtol=0, atol=1e-6)
    assert rows == [2, 1, 2]


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("negative_context", ["none", "shared", "separate"])
def test_gradients_through_checkpoints(small_double, tiny_clip, monkeypatch, conditional, negative_context):
    model, generator = small_double, torch.Generator().manual_seed(8)
    with_context(model, num_context=3, conditional=conditional, hidden_size=5, negative_context=negative_context)
    randomise(model.double(), size=0.3)
    images = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    queries = torch.randn(3, 2, 24, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all("context_" in name for name in parameters)
    if conditional:
        found = slow_conditional(model, tiny_clip, images, queries)
    else:
        clip, tokenizer = plain_clip(tiny_clip, torch.float64)
        layer = layer_of(model)
        texts = [encode(clip, tokenizer, ordered(layer.context_labels["default"], label, "end")) for label in LABELS]
        own = {"shared": layer.context_labels, "separate": layer.context_negatives}.get(negative_context)
        texts += [
            encode(clip, tokenizer, [f"a photo of a {word}."] if own is None else ordered(own["default"], word, "end"))
            for word in NEGATIVES
        ]
        found = normalize(queries, dim=-1) @ torch.stack(texts).T
    wanted = torch.autograd.grad((found * weights).sum(), list(parameters.values()))
    monkeypatch.setattr(adapted_text, "MAX_PROMPTS", 2)
    cosines = model.training_cosines(images, queries)
    torch.testing.assert_close(torch.cat([cosines.labels, cosines.negatives], dim=-1), found, rtol=0, atol=1e-12)
    loss = (torch.cat([cosines.labels, cosines.negatives], dim=-1) * weights).sum()
    for name, grad, slow in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), wanted, strict=True):
        assert slow.abs().max() > 1e-4, name
        torch.testing.assert_close(grad, slow, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- what the losses are given


def test_knowledge_cosines_are_those_with_the_bank(small, tiny_clip, image_embeds):
    randomise(with_context(small, negative_context="separate", **COCOOP), size=0.1)
    bank = small.text_bank
    found = small.training_cosines(image_embeds)
    assert found.kept_labels.shape == (6, 3) and found.kept_negatives.shape == (6, 2)
    layer = layer_of(small)
    clip, tokenizer = plain_clip(tiny_clip)
    with torch.no_grad():
        for row in (0, 5):
            vectors = layer.context_labels["default"] + moves(layer, image_embeds[row])
            for column, label in enumerate(LABELS):
                wanted = encode(clip, tokenizer, ordered(vectors, label, "end")) @ bank.label_embeds[column]
                assert found.kept_labels[row, column].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_training_cosines_without_images_moving_anything(small, image_embeds):
    queries = torch.randn(6, 4, 24, generator=torch.Generator().manual_seed(4))
    randomise(with_context(small, num_context=2, negative_context="separate"))
    labels, negatives = small.text_features()
    bank = small.text_bank
    found = small.training_cosines(image_embeds, queries)
    torch.testing.assert_close(found.labels, normalize(queries, dim=-1) @ labels.T)
    torch.testing.assert_close(found.negatives, normalize(queries, dim=-1) @ negatives.T)
    torch.testing.assert_close(found.kept_labels, (labels * bank.label_embeds).sum(-1).unsqueeze(0))
    torch.testing.assert_close(found.kept_negatives, (negatives * bank.negative_embeds).sum(-1).unsqueeze(0))


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("negative_context", ["none", "separate"])
def test_negatives_left_out(small, image_embeds, count_rows, conditional, negative_context):
    randomise(with_context(small, num_context=2, conditional=conditional, negative_context=negative_context))
    rows = count_rows(small)
    found = small.training_cosines(image_embeds, with_negatives=False)
    assert sum(rows) == (18 if conditional else 3)
    assert found.negatives.shape == (6, 0)
    assert found.kept_negatives.shape[-1] == 0
    torch.testing.assert_close(found.labels, small.training_cosines(image_embeds).labels)


# ---------------------------------------------------------------- with NFT on top


@pytest.mark.parametrize("conditional", [True, False])
def test_nft_on_top(small, tiny_clip, image_embeds, conditional):
    queries = torch.randn(6, 4, 24, generator=torch.Generator().manual_seed(4))
    with_context(small, "prompt", num_context=2, conditional=conditional, negative_context="separate")
    small.add_adapter(NFTConfig(hidden_size=4), "feature_map")
    small.set_adapter(["prompt", "feature_map"])
    randomise_nft(randomise(small))
    nft = next(module for module in small.modules() if isinstance(module, NFTLayer))
    parameters, config = parameters_of(nft, "feature_map"), small.peft_config["feature_map"]
    layer = layer_of(small)
    clip, tokenizer = plain_clip(tiny_clip)
    with torch.no_grad():
        found = small.training_cosines(image_embeds, queries)
        rows = []
        for image, asked in zip(image_embeds, queries, strict=True):
            move = moves(layer, image, "prompt") if conditional else 0
            labels, negatives = (
                torch.stack([encode(clip, tokenizer, ordered(words["prompt"] + move, text, "end")) for text in texts])
                for words, texts in ((layer.context_labels, LABELS), (layer.context_negatives, NEGATIVES))
            )
            rows.append(slow_cosines(parameters, config, image[None], labels, negatives, asked[None]))
        wanted = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    for name, slow in zip(("labels", "negatives", "kept_labels", "kept_negatives"), wanted, strict=True):
        torch.testing.assert_close(getattr(found, name), slow, rtol=0, atol=2e-6)
    with torch.no_grad():
        plain = small.cosines(image_embeds)
        again = small.training_cosines(image_embeds)
    torch.testing.assert_close(plain[0], again.labels, rtol=0, atol=1e-6)
    torch.testing.assert_close(plain[1], again.negatives, rtol=0, atol=1e-6)


def test_peft_model_gives_what_the_model_gives(make_model, tiny_clip, small, image_embeds):
    randomise(with_context(small, num_context=2))
    other = make_model(tiny_clip, labels=LABELS, negatives=NEGATIVES)
    wrapped = randomise(get_peft_model(other, ContextPromptConfig(num_context=2)))
    assert torch.equal(cosines(wrapped, image_embeds), cosines(small, image_embeds))
    with wrapped.disable_adapter():
        bare = cosines(wrapped, image_embeds)
    assert torch.equal(cosines(wrapped.unload(), image_embeds), bare)
