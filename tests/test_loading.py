"""Telling checkpoints apart, and what is said when something is missing or damaged."""

import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_oodclip import OODCLIPForImageClassification, TextEncoder
from hf_oodclip.errors import CheckpointError, NonFiniteError

LABELS = ["goldfish", "school bus"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def load(folder, **options):
    return OODCLIPForImageClassification.from_pretrained(folder, **{"labels": LABELS, **options})


def change_weights(folder, name, change):
    """Apply a change, in place, to one tensor of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert name in tensors
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


# ---------------------------------------------------------------- other kinds of checkpoint


OTHER_MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL, vocab_size=10)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**SMALL)),
    "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)),
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_another_kind_of_model_is_named(kind, tmp_path):
    OTHER_MODELS[kind]().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"is a '{kind}' checkpoint; this package loads clip.*oodclip"
    ) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_an_unknown_kind_of_model(pocket_copy):
    config = json.loads((pocket_copy / "config.json").read_text())
    (pocket_copy / "config.json").write_text(json.dumps({**config, "model_type": "clip9000"}))
    with pytest.raises(CheckpointError, match=r"(?s)pocket_copy.*clip9000.*openai/clip-vit-base-patch16"):
        load(pocket_copy)


# ---------------------------------------------------------------- missing and damaged files


def test_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match="model_type") as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_missing_folder():
    with pytest.raises((CheckpointError, OSError), match="/no/such/folder"):
        load("/no/such/folder")


@pytest.mark.parametrize("content", ["{not json", "", '"a string"', "[]"])
def test_broken_config(pocket_copy, content):
    (pocket_copy / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"pocket_copy"):
        load(pocket_copy)


def test_missing_weights(pocket_copy):
    (pocket_copy / "model.safetensors").unlink()
    with pytest.raises((CheckpointError, OSError), match=r"model\.safetensors.*pocket_copy"):
        load(pocket_copy)


def test_weights_cut_short(pocket_copy):
    path = pocket_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(Exception, match=r"(?i)deserializ|incomplete|corrupt"):
        load(pocket_copy)


def test_missing_tokenizer(pocket_copy):
    # transformers makes an empty tokenizer up from the config: every label would become the same tokens.
    for path in pocket_copy.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"pocket_copy has no tokenizer.*CLIPProcessor"):
        load(pocket_copy)


def test_missing_vocabulary(pocket_copy):
    (pocket_copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"pocket_copy has no tokenizer.*CLIPProcessor"):
        load(pocket_copy)


def test_a_missing_tokenizer_can_be_given(pocket, pocket_copy):
    for path in pocket_copy.glob("*token*"):
        path.unlink()
    model = load(pocket_copy, tokenizer=AutoTokenizer.from_pretrained(pocket))
    assert torch.equal(model.text_bank.label_embeds, load(pocket).text_bank.label_embeds)


def test_without_labels_no_tokenizer_is_needed(pocket_copy, pixel_values):
    for path in pocket_copy.glob("*token*"):
        path.unlink()
    model = OODCLIPForImageClassification.from_pretrained(pocket_copy)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        model.set_labels(LABELS)


def test_a_full_checkpoint_needs_its_tokenizer_for_new_labels_only(pocket, pixel_values, tmp_path):
    load(pocket).save_pretrained(tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    model = OODCLIPForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits.argmax(1), load(pocket)(pixel_values).logits.argmax(1))
    with pytest.raises(CheckpointError, match="no tokenizer"):
        model.set_labels(["cat", "dog"])


def test_missing_image_processor(pocket_copy, real_images, pixel_values):
    (pocket_copy / "preprocessor_config.json").unlink()
    model = load(pocket_copy)
    with pytest.raises(CheckpointError, match=r"pocket_copy has no image processor.*CLIPProcessor"):
        model.ood_scores(real_images["id"])
    # Pixel values need none.
    assert model.ood_scores(pixel_values)["mcm"].shape == (16,)


def test_a_model_made_from_a_config_has_neither(tiny_clip):
    config = load(tiny_clip).config
    config.name_or_path = ""
    model = OODCLIPForImageClassification(config)
    with pytest.raises(CheckpointError, match=r"not loaded from a checkpoint.*no tokenizer; pass one"):
        model.set_labels(LABELS)
    with pytest.raises(CheckpointError, match="no image processor"):
        model.ood_scores(["x.png"])


def test_old_bin_weights(pocket_copy, pixel_values):
    expected = load(pocket_copy).state_dict()
    torch.save(load_file(pocket_copy / "model.safetensors"), pocket_copy / "pytorch_model.bin")
    (pocket_copy / "model.safetensors").unlink()
    found = load(pocket_copy).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_weights_that_do_not_fit_the_config(pocket_copy):
    config = json.loads((pocket_copy / "config.json").read_text())
    config["projection_dim"] = 128
    (pocket_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, RuntimeError), match=r"(?i)mismatch"):
        load(pocket_copy)


# ---------------------------------------------------------------- NaN


@pytest.mark.parametrize(
    "weight",
    ["vision_model.post_layernorm.weight", "visual_projection.weight", "vision_model.embeddings.class_embedding"],
)
def test_nan_in_the_vision_tower_is_found_when_scoring(pocket_copy, pixel_values, real_images, weight):
    change_weights(pocket_copy, weight, lambda tensor: tensor.view(-1)[:1].fill_(torch.nan))
    model = load(pocket_copy)
    for call in (
        lambda: model(pixel_values[:2]),
        lambda: model.ood_scores(pixel_values[:2], ["energy", "mcm"]),
        lambda: model.calibrate(real_images["id"]),
    ):
        with pytest.raises(NonFiniteError, match=r"similarity has NaN or infinity in rows \[0, 1.*weights"):
            call()


@pytest.mark.parametrize(
    "weight",
    ["text_model.final_layer_norm.bias", "text_projection.weight", "text_model.embeddings.position_embedding.weight"],
)
def test_nan_in_the_text_tower_is_found_when_loading(pocket_copy, weight):
    change_weights(pocket_copy, weight, lambda tensor: tensor.view(-1)[:1].fill_(torch.inf))
    with pytest.raises(NonFiniteError, match=r"text tower produced NaN or infinity.*weights are damaged"):
        load(pocket_copy)


def test_nan_logit_scale(pocket_copy, pixel_values):
    change_weights(pocket_copy, "logit_scale", lambda tensor: tensor.fill_(torch.nan))
    with pytest.raises(NonFiniteError, match="logit_scale"):
        load(pocket_copy)(pixel_values[:2])


def test_nan_pixels_name_the_image(pocket, pixel_values):
    pixels = pixel_values[:3].clone()
    pixels[1, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"rows \[1\].*pixel values"):
        load(pocket)(pixels)


# ---------------------------------------------------------------- where from


@pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])
def test_subfolder(pocket, real_images, tmp_path, full):
    expected = load(pocket, negatives=["gravel", "fog"])
    if full:
        expected.save_pretrained(tmp_path / "sub" / "folder")
        found = OODCLIPForImageClassification.from_pretrained(tmp_path, subfolder="sub/folder")
    else:
        shutil.copytree(pocket, tmp_path / "sub" / "folder")
        found = load(tmp_path, subfolder="sub/folder", negatives=["gravel", "fog"])
    assert found.labels == LABELS
    assert found.negatives.texts == ["gravel", "fog"]
    assert torch.equal(
        found.ood_scores(real_images["id"])["neglabel"], expected.ood_scores(real_images["id"])["neglabel"]
    )
    found.set_labels(["cat", "dog"])
    assert found.labels == ["cat", "dog"]


def test_a_full_checkpoint_in_a_subfolder_through_the_auto_class(pocket, tmp_path):
    load(pocket, negatives=["gravel", "fog"]).save_pretrained(tmp_path / "sub")
    model = AutoModelForImageClassification.from_pretrained(tmp_path, subfolder="sub")
    assert (model.labels, model.negatives.texts) == (LABELS, ["gravel", "fog"])


def test_a_revision_means_nothing_for_a_folder(pocket):
    model = load(pocket, revision="no-such-revision")
    assert torch.equal(model.text_bank.label_embeds, load(pocket).text_bank.label_embeds)


def test_kinds_of_path(pocket_copy, monkeypatch):
    expected = load(pocket_copy).text_bank.label_embeds
    monkeypatch.chdir(pocket_copy.parent)
    for folder in (str(pocket_copy), f"{pocket_copy}/", "pocket_copy", "./pocket_copy"):
        assert torch.equal(load(folder).text_bank.label_embeds, expected)


def test_several_text_encoders_agree(pocket):
    own = TextEncoder(CLIPModel.from_pretrained(pocket), AutoTokenizer.from_pretrained(pocket))
    assert torch.equal(own.embed(LABELS, "photo"), load(pocket).text_bank.label_embeds)


def test_loads_in_two_threads_do_not_hear_of_each_other(make_model, tiny_clip, tmp_path, monkeypatch):
    make_model(tiny_clip).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_bank.label_embeds"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loading, go_on, loaded = threading.Event(), threading.Event(), []
    post_init = OODCLIPForImageClassification.post_init

    def held(model):
        if threading.current_thread() is not threading.main_thread():
            loading.set()
            go_on.wait(60)
        post_init(model)

    monkeypatch.setattr(OODCLIPForImageClassification, "post_init", held)
    plain = threading.Thread(target=lambda: loaded.append(make_model(tiny_clip)))
    plain.start()
    try:
        assert loading.wait(60)
        # While a plain checkpoint is on its way, a full one that lost its bank is still refused...
        with pytest.raises(CheckpointError, match=r"lacks text_bank\.label_embeds"):
            OODCLIPForImageClassification.from_pretrained(tmp_path)
    finally:
        go_on.set()
        plain.join()
    # ...and the plain one does not miss a bank it cannot have.
    assert len(loaded) == 1
