"""Bad input, one test for each kind: either it works, or the message names the thing and the way out."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

import hf_oodclip
from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.errors import (
    CalibrationError,
    CheckpointError,
    ImageReadError,
    LabelError,
    NegativesError,
    NonFiniteError,
    OODCLIPError,
    ScoreInputError,
    TemplateError,
    UnknownNameError,
)

LABELS = ["goldfish", "school bus", "tabby cat"]


@pytest.fixture(scope="module")
def load(pocket):
    """Loads the pocket CLIP with labels."""
    return lambda labels=LABELS, **options: OODCLIPForImageClassification.from_pretrained(
        pocket, labels=labels, **options
    )


@pytest.fixture(scope="module")
def picture(real_images) -> Image.Image:
    """A real colour image."""
    return real_images["id"][0].convert("RGB")


def scores_of(model, images):
    return next(iter(model.ood_scores(images).values()))


# ---------------------------------------------------------------- labels and templates


def test_no_labels(load):
    with pytest.raises(LabelError, match=r"empty; give the class names, such as labels=\['cat', 'dog'\]"):
        load([])


def test_no_labels_when_scoring(pocket, picture):
    model = OODCLIPForImageClassification.from_pretrained(pocket)
    with pytest.raises(LabelError, match=r"no labels: load it with labels=.*set_labels"):
        scores_of(model, [picture])


def test_a_string_instead_of_labels(load):
    with pytest.raises(LabelError, match=r"got the string 'cat'; write \['cat'\]"):
        load("cat")


def test_one_label(load, picture, warned):
    model = load(["goldfish"])
    assert [text for text in warned if "One label" in text and "max_logit" in text]
    assert torch.isfinite(scores_of(model, [picture])).all()
    with pytest.raises(ScoreInputError, match=r"'mcm'.*single one.*max_logit"):
        model.ood_scores([picture], ["mcm"])


def test_duplicate_labels(load, picture, warned):
    model = load(["crane", "goldfish", "crane"])
    assert [text for text in warned if "Duplicate labels" in text and "'crane'" in text and "goldfish" not in text]
    assert model.labels == ["crane", "goldfish", "crane"]
    with torch.no_grad():
        logits = model(model.image_processor(images=[picture], return_tensors="pt")["pixel_values"]).logits
    assert torch.equal(logits[:, 0], logits[:, 2])
    assert not torch.equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("label", ["", "  ", "\t\n", None, 3])
def test_empty_label(load, label):
    with pytest.raises(LabelError, match=r"Label 1 is .*non-empty string") as raised:
        load(["cat", label, "dog"])
    assert repr(label) in str(raised.value)


@pytest.mark.parametrize("template", ["a photo of a cat.", "a {} and a {}", "a {name}.", "{}{"])
def test_template_without_one_slot(load, template):
    with pytest.raises(TemplateError, match=r"exactly one \{\} where the label goes, as in") as raised:
        load(templates=template)
    assert repr(template) in str(raised.value)


def test_no_templates(load):
    with pytest.raises(TemplateError, match=r"list of templates is empty; give at least one, such as"):
        load(templates=[])


def test_misspelt_template_name(load):
    with pytest.raises(UnknownNameError, match=r"'photos'.*Did you mean 'photo'"):
        load(templates="photos")


def test_label_longer_than_the_context(load):
    with pytest.raises(LabelError, match=r"1 of 2 prompts.*32 tokens.*'a photo of a very very.*Shorten the label"):
        load(["cat", "very " * 40 + "big cat"])


# ---------------------------------------------------------------- negatives


def test_negatives_that_contain_a_label(load, warned):
    model = load(negatives=["gravel", " Tabby Cat", "fog", "goldfish"])
    assert model.negatives.texts == ["gravel", "fog"]
    assert len(model.text_bank.negative_embeds) == 2
    assert [
        text for text in warned if "2 negatives equal a label" in text and "goldfish" in text and "Tabby Cat" in text
    ]


def test_negatives_that_are_all_labels(load):
    with pytest.raises(NegativesError, match=r"Every negative equals a label; give words that are no labels"):
        load(negatives=["goldfish"])


def test_negatives_that_are_neither_method_nor_file(load):
    with pytest.raises(
        NegativesError, match=r"'neg_label' is neither a mining method \(csp, krnft, neglabel\) nor a file"
    ):
        load(negatives="neg_label")


@pytest.mark.parametrize("word", ["", " ", None, 7])
def test_negatives_that_are_no_words(load, word):
    with pytest.raises(NegativesError, match="Give non-empty words") as raised:
        load(negatives=["gravel", word])
    assert repr(word) in str(raised.value)


def test_negative_longer_than_the_context(load):
    with pytest.raises(OODCLIPError, match=r"longer than the 32 tokens.*gravel gravel.*Shorten"):
        load(negatives=["gravel " * 40])


def test_score_that_needs_negatives_without_any(load, picture):
    model = load(score="neglabel")
    with pytest.raises(ScoreInputError, match=r"'neglabel' needs negative_similarity, which is missing.*negatives="):
        scores_of(model, [picture])


def test_misspelt_score(load):
    with pytest.raises(
        UnknownNameError, match=r"Unknown score 'neg-label'\. Did you mean 'neglabel'\?.*register_score"
    ):
        load(score="neg-label")


def test_misspelt_option_of_a_score(load):
    with pytest.raises(UnknownNameError, match=r"option of score 'mcm' 'temprature'.*Did you mean 'temperature'"):
        load().set_score("mcm", temprature=1)


# ---------------------------------------------------------------- images


ODD_IMAGES = {
    "grey": lambda image: image.convert("L"),
    "grey with alpha": lambda image: image.convert("LA"),
    "RGBA": lambda image: image.convert("RGBA"),
    "CMYK": lambda image: image.convert("CMYK"),
    "palette": lambda image: image.convert("P"),
    "black and white": lambda image: image.convert("1"),
    "one pixel": lambda image: image.resize((1, 1)),
    "one line": lambda image: image.resize((2000, 1)),
    "16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_odd_images_work(shared_model, picture, kind):
    found = scores_of(shared_model, [ODD_IMAGES[kind](picture), picture])
    assert torch.isfinite(found).all()
    if kind in ("RGBA", "CMYK"):
        assert found[0] == pytest.approx(float(found[1]), abs=0.02)
    if kind == "16 bits":
        assert found[0] == scores_of(shared_model, [picture.convert("L"), picture])[0]


def broken_image(kind, picture, path: Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    contents = {"truncated": buffer.getvalue()[:600], "zero-byte": b"", "text": b"no image", "missing": None}
    if contents[kind] is not None:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("truncated", "truncated"), ("zero-byte", "0 bytes"), ("text", "not an image"), ("missing", "does not exist")],
)
def test_broken_images_are_named(shared_model, picture, kind, reason, tmp_path):
    path = broken_image(kind, picture, tmp_path / f"{kind}.jpg")
    with pytest.raises(ImageReadError, match=reason) as raised:
        shared_model.ood_scores([picture, path, picture])
    assert str(path) in str(raised.value)


# ---------------------------------------------------------------- NaN


def test_nan_in_the_weights(pocket_copy, picture):
    path = pocket_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["vision_model.post_layernorm.bias"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    model = OODCLIPForImageClassification.from_pretrained(pocket_copy, labels=LABELS)
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in rows \[0, 1\].*NaN in the checkpoint's weights"):
        model.ood_scores([picture, picture])


def test_nan_in_the_features(shared_model):
    embeds = torch.ones(4, 256)
    embeds[2, 5] = torch.nan
    inputs = shared_model.score_inputs(image_embeds=embeds)
    with pytest.raises(NonFiniteError, match=r"similarity has NaN or infinity in rows \[2\]: look for"):
        shared_model.score(inputs)


# ---------------------------------------------------------------- calibration


def test_calibration_with_too_few_images(load, real_images):
    model = load()
    with pytest.raises(CalibrationError, match=r"at least 20 ID images and was given 19; 100 or more"):
        model.calibrate(real_images["id"][:19])
    assert model.calibration is None


def test_calibration_with_few_images_warns(load, real_images, warned):
    load().calibrate(real_images["id"][:20])
    assert [text for text in warned if "Only 20 ID images" in text and "100 or more" in text]


def test_calibration_with_a_target_out_of_reach(load, real_images):
    with pytest.raises(
        CalibrationError, match=r"99\.0% needs at least 99 ID images and 40 were given: give more.*lower"
    ):
        load().calibrate(real_images["id"], 0.99)


@pytest.mark.parametrize("target", [0, 1, 95, -0.5, float("nan")])
def test_calibration_with_an_impossible_target(load, pixel_values, target):
    with pytest.raises(CalibrationError, match=r"between 0 and 1, got") as raised:
        load().calibrate(pixel_values.repeat(2, 1, 1, 1), target)
    assert str(target) in str(raised.value)


def test_calibration_with_a_misspelt_rule(load, pixel_values):
    with pytest.raises(UnknownNameError, match=r"'conformel'.*Did you mean 'conformal'"):
        load().calibrate(pixel_values.repeat(2, 1, 1, 1), rule="conformel")


def test_calibration_of_another_score(load, real_images):
    model = load()
    calibration = model.calibrate(real_images["id"], score="energy")
    with pytest.raises(
        CalibrationError, match=r"belongs to the score 'energy' and cannot decide for 'mcm': calibrate again"
    ):
        model.set_calibration(calibration)
    assert model.calibration is None


# ---------------------------------------------------------------- checkpoints and the cache


def test_checkpoint_of_another_kind_of_model(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a 'vit' checkpoint; this package loads clip") as raised:
        OODCLIPForImageClassification.from_pretrained(tmp_path, labels=LABELS)
    assert str(tmp_path) in str(raised.value)


MANY = [f"thing number {number}" for number in range(300)]


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """A cache folder of this test's own."""
    monkeypatch.setenv("HF_OODCLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit", "text"])
def test_damaged_cache_file_is_rebuilt(load, cache, damage, warned):
    expected = load(MANY).text_bank.label_embeds
    (path,) = cache.rglob("*.safetensors")
    content = path.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 64]) + content[-4:]
    path.write_bytes({"cut short": content[:1000], "a flipped bit": flipped, "text": b"no tensors"}[damage])
    assert torch.equal(load(MANY).text_bank.label_embeds, expected)
    assert len(warned) == 1
    assert str(path) in warned[0] and "rebuilt" in warned[0]
    assert path.read_bytes() == content
    assert torch.equal(load(MANY).text_bank.label_embeds, expected)
    assert len(warned) == 1


def test_cache_folder_that_cannot_be_written(load, cache, warned):
    expected = load(MANY).text_bank.label_embeds
    cache.rename(cache.with_name("good"))
    cache.write_text("a file where the folder should be")
    assert torch.equal(load(MANY).text_bank.label_embeds, expected)
    assert len(warned) == 1
    assert str(cache) in warned[0] and "cannot be kept" in warned[0] and "Set HF_OODCLIP_CACHE" in warned[0]
    assert cache.read_text() == "a file where the folder should be"


def test_all_errors_have_one_base():
    from hf_oodclip import errors

    for name in errors.__all__:
        assert issubclass(getattr(errors, name), hf_oodclip.OODCLIPError)
        kinds = (OSError,) if name == "HubError" else (ValueError,)
        assert name == "OODCLIPError" or issubclass(getattr(errors, name), kinds)
