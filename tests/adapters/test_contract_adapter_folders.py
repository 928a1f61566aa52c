"""Folders of every adapter in `ADAPTERS`: written, read back in every way, and refused with a clear error."""

import json
from dataclasses import fields

import pytest
import torch
from contract import CLASSES, adapted, cosines_of, each_adapter, new_config
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from hf_oodclip import OODCLIPForImageClassification
from hf_oodclip.adapters.base import OODAdapterConfig
from hf_oodclip.errors import AdapterError, OODCLIPError

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(name, tiny, tmp_path):
    """Folder of a randomised adapter of the tiny model."""
    adapted(tiny, name).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# ---------------------------------------------------------------- saved and loaded


@each_adapter
def test_all_ways_to_load_give_equal_cosines(name, make_model, tiny_clip, image_embeds, tmp_path):
    model = adapted(make_model(tiny_clip), name)
    wanted = cosines_of(model, image_embeds)
    model.save_pretrained(tmp_path / "peft")
    native = make_model(tiny_clip)
    native.load_adapter(str(tmp_path / "peft"), "some_name")
    native.save_pretrained(tmp_path / "native")
    for folder in (tmp_path / "peft", tmp_path / "native"):
        other = make_model(tiny_clip, labels=["other"], negatives=None)
        if not model.peft_config["default"].is_class_specific:
            other.load_adapter(folder)
            other.set_labels(native.labels, negatives=native.negatives)
        ways = {
            "load_adapter": native,
            "load_adapter before labels": other,
            "PeftModel.from_pretrained": PeftModel.from_pretrained(make_model(tiny_clip), folder),
            "from_pretrained": OODCLIPForImageClassification.from_pretrained(folder),
            "from_pretrained with labels": make_model(folder),
        }
        if model.peft_config["default"].is_class_specific:
            del ways["load_adapter before labels"]
        for way, loaded in ways.items():
            assert torch.equal(cosines_of(loaded, image_embeds), wanted), way


@each_adapter
def test_the_folder_of_a_full_base(name, make_model, tiny_clip, image_embeds, tmp_path):
    make_model(tiny_clip).save_pretrained(tmp_path / "full")
    model = adapted(OODCLIPForImageClassification.from_pretrained(tmp_path / "full"), name)
    model.save_pretrained(tmp_path / "adapter")
    for loader in (OODCLIPForImageClassification, AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path / "adapter")
        assert type(loaded) is OODCLIPForImageClassification
        assert torch.equal(cosines_of(loaded, image_embeds), cosines_of(model, image_embeds))


@each_adapter
def test_labels_negatives_score_and_calibration_come_back(name, tiny, tiny_clip, real_images, tmp_path):
    tiny.set_labels(tiny.labels, "nice", ["gravel", "fog"], average="unnormalized")
    model = adapted(tiny, name)
    tiny.set_score("neglabel", num_groups=2)
    tiny.calibrate(real_images["id"], target_tpr=0.9)
    wanted = tiny.ood_scores(real_images["far"])[tiny.score.key]
    model.save_pretrained(tmp_path)
    own = OODCLIPForImageClassification.from_pretrained(tmp_path)
    native = OODCLIPForImageClassification.from_pretrained(tiny_clip)
    native.load_adapter(str(tmp_path))
    wrapped = PeftModel.from_pretrained(OODCLIPForImageClassification.from_pretrained(tiny_clip), tmp_path)
    for loaded in (own, native, wrapped.get_base_model()):
        assert loaded.labels == tiny.labels
        assert loaded.negatives.texts == ["gravel", "fog"]
        assert (loaded.config.label_templates, loaded.config.template_average) == (["the nice {}"], "unnormalized")
        assert loaded.score.key == tiny.score.key
        assert [each.to_dict() for each in loaded.ood_head.calibrations] == [
            each.to_dict() for each in tiny.ood_head.calibrations
        ]
        assert torch.equal(loaded.ood_scores(real_images["far"])[tiny.score.key], wanted)


@each_adapter
def test_file_size(name, tiny, saved):
    count = sum(tensor.numel() for tensor in load_file(saved / WEIGHTS).values())
    assert count == get_peft_model(tiny, new_config(name)).get_nb_trainable_parameters()[0]
    assert 4 * count < (saved / WEIGHTS).stat().st_size < 4 * count + 2500


# ---------------------------------------------------------------- clear errors


def refused(folder, base_folder, make_model, message, error=AdapterError, ways=("native", "peft", "own")):
    loaders = {
        "native": lambda: make_model(base_folder).load_adapter(str(folder)),
        "peft": lambda: PeftModel.from_pretrained(make_model(base_folder), folder),
        "own": lambda: OODCLIPForImageClassification.from_pretrained(folder),
    }
    for way in ways:
        with pytest.raises(error, match=message):
            loaders[way]()


@each_adapter
def test_adapter_for_another_width(name, saved, make_model, pocket):
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": pocket}))
    refused(saved, pocket, make_model, r"(?s)has shape \(.*\), where embeddings of width 256.*another base")


@each_adapter
def test_missing_and_unexpected_weights(name, saved, make_model, tiny_clip):
    tensors = load_file(saved / WEIGHTS)
    lost = sorted(tensors)[0]
    value = tensors.pop(lost)
    short = lost.rpartition(f".{CLASSES[name][1].prefix}")[2]
    save_file(tensors, saved / WEIGHTS)
    refused(saved, tiny_clip, make_model, rf"missing \['{short}'\], unexpected none.*incomplete")
    save_file({**tensors, f"{lost}x": value}, saved / WEIGHTS)
    refused(saved, tiny_clip, make_model, rf"missing \['{short}'\], unexpected \['{short}x'\]")


@each_adapter
def test_a_pickle_is_never_opened(name, saved, make_model, tiny_clip):
    torch.save(load_file(saved / WEIGHTS), saved / "adapter_model.bin")
    (saved / WEIGHTS).unlink()
    refused(saved, tiny_clip, make_model, r"adapter_model\.bin, a pickle.*safetensors only")


@each_adapter
def test_damaged_or_missing_weights(name, saved, make_model, tiny_clip):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:100])
    refused(saved, tiny_clip, make_model, r"adapter_model\.safetensors is damaged", ways=("native", "own"))
    (saved / WEIGHTS).unlink()
    refused(saved, tiny_clip, make_model, r"no adapter_model\.safetensors", ways=("native", "own"))


@each_adapter
def test_an_edited_config(name, saved, make_model, tiny_clip):
    """Every number, choice and switch of the config is checked when it is read."""
    path = saved / "adapter_config.json"
    content = json.loads(path.read_text())
    own = {field.name for field in fields(CLASSES[name][0])} - {field.name for field in fields(OODAdapterConfig)}
    for key in own - {"suffix"}:
        if isinstance(content[key], str | int | float):
            path.write_text(json.dumps({**content, key: "no such value"}))
            refused(saved, tiny_clip, make_model, "no such value", OODCLIPError)
