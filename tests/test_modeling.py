"""The model: parity with CLIPModel, saving and loading, labels, scores, calibrations."""

import copy
import json
import math
import pickle
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModelForImageClassification, AutoTokenizer, CLIPModel, pipeline

import hf_oodclip
from hf_oodclip import OODCLIPConfig, OODCLIPForImageClassification, Score, mining, scores
from hf_oodclip.errors import CalibrationError, CheckpointError, LabelError
from hf_oodclip.scores import ScoreInfo, ScoreInputs

LABELS = ["goldfish", "school bus", "tabby cat"]
LOADERS = {
    "own class": OODCLIPForImageClassification.from_pretrained,
    "Auto class": AutoModelForImageClassification.from_pretrained,
}


@dataclass
class ToyDistance(Score):
    """Distance from the mean cosines of some ID images: a score that is fitted."""

    power: int = 2

    name = "toy_distance"
    requires_fit = True
    info = ScoreInfo("Toy", "None", "None", 2026, "https://example.org")

    def __post_init__(self):
        self.state = {}

    def fit(self, inputs: ScoreInputs) -> "ToyDistance":
        self.state = {"mean": inputs.similarity.mean(0), "count": torch.tensor(float(len(inputs.similarity)))}
        return self

    def compute(self, inputs: ScoreInputs) -> torch.Tensor:
        return (inputs.similarity - self.state["mean"]).abs().pow(self.power).sum(-1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.state = dict(state)


@pytest.fixture
def toy_score(monkeypatch):
    """Registers `toy_distance` for one test."""
    monkeypatch.setattr(scores, "_registered", {})
    return hf_oodclip.register_score(ToyDistance)


class Calls:
    """Counts the forward passes of a module."""

    def __init__(self, module):
        self.count = 0
        module.register_forward_pre_hook(self._add)

    def _add(self, *_):
        self.count += 1


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def calibrations_of(model):
    return [(c.to_dict(), c.ood_scores.tolist()) for c in model.ood_head.calibrations]


def reference_logits(folder, labels, pixels, **options):
    clip = CLIPModel.from_pretrained(folder, **options).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        [f"a photo of a {label}." for label in labels], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        found = clip(pixel_values=pixels, **tokens)
    return found.logits_per_image, float(clip.logit_scale.detach().exp())


# ---------------------------------------------------------------- parity


def test_logits_are_those_of_clip(make_model, pocket, id_labels, pixel_values):
    expected, scale = reference_logits(pocket, id_labels, pixel_values)
    with torch.no_grad():
        logits = make_model()(pixel_values).logits
    assert logits.shape == (16, 20)
    assert logits.dtype == torch.float32
    assert scale > 40  # a forgotten scale would show
    assert (logits - expected).abs().max() <= 1e-6 * scale
    assert (logits / scale - expected / scale).abs().max() <= 1e-6
    assert expected.std() > 1  # what is compared is far from constant


def test_logits_are_those_of_a_random_clip(make_model, tiny_clip, id_labels, real_images):
    model = make_model(tiny_clip)
    pixels = model.image_processor(images=real_images["id"][:16], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (16, 3, 32, 32)
    expected, scale = reference_logits(tiny_clip, id_labels, pixels)
    assert scale == pytest.approx(math.exp(2.6592), rel=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, expected, atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize("folder", ["pocket", "tiny_clip"])
def test_logits_are_those_of_clip_in_float64(make_model, folder, id_labels, real_images, request):
    folder = request.getfixturevalue(folder)
    model = make_model(folder, dtype=torch.float64)
    pixels = model.image_processor(images=real_images["id"][:16], return_tensors="pt")["pixel_values"].double()
    expected, _ = reference_logits(folder, id_labels, pixels, dtype=torch.float64)
    with torch.no_grad():
        output = model(pixels)
    assert output.logits.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(output.logits, expected, atol=1e-10, rtol=0)


def test_image_embeds_are_those_of_clip(shared_model, pocket, pixel_values):
    clip = CLIPModel.from_pretrained(pocket).eval()
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=pixel_values).pooler_output
        found = shared_model(pixel_values)
    assert torch.equal(found.image_embeds, expected)
    cosines = normalize(expected, dim=-1) @ shared_model.text_bank.label_embeds.T
    torch.testing.assert_close(found.logits, shared_model.logit_scale * cosines, atol=1e-4, rtol=0)


def test_negatives_change_no_logit_and_have_none(make_model, pixel_values):
    with torch.no_grad():
        without, with_negatives = (make_model(negatives=n)(pixel_values) for n in (None, ["gravel", "fog"]))
    assert torch.equal(without.logits, with_negatives.logits)
    assert with_negatives.logits.shape == (16, 20)
    assert not torch.allclose(without.ood_score, with_negatives.ood_score)


def test_the_order_of_images_and_batches_does_not_matter(shared_model, pixel_values):
    with torch.no_grad():
        together = shared_model(pixel_values)
        single = torch.cat([shared_model(pixels[None]).ood_score for pixels in pixel_values])
        backwards = shared_model(pixel_values.flip(0)).ood_score.flip(0)
    torch.testing.assert_close(single, together.ood_score, atol=1e-5, rtol=0)
    torch.testing.assert_close(backwards, together.ood_score, atol=1e-5, rtol=0)
    assert together.ood_score.std() > 1e-3


# ---------------------------------------------------------------- what from_pretrained passes on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_bank_and_scores_in_fp32(make_model, shared_model, pixel_values, dtype):
    model = make_model(dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {b.dtype for b in model.text_bank.buffers()} == {torch.float32}
    with torch.no_grad():
        output, exact = model(pixel_values.to(dtype)), shared_model(pixel_values)
    assert {output.logits.dtype, output.ood_score.dtype, output.image_embeds.dtype} == {torch.float32}
    # The logits are finer than the weights: rounded to bf16 they would not be the same.
    assert not torch.equal(output.logits, output.logits.to(dtype).float())
    assert (output.logits - exact.logits).abs().max() < (1.0 if dtype == torch.bfloat16 else 0.15)


def test_casting_a_loaded_model_keeps_the_bank(make_model, pixel_values):
    model = make_model()
    bank = model.text_bank.label_embeds.clone()
    for cast in (model.half, model.bfloat16, lambda: model.to(torch.float16)):
        cast()
        assert model.clip.dtype in (torch.float16, torch.bfloat16)
        assert torch.equal(model.text_bank.label_embeds, bank)
    model.double()
    with torch.no_grad():
        assert model(pixel_values.double()).logits.dtype == torch.float64


def test_autocast_leaves_the_cosines_in_fp32(shared_model, pixel_values):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inputs = shared_model.score_inputs(pixel_values)
        output = shared_model(pixel_values)
    # bf16 has 8 bits: near 0.3 its cosines are 0.002 apart, and a logit 0.2.
    assert inputs.similarity.dtype == torch.float32
    assert output.logits.dtype == torch.float32


def test_device_map(make_model, shared_model, pixel_values):
    model = make_model(device_map="cpu")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    with torch.no_grad():
        assert torch.equal(model(pixel_values).ood_score, shared_model(pixel_values).ood_score)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_reaches_both_towers(make_model, shared_model, pixel_values, implementation):
    model = make_model(attn_implementation=implementation)
    configs = [
        model.config,
        model.config.clip_config,
        model.clip.config,
        model.clip.vision_model.config,
        model.clip.text_model.config,
    ]
    assert [config._attn_implementation for config in configs] == [implementation] * 5
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, shared_model(pixel_values).logits, atol=1e-3, rtol=0)


def test_attentions_and_hidden_states(make_model, pixel_values):
    model = make_model(attn_implementation="eager")
    with torch.no_grad():
        plain = model(pixel_values[:2])
        output = model(pixel_values[:2], output_attentions=True, output_hidden_states=True)
    assert plain.attentions is None and plain.hidden_states is None
    # 6 layers and 3 heads over 8 x 8 patches and the class token, width 192.
    assert [tuple(a.shape) for a in output.attentions] == [(2, 3, 65, 65)] * 6
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 65, 192)] * 7
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 3, 65))
    assert torch.equal(plain.logits, output.logits)


def test_larger_images_with_interpolated_positions(shared_model, pixel_values):
    larger = torch.nn.functional.interpolate(pixel_values[:2], size=96)
    with pytest.raises(ValueError, match="96"):
        shared_model(larger)
    with torch.no_grad():
        output = shared_model(larger, interpolate_pos_encoding=True, output_hidden_states=True)
    assert output.hidden_states[0].shape == (2, 145, 192)
    assert torch.isfinite(output.ood_score).all()


def test_a_tuple_instead_of_an_output(shared_model, pixel_values):
    with torch.no_grad():
        output = shared_model(pixel_values[:2])
        as_tuple = shared_model(pixel_values[:2], return_dict=False)
    assert type(as_tuple) is tuple
    assert len(as_tuple) == 3
    for found, expected in zip(as_tuple, (output.logits, output.ood_score, output.image_embeds), strict=True):
        assert torch.equal(found, expected)


def test_own_config(pocket, pixel_values):
    clip_config = CLIPModel.config_class.from_pretrained(pocket)
    config = OODCLIPConfig(clip_config=clip_config, label_templates=["the nice {}"], dtype=torch.float32)
    model = OODCLIPForImageClassification.from_pretrained(pocket, config=config, labels=LABELS)
    expected = OODCLIPForImageClassification.from_pretrained(pocket, labels=LABELS, templates="nice")
    assert model.config.label_templates == ["the nice {}"]
    assert_same_state(model, state_of(expected))


def test_loading_info_of_a_plain_checkpoint(pocket, transformers_warned):
    model, info = OODCLIPForImageClassification.from_pretrained(pocket, labels=LABELS, output_loading_info=True)
    assert model.labels == LABELS
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not [text for text in transformers_warned if "LOAD REPORT" in text]


# ---------------------------------------------------------------- training


def test_loss_and_gradients(make_model, pixel_values):
    model = make_model().train()
    labels = torch.arange(16) % 20
    output = model(pixel_values, labels=labels)
    assert torch.equal(output.loss, cross_entropy(output.logits, labels))
    output.loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    text_only = ("clip.text_model.", "clip.text_projection.")
    expected = {name for name, _ in model.named_parameters() if not name.startswith(text_only)}
    # The gradient of a key's bias is exactly 0 in theory, and noise in practice.
    assert {name for name in expected if "k_proj.bias" not in name} <= trained <= expected
    assert "clip.logit_scale" in trained
    assert not any(buffer.requires_grad for buffer in model.text_bank.buffers())


def test_activation_checkpointing_recomputes_and_changes_no_gradient(make_model, pixel_values):
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            # transformers 5.20 has the older name only.
            newer = hasattr(model, "activation_checkpointing_enable")
            getattr(model, f"{'activation' if newer else 'gradient'}_checkpointing_enable")()
        layer = Calls(model.clip.vision_model.encoder.layers[2].mlp)
        model(pixel_values[:4], labels=torch.arange(4)).loss.backward()
        gradients.append(model.clip.vision_model.embeddings.patch_embedding.weight.grad)
        passes.append(layer.count)
    assert passes == [1, 2]
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0])


def test_input_embeddings(shared_model):
    assert shared_model.get_input_embeddings() is shared_model.clip.text_model.embeddings.token_embedding


# ---------------------------------------------------------------- saving and loading


@pytest.fixture(scope="module")
def tiny_pixels(make_model, tiny_clip, real_images):
    """40 real ID images through the tiny CLIP's image processor."""
    processor = make_model(tiny_clip).image_processor
    return processor(images=real_images["id"], return_tensors="pt")["pixel_values"]


@pytest.fixture
def rich_model(make_model, toy_score, tiny_clip, tiny_pixels):
    """A tiny model with negatives, a fitted score, and three calibrations."""
    model = make_model(tiny_clip, templates=["a photo of a {}.", "the nice {}"])
    toy = ToyDistance(power=3).fit(model.score_inputs(tiny_pixels))
    model.calibrate(tiny_pixels, 0.9)
    model.calibrate(tiny_pixels, 0.8, score=hf_oodclip.get_score("mcm", temperature=0.5))
    model.set_score(toy)
    model.calibrate(tiny_pixels, 0.95, rule="linear")
    return model


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "100KB"}], ids=["one file", "sharded"])
@pytest.mark.parametrize("loader", LOADERS)
def test_everything_comes_back(rich_model, loader, shards, tiny_pixels, tmp_path):
    rich_model.save_pretrained(tmp_path, **shards)
    assert bool(list(tmp_path.glob("model-00002-of-*.safetensors"))) == bool(shards)
    loaded = LOADERS[loader](tmp_path)
    assert type(loaded) is OODCLIPForImageClassification
    assert_same_state(loaded, state_of(rich_model))
    assert loaded.labels == rich_model.labels
    assert loaded.negatives == rich_model.negatives
    assert loaded.config.label_templates == ["a photo of a {}.", "the nice {}"]
    assert (loaded.score.name, loaded.score.options) == ("toy_distance", {"power": 3})
    assert [c.score for c in loaded.ood_head.calibrations] == [
        "neglabel",
        "mcm(temperature=0.5)",
        "toy_distance(power=3)",
    ]
    assert calibrations_of(loaded) == calibrations_of(rich_model)
    with torch.no_grad():
        found, expected = loaded(tiny_pixels), rich_model(tiny_pixels)
    # Not bit by bit: a kernel may round otherwise where the same weights lie elsewhere in memory.
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.ood_score, expected.ood_score, atol=1e-5, rtol=0)
    calibration, original = loaded.calibration, rich_model.calibration
    assert torch.equal(calibration.p_values(found.ood_score), original.p_values(found.ood_score))
    assert len(set(original.p_values(found.ood_score).tolist())) > 10


def test_bank_state_and_calibrations_are_in_the_weights(rich_model, tmp_path):
    rich_model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        own = {name: file.get_slice(name).get_shape() for name in file.keys() if not name.startswith("clip.")}  # noqa: SIM118
    assert own == {
        "text_bank.label_embeds": [20, 24],
        "text_bank.negative_embeds": [8, 24],
        "ood_head.score_state_mean": [20],
        "ood_head.score_state_count": [],
        "ood_head.calibration_scores_0": [40],
        "ood_head.calibration_scores_1": [40],
        "ood_head.calibration_scores_2": [40],
    }


def test_saving_twice_gives_the_same_files(rich_model, tmp_path):
    rich_model.save_pretrained(tmp_path / "first")
    OODCLIPForImageClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert {"config.json", "model.safetensors", "negatives.json", "preprocessor_config.json", "tokenizer.json"} <= set(
        names
    )
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in set(names) - {"config.json"}:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_saved_config_has_no_path_of_this_machine(make_model, pocket_copy, tmp_path):
    make_model(pocket_copy).save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_no_weight_differs_from_the_plain_checkpoint(make_model, pocket, tmp_path):
    make_model().save_pretrained(tmp_path)
    clip = CLIPModel.from_pretrained(pocket).state_dict()
    saved = load_file(tmp_path / "model.safetensors")
    assert {name for name in saved if name.startswith("clip.")} == {f"clip.{name}" for name in clip}
    assert all(torch.equal(saved[f"clip.{name}"], tensor) for name, tensor in clip.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_come_back(make_model, tiny_clip, tiny_pixels, tmp_path, dtype):
    model = make_model(tiny_clip, dtype=dtype)
    model.calibrate(tiny_pixels)
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.clip.dtype == dtype
    assert_same_state(loaded, state_of(model))


LABEL_LISTS = {
    "duplicates": ["crane", "tabby cat", "crane", "crane"],
    "one label": ["goldfish"],
    "unicode": ["Käse", "猫", "🦊 fox", "naïve café", "e\u0301clair", "Ωmega"],
    "odd but legal": ["a {} b", " padded ", "UPPER", "upper", "new\nline", "0"],
}


@pytest.mark.parametrize("kind", LABEL_LISTS)
def test_label_lists_come_back(make_model, tiny_clip, kind, tiny_pixels, tmp_path):
    labels = LABEL_LISTS[kind]
    model = make_model(tiny_clip, labels=labels, negatives=None)
    assert model.labels == labels
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.labels == labels
    assert loaded.config.id2label == dict(enumerate(labels))
    assert loaded.config.label2id == {label: labels.index(label) for label in labels}
    assert_same_state(loaded, state_of(model))
    with torch.no_grad():
        output = loaded(tiny_pixels[:3])
    assert output.logits.shape == (3, len(labels))
    assert torch.isfinite(output.ood_score).all()
    assert output.ood_score.std() > 0


def test_a_model_without_labels_comes_back_without(pocket, pixel_values, tmp_path):
    OODCLIPForImageClassification.from_pretrained(pocket).save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.labels == []
    assert loaded.text_bank.label_embeds.shape == (0, 256)
    loaded.set_labels(LABELS)
    with torch.no_grad():
        assert loaded(pixel_values[:2]).logits.shape == (2, 3)


def test_the_saved_folder_needs_nothing_else(make_model, pocket_copy, real_images, tmp_path):
    model = make_model(pocket_copy)
    model.calibrate(real_images["id"])
    before = pipeline("ood-image-classification", model=model, image_processor=model.image_processor)
    expected = before(real_images["near"])
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(pocket_copy)
    after = pipeline("ood-image-classification", model=str(tmp_path / "saved"))
    assert after(real_images["near"]) == [pytest.approx(result, abs=1e-5) for result in expected]
    assert {type(result["is_ood"]) for result in expected} == {bool}
    after.model.set_labels(LABELS)  # the tokenizer came along
    assert after(real_images["near"][0])["label"] in LABELS


def test_saving_after_the_original_folder_is_gone_says_what_is_missing(make_model, pocket_copy, warned, tmp_path):
    model = make_model(pocket_copy)
    shutil.rmtree(pocket_copy)
    model.save_pretrained(tmp_path / "saved")
    if not (tmp_path / "saved" / "preprocessor_config.json").exists():
        assert any("image processor" in text for text in warned)


def test_other_ranks_write_nothing(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not (tmp_path / "saved").exists() or not list((tmp_path / "saved").iterdir())


def test_labels_override_those_of_a_full_checkpoint(make_model, tiny_clip, tiny_pixels, warned, tmp_path):
    model = make_model(tiny_clip, score="energy")
    model.calibrate(tiny_pixels)
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=LABELS)
    assert loaded.labels == LABELS
    assert loaded.negatives.texts == model.negatives.texts
    assert loaded.score.name == "energy"
    assert loaded.calibration is None
    assert any("calibration was dropped" in text for text in warned)
    expected = make_model(tiny_clip, labels=LABELS, score="energy")
    assert_same_state(loaded, state_of(expected))
    untouched = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert (untouched.labels, untouched.calibration.num_images) == (model.labels, 40)


def test_score_overrides_that_of_a_full_checkpoint(make_model, tiny_clip, tiny_pixels, tmp_path):
    model = make_model(tiny_clip)
    model.calibrate(tiny_pixels)
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path, score="mcm")
    assert loaded.score.name == "mcm"
    assert loaded.calibration is None
    loaded.set_score("neglabel")
    assert loaded.calibration.to_dict() == model.calibration.to_dict()


@pytest.fixture
def full_checkpoint(make_model, tiny_clip, tiny_pixels, tmp_path) -> Path:
    """A full checkpoint with negatives and a calibration, to damage."""
    model = make_model(tiny_clip)
    model.calibrate(tiny_pixels)
    model.save_pretrained(tmp_path / "full")
    return tmp_path / "full"


@pytest.mark.parametrize("loader", LOADERS)
def test_negatives_file_missing(full_checkpoint, loader):
    (full_checkpoint / "negatives.json").unlink()
    with pytest.raises(CheckpointError, match=r"8 negatives but has no negatives\.json.*save_pretrained"):
        LOADERS[loader](full_checkpoint)


def test_negatives_file_of_another_length(full_checkpoint):
    path = full_checkpoint / "negatives.json"
    content = json.loads(path.read_text())
    content["words"]["word"].append("surplus")
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"negatives\.json has 9 words but the text bank 8"):
        OODCLIPForImageClassification.from_pretrained(full_checkpoint)


def test_negatives_file_broken(full_checkpoint):
    (full_checkpoint / "negatives.json").write_text("{not json")
    with pytest.raises(hf_oodclip.OODCLIPError, match=r"negatives\.json"):
        OODCLIPForImageClassification.from_pretrained(full_checkpoint)


@pytest.mark.parametrize(
    "lost", ["text_bank.label_embeds", "text_bank.negative_embeds", "ood_head.calibration_scores_0"]
)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_full_checkpoint_that_lost_a_tensor_is_refused(full_checkpoint, lost, loader):
    # Filled with zeros it would load all the same: all cosines 0, or a threshold without its p-values.
    path = full_checkpoint / "model.safetensors"
    tensors = load_file(path)
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=lost):
        LOADERS[loader](full_checkpoint)


# ---------------------------------------------------------------- labels, score, calibration


def test_new_labels_drop_the_calibrations_and_keep_own_negatives(make_model, tiny_clip, tiny_pixels, warned):
    model = make_model(tiny_clip)
    model.calibrate(tiny_pixels)
    model.calibrate(tiny_pixels, score="mcm")
    words, bank = model.negatives.texts, model.text_bank.negative_embeds.clone()
    warned.clear()
    model.set_labels(LABELS)
    assert model.calibration is None
    assert model.ood_head.calibrations == []
    assert not [name for name in model.state_dict() if "calibration" in name]
    assert [text for text in warned if "calibration was dropped" in text]
    assert model.negatives.texts == words
    assert torch.equal(model.text_bank.negative_embeds, bank)
    assert model.num_labels == model.config.num_labels == 3
    assert_same_state(model, state_of(make_model(tiny_clip, labels=LABELS)))


def test_new_labels_without_a_calibration_are_silent(make_model, warned):
    make_model().set_labels(LABELS)
    assert warned == []


def test_empty_negatives_remove_them(make_model, pixel_values):
    model = make_model()
    model.set_labels(LABELS, negatives=[])
    assert model.negatives is None
    assert model.score.name == "mcm"
    assert model.text_bank.negative_embeds.shape == (0, 256)
    assert model.score_inputs(pixel_values[:1]).negative_similarity is None


def test_new_labels_mine_mined_negatives_again(make_model, monkeypatch):
    nouns = ("kitten", "puppy", "goldfish bowl", "minibus", "tax law", "gravel", "theorem", "fog", "opera", "syntax")
    monkeypatch.setattr(
        mining, "wordnet_words", lambda first_only=False: {"noun": nouns, "adjective": ("blue", "wet")}
    )
    model = make_model(labels=["tabby cat", "dog"], negatives="krnft")
    model.set_labels(["tabby cat", "dog"], negatives=hf_oodclip.mine_negatives(
        ["tabby cat", "dog"], model.text_encoder(), "krnft", num_negatives=4
    ))  # fmt: skip
    first = model.negatives
    model.set_labels(["law", "opera house"])
    assert model.negatives.provenance["labels"] == ["law", "opera house"]
    assert len(model.negatives) == 4
    assert set(model.negatives.texts) != set(first.texts)
    fresh = hf_oodclip.mine_negatives(["law", "opera house"], model.text_encoder(), "krnft", num_negatives=4)
    assert model.negatives == fresh


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["fine", "word " * 60]},
        {"labels": ["a"], "negatives": ["a"]},
        {"labels": ["a"], "negatives": ["word " * 60]},
        {"labels": ["a"], "templates": "no slot here"},
    ],
    ids=["overlong label", "no negative left", "overlong negative", "bad template"],
)
def test_a_failed_change_of_labels_changes_nothing(make_model, tiny_clip, tiny_pixels, wrong):
    model = make_model(tiny_clip)
    model.calibrate(tiny_pixels)
    state, config, calibrations = state_of(model), model.config.to_dict(), calibrations_of(model)
    with pytest.raises(hf_oodclip.OODCLIPError):
        model.set_labels(**wrong)
    assert_same_state(model, state)
    assert model.config.to_dict() == config
    assert calibrations_of(model) == calibrations
    assert len(model.negatives) == 8


def test_default_score_follows_labels_and_negatives(make_model):
    model = make_model(negatives=None)
    assert model.score.name == "mcm"
    model.set_labels(["goldfish"])
    assert model.score.name == "max_logit"
    model.set_labels(["goldfish"], negatives=["gravel", "fog"])
    assert model.score.name == "neglabel"
    model.set_score("gen")
    model.set_labels(LABELS, negatives=[])
    assert model.score.name == "gen"
    model.set_score(None)
    assert model.score.name == "mcm"


def test_each_score_keeps_its_calibration(make_model, tiny_clip, tiny_pixels):
    model = make_model(tiny_clip)
    neglabel = model.calibrate(tiny_pixels, 0.9)
    model.set_score("mcm")
    assert model.calibration is None
    mcm = model.calibrate(tiny_pixels, 0.9)
    assert mcm.threshold != neglabel.threshold
    model.set_score("mcm", temperature=0.5)
    assert model.calibration is None
    for name, expected in (("neglabel", neglabel), ("mcm", mcm)):
        model.set_score(name)
        assert model.calibration.to_dict() == expected.to_dict()
        assert torch.equal(model.calibration.ood_scores, expected.ood_scores)
    again = model.calibrate(tiny_pixels, 0.8)
    assert [c.score for c in model.ood_head.calibrations] == ["neglabel", "mcm"]
    assert model.calibration.threshold == again.threshold < mcm.threshold


def test_a_fitted_score_replaced_leaves_no_state_behind(make_model, toy_score, pixel_values):
    model = make_model()
    before = set(model.state_dict())
    model.set_score(ToyDistance().fit(model.score_inputs(pixel_values)))
    assert set(model.state_dict()) - before == {"ood_head.score_state_mean", "ood_head.score_state_count"}
    model.set_score("mcm")
    assert set(model.state_dict()) == before


def test_the_model_keeps_its_own_copy_of_a_fitted_score(make_model, toy_score, pixel_values):
    model = make_model()
    toy = ToyDistance().fit(model.score_inputs(pixel_values))
    model.set_score(toy)
    expected = model.score(model.score_inputs(pixel_values))
    toy.state["mean"].zero_()
    assert torch.equal(model.score(model.score_inputs(pixel_values)), expected)


def test_state_of_a_score_goes_to_the_device_of_the_model(make_model, toy_score, pixel_values):
    model = make_model()
    toy = ToyDistance().fit(model.score_inputs(pixel_values))
    model.to("meta").set_score(toy)
    assert {name for name, tensor in model.state_dict().items() if tensor.device.type != "meta"} == set()


def test_set_calibration_made_elsewhere(make_model, tiny_clip, tiny_pixels):
    model, other = make_model(tiny_clip), make_model(tiny_clip)
    calibration = model.calibrate(tiny_pixels)
    other.set_calibration(calibration)
    assert calibrations_of(other) == calibrations_of(model)
    other.set_score("mcm")
    with pytest.raises(CalibrationError, match=r"'neglabel'.*'mcm'"):
        other.set_calibration(calibration)


# ---------------------------------------------------------------- image passes


def test_many_scores_from_one_image_pass(make_model, real_images):
    model = make_model()
    names = sorted(scores.SCORES)
    assert {"mcm", "msp", "max_logit", "energy", "entropy", "gen", "neglabel", "delta_energy"} <= set(names)
    chosen = [*names, hf_oodclip.get_score("mcm", temperature=0.5)]
    vision, text = Calls(model.clip.vision_model), Calls(model.clip.text_model)
    together = model.ood_scores(real_images["id"], chosen, batch_size=16)
    assert (vision.count, text.count) == (3, 0)
    assert list(together) == [*names, "mcm(temperature=0.5)"]
    for name in names:
        alone = model.ood_scores(real_images["id"], [name], batch_size=16)
        assert alone.keys() == {name}
        assert torch.equal(alone[name], together[name])
        assert alone[name].shape == (40,)
    assert not torch.allclose(together["mcm"], together["mcm(temperature=0.5)"])


def test_a_score_asked_for_twice_comes_once(shared_model, real_images):
    found = shared_model.ood_scores(real_images["id"][:4], ["mcm", hf_oodclip.get_score("mcm")])
    assert found["mcm"].shape == (4,)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batch_size_changes_nothing(shared_model, real_images, batch_size):
    expected = shared_model.ood_scores(real_images["id"])["neglabel"]
    found = shared_model.ood_scores(real_images["id"], batch_size=batch_size)["neglabel"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_of_nothing_is_refused(shared_model, real_images, batch_size):
    # It must not end as an empty result.
    with pytest.raises(ValueError, match="batch_size"):
        shared_model.ood_scores(real_images["id"], batch_size=batch_size)


def image_sources(images, id_dataset, model, folder):
    """The same 40 images in every form `ood_scores` takes."""
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number:02}.png")
        image.save(paths[-1])
    pixels = model.image_processor(images=images, return_tensors="pt")["pixel_values"]
    rows = id_dataset.select(range(0, 800, 20))
    return {
        "PIL": images,
        "paths": paths,
        "path strings": [str(path) for path in paths],
        "arrays": [np.asarray(image) for image in images],
        "dataset": rows,
        "column": rows["image"],
        "dict rows": [{"image": image, "label": 0} for image in images],
        "tensor": pixels,
        "generator": (image for image in images),
        "tuple": tuple(images),
    }


def test_every_source_of_images_gives_the_same_calibration(make_model, tiny_clip, real_images, id_dataset, tmp_path):
    model = make_model(tiny_clip)
    expected = model.calibrate(real_images["id"], 0.9)
    sources = image_sources(real_images["id"], id_dataset, model, tmp_path)
    for name, source in sources.items():
        found = model.calibrate(source, 0.9)
        assert found.to_dict() == expected.to_dict(), name
        assert torch.equal(found.ood_scores, expected.ood_scores), name


@pytest.mark.parametrize("form", ["PIL", "path", "path string", "array"])
def test_one_image_that_is_no_list(shared_model, real_images, form, tmp_path):
    image = real_images["id"][0]
    image.save(tmp_path / "one.png")
    one = {
        "PIL": image,
        "path": tmp_path / "one.png",
        "path string": str(tmp_path / "one.png"),
        "array": np.asarray(image),
    }[form]
    found = shared_model.ood_scores(one)["neglabel"]
    assert torch.equal(found, shared_model.ood_scores([image])["neglabel"])


def test_rows_without_an_image_column(shared_model, real_images):
    with pytest.raises(hf_oodclip.OODCLIPError, match=r"'?img'?.*image|image.*'?img'?"):
        shared_model.ood_scores([{"img": real_images["id"][0]}])


def test_calibrating_leaves_the_random_generators_alone(make_model, real_images):
    model = make_model()

    def generators():
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
        )

    before = generators()
    model.set_labels(LABELS, negatives=["gravel", "fog"])
    model.calibrate(real_images["id"])
    model.ood_scores(real_images["far"], ["mcm", "neglabel"])
    assert generators() == before


def test_calibrating_keeps_the_training_mode_of_every_module(make_model, real_images):
    model = make_model()
    expected = model.calibrate(real_images["id"]).ood_scores
    model.train()
    model.clip.text_model.eval()  # a frozen tower
    modes = {name: module.training for name, module in model.named_modules()}
    found = model.calibrate(real_images["id"]).ood_scores
    assert model.training
    assert torch.equal(found, expected)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_training_mode_survives_a_failing_image(make_model, real_images):
    model = make_model().train()
    with pytest.raises(hf_oodclip.OODCLIPError, match=r"gone\.png"):
        model.ood_scores([real_images["id"][0], "gone.png"])
    assert model.training


def test_no_labels(pocket, pixel_values):
    model = OODCLIPForImageClassification.from_pretrained(pocket)
    for call in (lambda: model(pixel_values), lambda: model.ood_scores(pixel_values)):
        with pytest.raises(LabelError, match=r"no labels.*set_labels"):
            call()


def test_the_text_tower_never_runs_for_an_image(make_model, real_images, pixel_values):
    model = make_model()
    text = Calls(model.clip.text_model)
    with torch.no_grad():
        model(pixel_values)
    model.calibrate(real_images["id"])
    model.ood_scores(real_images["far"])
    model.set_score("mcm")
    assert text.count == 0
    model.set_labels(LABELS)
    assert text.count > 0


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_equal_and_independent(rich_model, duplicate, tiny_pixels):
    state, calibrations = state_of(rich_model), calibrations_of(rich_model)
    other = duplicate(rich_model)
    assert_same_state(other, state)
    assert calibrations_of(other) == calibrations
    with torch.no_grad():
        assert torch.equal(other(tiny_pixels).ood_score, rich_model(tiny_pixels).ood_score)
    other.set_score("mcm")
    other.set_labels(LABELS)
    assert rich_model.score.name == "toy_distance"
    assert len(rich_model.labels) == 20
    assert_same_state(rich_model, state)
    assert calibrations_of(rich_model) == calibrations
