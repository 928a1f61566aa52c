"""Adapter folders bring back all of the model they were saved from: labels, negatives, score, calibrations."""

import copy
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from slow_context import randomise
from slow_nft import randomise as randomise_nft
from transformers import AutoModelForImageClassification, pipeline

import hf_oodclip
from hf_oodclip import Negatives, NFTConfig, OODCLIPForImageClassification, mining, scores
from hf_oodclip.adapters.context_prompt import ContextPromptConfig
from hf_oodclip.errors import AdapterError, LabelError
from hf_oodclip.scores import Score, ScoreInfo

LABELS = ["goldfish", "school bus", "dining table"]
TEMPLATES = ["a photo of a {}.", "art of the {}"]
MINED = Negatives(
    {"noun": ["gravel", "tax law", "zebra"], "adjective": ["foggy"]},
    {"noun": ["the nice {}"], "adjective": ["This is a {} photo", "a {} one"]},
    {"method": "by hand", "label_templates": TEMPLATES, "counts": {"kept": 4}},
)
RECORD, TENSORS, WORDS = "ood_head.json", "ood_head.safetensors", "ood_head_negatives.json"
CONFIGS = {
    "nft": lambda: NFTConfig(hidden_size=4),
    "context": lambda: ContextPromptConfig(num_context=2, negative_context="separate"),
    "conditional": lambda: ContextPromptConfig(num_context=2, conditional=True, negative_context="shared"),
    "lora": lambda: LoraConfig(r=2, target_modules=r".*(text|vision)_model.*q_proj", init_lora_weights=False),
}


@dataclass
class ToyNovelty(Score):
    """How far the cosines are from a mean that was fitted."""

    name = "toy_novelty"
    requires_fit = True
    info = ScoreInfo("Toy", "None", "None", 2026, "https://example.org")

    def __post_init__(self):
        self.mean = torch.zeros(0)

    def fit(self, inputs):
        self.mean = inputs.similarity.mean(0)
        return self

    def compute(self, inputs):
        return (inputs.similarity - self.mean).square().sum(-1)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


@pytest.fixture
def pixels():
    return torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=list(CONFIGS))
def kind(request):
    return request.param


@pytest.fixture
def trained(make_model, tiny_clip, pixels):
    """Makes a calibrated model with an adapter, on a base that has no labels of its own unless given."""

    def make(kind="nft", base=tiny_clip, wrap=False, **options):
        options = {"labels": LABELS, "templates": TEMPLATES, "negatives": MINED, **options}
        model = make_model(base, **options)
        config = CONFIGS[kind]()
        if wrap:
            get_peft_model(model, config)
        else:
            model.add_adapter(config, "adapter_one")
        randomise_nft(randomise(model, size=0.05), size=0.05)
        model.set_score("neglabel", num_groups=2, seed=3)
        model.calibrate(pixels, target_tpr=0.9)
        model.calibrate(pixels, score="mcm")
        return model.eval()

    return make


def everything(model, pixels):
    """All that must come back."""
    with torch.no_grad():
        found = model(pixels[:8])
    calibration = model.calibration
    return {
        "logits": found.logits,
        "ood_score": found.ood_score,
        "p_values": None if calibration is None else calibration.p_values(found.ood_score),
        "is_ood": None if calibration is None else calibration.is_ood(found.ood_score),
        "label_embeds": model.text_bank.label_embeds,
        "negative_embeds": model.text_bank.negative_embeds,
        "words": (model.labels, model.config.label_templates, model.config.template_average, model.negatives),
        "numbers": (model.config.num_labels, model.config.num_negatives, model.config.id2label, model.config.label2id),
        "score": (model.score.name, model.score.options),
        "calibrations": [(c.to_dict(), c.ood_scores.tolist()) for c in model.ood_head.calibrations],
    }


def assert_all_equal(found, wanted):
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=name)
        else:
            assert found[name] == value, name


def content_of(folder):
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) - {"README.md"} == {"adapter_config.json", "adapter_model.safetensors", RECORD, TENSORS, WORDS}
    return (
        [json.loads(files[name].read_text()) for name in ("adapter_config.json", RECORD, WORDS)],
        [load_file(files[name]) for name in ("adapter_model.safetensors", TENSORS)],
    )


# ---------------------------------------------------------------- every way in gives everything back


def test_every_route(kind, trained, tiny_clip, pixels, make_model, tmp_path, warned):
    model = trained(kind)
    wanted = everything(model, pixels)
    assert len(wanted["calibrations"]) == 2 and wanted["p_values"].unique().numel() > 2
    model.save_pretrained(tmp_path)
    warned.clear()

    def bare():
        return make_model(tiny_clip, labels=None, negatives=None)

    native = bare()
    native.load_adapter(str(tmp_path), "another_name")
    routes = {"from_pretrained": OODCLIPForImageClassification.from_pretrained(tmp_path), "load_adapter": native}
    if kind != "lora":
        # PEFT does not tell its own kinds of adapter which folder they come from.
        routes["PeftModel"] = PeftModel.from_pretrained(bare(), tmp_path).get_base_model()
    for route, loaded in routes.items():
        assert_all_equal(everything(loaded.eval(), pixels), wanted)
        assert loaded.negatives.provenance == MINED.provenance, route
    assert warned == []


def test_pipeline_of_a_folder(kind, trained, real_images, tmp_path):
    model = trained(kind)
    model.save_pretrained(tmp_path)
    images = [image.resize((32, 32)) for image in real_images["id"][:6]]
    made = pipeline("ood-image-classification", model=model, image_processor=model.image_processor)
    found = pipeline("ood-image-classification", model=str(tmp_path))(images, batch_size=4)
    for one, other in zip(found, made(images), strict=True):
        assert {one[name] for name in ("label", "nearest_negative", "is_ood", "p_value")} == {
            other[name] for name in ("label", "nearest_negative", "is_ood", "p_value")
        }
        assert one["is_ood"] in (True, False)
        assert one["ood_score"] == pytest.approx(other["ood_score"], abs=1e-5)


def test_the_base_is_a_full_checkpoint(kind, trained, make_model, tiny_clip, pixels, tmp_path, warned):
    """The folder of the adapter says more than its base, whose labels, negatives and calibrations are others."""
    base = make_model(tiny_clip, labels=["sand", "snow"], negatives=["goldfish", "mud"])
    base.calibrate(pixels)
    base.save_pretrained(tmp_path / "base")
    model = trained(kind, tmp_path / "base")
    wanted = everything(model, pixels)
    model.save_pretrained(tmp_path / "adapter")
    warned.clear()
    own = OODCLIPForImageClassification.from_pretrained(tmp_path / "adapter")
    auto = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")
    assert type(auto) is OODCLIPForImageClassification
    for loaded in (own, auto):
        assert_all_equal(everything(loaded.eval(), pixels), wanted)
    assert warned == []
    # On a model that has labels, they stay, with all that belongs to them.
    kept = OODCLIPForImageClassification.from_pretrained(tmp_path / "base")
    before = everything(kept, pixels)
    kept.load_adapter(str(tmp_path / "adapter"))
    after = everything(kept.eval(), pixels)
    assert not torch.equal(after["logits"], before["logits"])
    for name in ("words", "numbers", "score", "calibrations"):
        assert after[name] == before[name], name


def test_a_model_and_an_adapter_in_one_folder(trained, make_model, tiny_clip, pixels, tmp_path):
    make_model(tiny_clip, labels=["sand", "snow"], negatives=["mud"]).save_pretrained(tmp_path)
    model = trained("nft", tmp_path)
    wanted = everything(model, pixels)
    model.save_pretrained(tmp_path)
    assert_all_equal(everything(OODCLIPForImageClassification.from_pretrained(tmp_path).eval(), pixels), wanted)
    model.set_labels(LABELS, negatives=[])
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert (loaded.labels, loaded.negatives) == (LABELS, None)
    # The model of the folder is as it was.
    for name in ("adapter_config.json", "adapter_model.safetensors", RECORD):
        (tmp_path / name).unlink()
    whole = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert (whole.labels, whole.negatives.texts) == (["sand", "snow"], ["mud"])


def test_a_plain_clip_and_an_adapter_in_one_folder(trained, pixels, tiny_clip, tmp_path):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    model = trained("context", folder)
    wanted = everything(model, pixels)
    model.save_pretrained(folder)
    assert_all_equal(everything(OODCLIPForImageClassification.from_pretrained(folder).eval(), pixels), wanted)


def test_a_score_that_was_fitted(trained, pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "_registered", {})
    hf_oodclip.register_score(ToyNovelty)
    model = trained("nft")
    with torch.no_grad():
        model.set_score(ToyNovelty().fit(model.score_inputs(pixels[:20])))
    model.calibrate(pixels)
    wanted = everything(model, pixels)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / TENSORS)) == {
        "score_state_mean",
        "calibration_scores_0",
        "calibration_scores_1",
        "calibration_scores_2",
    }
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path).eval()
    assert_all_equal(everything(loaded, pixels), wanted)
    assert loaded.score.mean.shape == (3,)
    other = OODCLIPForImageClassification.from_pretrained(tmp_path, score="mcm")
    assert other.score.name == "mcm"
    assert other.calibration.score == "mcm"


def test_a_default_score_stays_the_default(make_model, tiny_clip, tmp_path):
    model = make_model(tiny_clip, labels=LABELS, negatives=["gravel"])
    model.add_adapter(NFTConfig(), "adapter_one")
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.score_record is None
    assert loaded.score.name == "neglabel"
    loaded.set_labels(LABELS, negatives=[])
    assert loaded.score.name == "mcm"


@pytest.mark.parametrize("average", ["raw", "unnormalized"])
def test_averages_come_back(make_model, tiny_clip, tmp_path, average):
    model = make_model(tiny_clip, labels=None, negatives=None)
    model.set_labels(LABELS, TEMPLATES, ["gravel"], average=average)
    model.add_adapter(NFTConfig(), "adapter_one")
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.template_average == average
    torch.testing.assert_close(loaded.text_bank.label_embeds, model.text_bank.label_embeds)


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("kind", ["nft", "context"])
def test_both_writers_write_the_same(kind, trained, make_model, tiny_clip, tmp_path):
    model = trained(kind)
    model.save_pretrained(tmp_path / "native")
    wrapped = PeftModel.from_pretrained(make_model(tiny_clip, labels=None, negatives=None), tmp_path / "native")
    wrapped.save_pretrained(tmp_path / "peft")
    (native, native_tensors), (by_peft, peft_tensors) = (content_of(tmp_path / name) for name in ("native", "peft"))
    for config in (native[0], by_peft[0]):
        # PEFT's own bookkeeping: only its writer notes the class of the base, and sets inference_mode.
        del config["auto_mapping"], config["inference_mode"]
    assert by_peft == native
    for one, other in zip(native_tensors, peft_tensors, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    record = native[1]
    assert record["labels"] == LABELS
    assert record["label_templates"] == TEMPLATES
    assert record["num_negatives"] == 4
    assert record["score_record"]["options"]["num_groups"] == 2


def test_an_adapter_of_another_name_has_its_record_beside_it(trained, pixels, make_model, tiny_clip, tmp_path):
    model = trained("nft")
    model.save_pretrained(tmp_path / "one")
    wrapped = PeftModel.from_pretrained(
        make_model(tiny_clip, labels=None, negatives=None), tmp_path / "one", adapter_name="second_name"
    )
    wrapped.save_pretrained(tmp_path / "both")
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path / "both" / "second_name")
    assert_all_equal(everything(loaded.eval(), pixels), everything(model, pixels))


def test_saving_again_removes_what_is_gone(trained, make_model, tiny_clip, tmp_path):
    model = trained("nft")
    model.save_pretrained(tmp_path)
    content_of(tmp_path)
    model.set_labels(LABELS, negatives=[])
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", RECORD}
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert (loaded.negatives, loaded.ood_head.calibrations) == (None, [])
    assert loaded.labels == LABELS
    # A model without labels leaves those of another model nowhere.
    bare = make_model(tiny_clip, labels=None, negatives=None)
    bare.add_adapter(NFTConfig(), "adapter_one")
    trained("nft").save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert OODCLIPForImageClassification.from_pretrained(tmp_path).labels == []


def test_lora_of_a_model_without_labels(make_model, tiny_clip, tmp_path):
    model = make_model(tiny_clip, labels=None, negatives=None)
    model.add_adapter(CONFIGS["lora"](), "adapter_one")
    model.save_pretrained(tmp_path)
    assert OODCLIPForImageClassification.from_pretrained(tmp_path).labels == []
    assert OODCLIPForImageClassification.from_pretrained(tmp_path, labels=LABELS).labels == LABELS


# ---------------------------------------------------------------- other labels


@pytest.mark.parametrize("kind", ["nft", "context"])
def test_other_labels_mine_again_and_keep_the_maps(kind, make_model, tiny_clip, tmp_path, monkeypatch):
    """Negatives from WordNet depend on the labels; a class-agnostic adapter does not."""
    words = ("mud", "sand", "snow", "zebra", "gravel", "tax law", "fog", "violin", "puppy", "storm")
    monkeypatch.setattr(mining, "wordnet_words", lambda *args, **kwargs: {"noun": words, "adjective": ("red", "wet")})
    model = make_model(tiny_clip, labels=LABELS, negatives="neglabel")
    model.add_adapter(CONFIGS[kind](), "adapter_one")
    randomise_nft(randomise(model))
    model.save_pretrained(tmp_path)
    assert model.negatives.provenance["labels"] == LABELS
    others = ["violin", "puppy"]
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=others)
    mined = make_model(tiny_clip, labels=others, negatives="neglabel")
    assert loaded.labels == others
    assert loaded.negatives == mined.negatives
    assert loaded.negatives.provenance["labels"] == others
    assert loaded.config.label_templates == model.config.label_templates
    assert torch.equal(loaded.text_bank.negative_embeds, mined.text_bank.negative_embeds)
    learnt = {name: value for name, value in model.named_parameters() if "adapter_one" in name}
    kept = {name: value for name, value in loaded.named_parameters() if ".default" in name}
    assert len(kept) == len(learnt) > 0
    for name, value in learnt.items():
        assert torch.equal(kept[name.replace("adapter_one", "default")], value)
    # Own words stay as they are.
    own = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=others, negatives=["mud", "fog"])
    assert own.negatives.texts == ["mud", "fog"]


def test_other_labels_drop_the_calibration(trained, tmp_path, warned):
    trained("nft").save_pretrained(tmp_path)
    warned.clear()
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=["sand", "snow"])
    assert loaded.calibration is None
    assert loaded.score.options["num_groups"] == 2
    assert any("calibration was dropped" in message for message in warned)


@pytest.mark.parametrize(
    "config", [NFTConfig(variant="class_specific"), ContextPromptConfig(num_context=2, class_specific=True)], ids=str
)
def test_class_specific_adapters_keep_their_labels(make_model, tiny_clip, tmp_path, config):
    model = make_model(tiny_clip, labels=LABELS, negatives=MINED)
    model.add_adapter(config, "adapter_one")
    model.save_pretrained(tmp_path)
    assert OODCLIPForImageClassification.from_pretrained(tmp_path).labels == LABELS
    for others, message in ((["a", "b"], "3 labels"), (["a", "b", "c"], "goldfish"), (LABELS[::-1], "goldfish")):
        with pytest.raises(AdapterError, match=message):
            OODCLIPForImageClassification.from_pretrained(tmp_path, labels=others)
    with pytest.raises(AdapterError, match="3 labels"):
        make_model(tiny_clip, labels=["a", "b"], negatives=MINED).load_adapter(str(tmp_path))


# ---------------------------------------------------------------- damaged folders


def edited(folder, **changes):
    path = folder / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_tensor(folder):
    tensors = load_file(folder / TENSORS)
    del tensors["calibration_scores_1"]
    save_file(tensors, folder / TENSORS)


DAMAGES = {
    "not JSON": (lambda folder: (folder / RECORD).write_text("{no"), r"Expecting property name"),
    "no record": (lambda folder: (folder / RECORD).write_text("[]"), r"list indices"),
    "newer": (lambda folder: edited(folder, format="hf_oodclip ood head 9"), r"its format is .*9.*this version reads"),
    "labels gone": (lambda folder: edited(folder, labels=[]), r"list of labels is empty"),
    "labels damaged": (lambda folder: edited(folder, labels=["a", 5]), r"Label 1 is 5"),
    "templates damaged": (lambda folder: edited(folder, label_templates=["a photo"]), r"'a photo'"),
    "calibration damaged": (lambda folder: edited(folder, calibrations=[{"score": "mcm"}]), r"tpr_interval"),
    "negatives gone": (lambda folder: (folder / WORDS).unlink(), r"has 4 negatives, but ood_head_negatives\.json is"),
    "negatives damaged": (lambda folder: (folder / WORDS).write_text("{"), r"is not a negatives file"),
    "negatives changed": (lambda folder: edited(folder, num_negatives=5), r"has 5 negatives, but .* holds 4"),
    "tensors gone": (lambda folder: (folder / TENSORS).unlink(), r"need ood_head\.safetensors, which is missing"),
    "tensors cut": (lambda folder: (folder / TENSORS).write_bytes(b"12345678"), r"header"),
    "tensor missing": (without_tensor, r"calibration_scores_1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records(damage, trained, make_model, tiny_clip, tmp_path):
    trained("nft").save_pretrained(tmp_path)
    change, message = DAMAGES[damage]
    change(tmp_path)
    bare = make_model(tiny_clip, labels=None, negatives=None)
    for load in (
        lambda: OODCLIPForImageClassification.from_pretrained(tmp_path),
        lambda: bare.load_adapter(str(tmp_path)),
        lambda: PeftModel.from_pretrained(bare, tmp_path),
    ):
        with pytest.raises(AdapterError, match=f"(?s)ood_head.json cannot be used.*{message}.*save the adapter again"):
            load()
    assert bare.labels == [] and bare.ood_head.calibrations == []
    assert not hasattr(bare, "peft_config")
    # As the message says.
    (tmp_path / RECORD).unlink()
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=LABELS, negatives=["fog"])
    assert (loaded.labels, loaded.calibration) == (LABELS, None)


def test_a_folder_without_a_record(trained, tmp_path):
    trained("nft").save_pretrained(tmp_path)
    for name in (RECORD, TENSORS, WORDS):
        (tmp_path / name).unlink()
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.labels == []
    with pytest.raises(LabelError, match=r"no labels: load it with labels="):
        loaded.score_inputs(image_embeds=torch.randn(2, 24))


def test_a_refused_adapter_gives_a_bare_model_no_labels(trained, make_model, tiny_clip, tmp_path):
    trained("nft").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 3}))
    bare = make_model(tiny_clip, labels=None, negatives=None)
    with pytest.raises(AdapterError, match=r"do not fit this model"):
        bare.load_adapter(str(tmp_path))
    assert bare.labels == []


@pytest.mark.parametrize("with_record", [True, False])
def test_an_adapter_in_the_hub_cache(trained, pixels, tmp_path, monkeypatch, with_record):
    """Offline, a file that a repo does not have cannot be told from one that was not fetched."""
    model = trained("nft")
    wanted = everything(model, pixels)
    snapshot = tmp_path / "models--someone--adapter" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    model.save_pretrained(snapshot)
    refs = tmp_path / "models--someone--adapter" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    if not with_record:
        (snapshot / RECORD).unlink()
    loaded = OODCLIPForImageClassification.from_pretrained("someone/adapter", cache_dir=tmp_path)
    if with_record:
        assert_all_equal(everything(loaded.eval(), pixels), wanted)
    else:
        assert loaded.labels == []


def test_a_class_specific_adapter_refuses_as_many_other_labels(tiny_clip, tmp_path):
    make = OODCLIPForImageClassification.from_pretrained
    config = NFTConfig(variant="class_specific")
    get_peft_model(make(tiny_clip, labels=["cat", "dog"], negatives=["fog"]), config).save_pretrained(tmp_path)
    others = {"labels": ["cat", "bus"], "negatives": ["fog"]}
    for load in (
        lambda: make(tiny_clip, **others).load_adapter(str(tmp_path)),
        lambda: PeftModel.from_pretrained(make(tiny_clip, **others), tmp_path),
        lambda: make(tmp_path, **others),
    ):
        with pytest.raises(AdapterError, match=r"class-specific.*cat, dog.*cannot take others"):
            load()


def test_a_copied_model_saves_its_own_record(tiny_clip, tmp_path):
    model = OODCLIPForImageClassification.from_pretrained(tiny_clip, labels=["cat", "dog"], negatives=["fog"])
    model.add_adapter(NFTConfig(), "some_adapter")
    copied = copy.deepcopy(model)
    copied.set_labels(["bus", "car", "van"])
    copied.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "ood_head.json").read_text())["labels"] == ["bus", "car", "van"]
