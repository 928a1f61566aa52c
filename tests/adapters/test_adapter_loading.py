"""Adapter folders: every way to load one gives the same cosines, and a clear error where it cannot."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from slow_nft import cosines_of, layer_of, parameters_of, randomise
from transformers import AutoModelForImageClassification, pipeline

from hf_oodclip import NFTConfig, OODCLIPForImageClassification
from hf_oodclip.errors import AdapterError, CheckpointError, UnknownNameError

WEIGHTS = "adapter_model.safetensors"
NEGATIVES = ["gravel", "fog", "tax law"]
LABELS = ["goldfish", "school bus"]


def base_model(folder, **options):
    return OODCLIPForImageClassification.from_pretrained(folder, labels=LABELS, negatives=NEGATIVES, **options)


@pytest.fixture
def folder(case, tiny_clip, image_embeds, tmp_path):
    """Folder of a trained-looking adapter of one variant, and the cosines it gives."""
    model = randomise(get_peft_model(base_model(tiny_clip), NFTConfig(variant=case[0], conditional=case[1])))
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), cosines_of(model, image_embeds)


@pytest.fixture
def binary(tiny_clip, tmp_path):
    """Folder of a binary adapter of the tiny model."""
    randomise(get_peft_model(base_model(tiny_clip), NFTConfig())).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


# ---------------------------------------------------------------- every way in


def test_all_ways_to_load_give_equal_cosines(folder, tiny_clip, image_embeds):
    path, wanted = folder
    native = base_model(tiny_clip)
    native.load_adapter(path, "loaded")
    added = base_model(tiny_clip)
    added.add_adapter(NFTConfig.from_pretrained(path), "added")
    state = {name.split("similarity.")[1]: tensor for name, tensor in load_file(f"{path}/{WEIGHTS}").items()}
    with torch.no_grad():
        for name, value in parameters_of(layer_of(added), "added").items():
            value.copy_(state[name])
    models = {
        "model.load_adapter": native,
        "model.add_adapter": added,
        "PeftModel.from_pretrained": PeftModel.from_pretrained(base_model(tiny_clip), path),
        "from_pretrained": OODCLIPForImageClassification.from_pretrained(path, labels=LABELS, negatives=NEGATIVES),
    }
    for way, model in models.items():
        assert torch.equal(cosines_of(model, image_embeds), wanted), way


def test_native_and_peft_write_the_same_files(case, tiny_clip, image_embeds, tmp_path):
    peft_model = randomise(get_peft_model(base_model(tiny_clip), NFTConfig(variant=case[0], conditional=case[1])))
    peft_model.save_pretrained(tmp_path / "peft")
    native = base_model(tiny_clip)
    native.load_adapter(str(tmp_path / "peft"), "some_name")
    native.save_pretrained(tmp_path / "native")
    tensors = [load_file(tmp_path / name / WEIGHTS) for name in ("peft", "native")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "native")]
    assert configs[0] == configs[1]
    assert configs[0]["peft_type"] == "OODCLIP_NFT"
    assert configs[0]["base_model_name_or_path"] == tiny_clip
    again = PeftModel.from_pretrained(base_model(tiny_clip), tmp_path / "native")
    assert torch.equal(cosines_of(again, image_embeds), cosines_of(peft_model, image_embeds))


def test_the_folder_of_a_full_base(tiny_clip, image_embeds, tmp_path):
    base_model(tiny_clip).save_pretrained(tmp_path / "full")
    base = OODCLIPForImageClassification.from_pretrained(tmp_path / "full")
    model = randomise(get_peft_model(base, NFTConfig()))
    wanted = cosines_of(model, image_embeds)
    model.save_pretrained(tmp_path / "adapter")
    own = OODCLIPForImageClassification.from_pretrained(tmp_path / "adapter")
    assert own.labels == LABELS
    assert own.negatives.texts == NEGATIVES
    auto = AutoModelForImageClassification.from_pretrained(tmp_path / "adapter")
    assert type(auto) is OODCLIPForImageClassification
    for loaded in (own, auto):
        assert torch.equal(cosines_of(loaded, image_embeds), wanted)
        assert loaded.name_or_path == str(tmp_path / "full")


def test_pipeline_of_an_adapter_folder(pocket, id_labels, real_images, tmp_path):
    options = {"labels": id_labels, "negatives": NEGATIVES}
    model = randomise(
        get_peft_model(OODCLIPForImageClassification.from_pretrained(pocket, **options), NFTConfig()), size=0.05
    )
    model.save_pretrained(tmp_path)
    images = real_images["id"][:4]
    wanted = pipeline("ood-image-classification", model=model.get_base_model(), image_processor=model.image_processor)(
        images
    )
    found = pipeline("ood-image-classification", model=str(tmp_path), **options)(images)
    assert [row["label"] for row in found] == [row["label"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["ood_score"] == pytest.approx(other["ood_score"], abs=1e-6)
    plain = pipeline("ood-image-classification", model=pocket, **options)(images)
    assert [row["ood_score"] for row in plain] != [row["ood_score"] for row in wanted]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_of_an_adapter_folder(binary, tiny_clip, image_embeds, dtype):
    wanted = PeftModel.from_pretrained(base_model(tiny_clip), binary)
    for model in (
        OODCLIPForImageClassification.from_pretrained(binary, labels=LABELS, negatives=NEGATIVES, dtype=dtype),
        PeftModel.from_pretrained(base_model(tiny_clip, dtype=dtype), binary).get_base_model(),
    ):
        assert model.clip.dtype == dtype
        assert {value.dtype for value in parameters_of(model.similarity).values()} <= {torch.float32, torch.float64}
        for name, value in parameters_of(model.similarity).items():
            assert torch.equal(value.float(), parameters_of(layer_of(wanted))[name])


def test_loaded_adapters_are_frozen_unless_asked(binary, tiny_clip):
    for trainable in (False, True):
        native = base_model(tiny_clip)
        native.load_adapter(str(binary), is_trainable=trainable)
        wrapped = PeftModel.from_pretrained(base_model(tiny_clip), binary, is_trainable=trainable)
        for model in (native, wrapped):
            assert {value.requires_grad for value in parameters_of(layer_of(model)).values()} == {trainable}
    model = OODCLIPForImageClassification.from_pretrained(binary, labels=LABELS, adapter_name="mine")
    assert model.active_adapters() == ["mine"]
    assert not any(value.requires_grad for value in parameters_of(model.similarity, "mine").values())


def test_a_second_adapter_leaves_the_first_alone(binary, tiny_clip, image_embeds, tmp_path):
    other = randomise(get_peft_model(base_model(tiny_clip), NFTConfig(variant="mlp")), seed=7)
    other.save_pretrained(tmp_path / "other")
    model = base_model(tiny_clip)
    model.load_adapter(str(binary), "first")
    first = cosines_of(model, image_embeds)
    model.load_adapter(str(tmp_path / "other"), "second")
    model.set_adapter("second")
    assert torch.equal(cosines_of(model, image_embeds), cosines_of(other, image_embeds))
    model.set_adapter("first")
    assert torch.equal(cosines_of(model, image_embeds), first)


def test_a_lora_folder_loads_as_ever(tiny_clip, tmp_path):
    pixels = torch.randn(2, 3, 32, 32)
    config = LoraConfig(target_modules=r".*vision_model.*self_attn\.q_proj", r=2, init_lora_weights=False)
    model = get_peft_model(base_model(tiny_clip), config)
    model.save_pretrained(tmp_path)
    again = OODCLIPForImageClassification.from_pretrained(tmp_path, labels=LABELS, negatives=NEGATIVES)
    torch.testing.assert_close(again(pixels).logits, model.eval()(pixels).logits)


def test_a_folder_with_both_a_model_and_an_adapter(tiny_clip, image_embeds, tmp_path):
    base_model(tiny_clip).save_pretrained(tmp_path)
    model = randomise(get_peft_model(OODCLIPForImageClassification.from_pretrained(tmp_path), NFTConfig()))
    wanted = cosines_of(model, image_embeds)
    model.save_pretrained(tmp_path)
    moved = shutil.copytree(tmp_path, tmp_path.parent / "moved")
    shutil.rmtree(tmp_path)
    assert torch.equal(cosines_of(OODCLIPForImageClassification.from_pretrained(moved), image_embeds), wanted)


def test_file_sizes(tmp_path, capsys):
    """36,896 parameters travel in 148 kB, and the smallest variants in a few kB."""
    from transformers import CLIPConfig

    from hf_oodclip import OODCLIPConfig

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPConfig(text_config=small, vision_config=small, projection_dim=512)
    sizes = {}
    for name, options in {
        "binary": {},
        "binary, fixed": {"conditional": False},
        "uni": {"variant": "uni"},
        "constant, fixed": {"variant": "constant", "conditional": False},
        "mlp": {"variant": "mlp"},
    }.items():
        config = NFTConfig(**options)
        count = sum(torch.Size(shape).numel() for shape in config.parameter_shapes(512).values())
        get_peft_model(OODCLIPForImageClassification(OODCLIPConfig(clip_config=clip)), config).save_pretrained(
            tmp_path
        )
        sizes[name] = (tmp_path / WEIGHTS).stat().st_size
        assert 4 * count < sizes[name] < 4 * count + 2500
    assert sizes["binary"] < 150_000


# ---------------------------------------------------------------- clear errors


def ways(folder, base_folder):
    """The three loaders, as calls; each on a base of the given folder."""
    return {
        "native": lambda: base_model(base_folder).load_adapter(str(folder)),
        "peft": lambda: PeftModel.from_pretrained(base_model(base_folder), folder),
        "own": lambda: OODCLIPForImageClassification.from_pretrained(folder, labels=LABELS, negatives=NEGATIVES),
    }


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_refused(folder, base_folder, message, error=AdapterError, which=("native", "peft", "own")):
    for way in which:
        with pytest.raises(error, match=message):
            ways(folder, base_folder)[way]()


def test_adapter_for_another_width(binary, pocket):
    edit(binary, base_model_name_or_path=pocket)
    assert_refused(
        binary, pocket, r"(?s)has shape \(2, 24\), where embeddings of width 256.*need \(2, 256\).*another base"
    )


def test_missing_and_unexpected_keys(binary, tiny_clip):
    tensors = load_file(binary / WEIGHTS)
    lost = tensors.pop("base_model.model.similarity.tuned_shift")
    save_file(tensors, binary / WEIGHTS)
    assert_refused(binary, tiny_clip, r"missing \['shift'\], unexpected none.*incomplete")
    save_file({**tensors, "base_model.model.similarity.tuned_shyft": lost}, binary / WEIGHTS)
    assert_refused(binary, tiny_clip, r"missing \['shift'\], unexpected \['shyft'\]")


def test_a_refused_adapter_leaves_the_model_as_it_was(binary, tiny_clip, image_embeds):
    edit(binary, hidden_size=3)
    model = base_model(tiny_clip)
    before = cosines_of(model, image_embeds)
    with pytest.raises(AdapterError):
        model.load_adapter(str(binary))
    assert torch.equal(cosines_of(model, image_embeds), before)
    edit(binary, hidden_size=8)
    model.load_adapter(str(binary))
    assert not torch.equal(cosines_of(model, image_embeds), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 3}, r"has shape \(2, 8, 24\).*need \(2, 3, 24\).*edited"),
        ({"variant": "mlp"}, r"missing \['text_down_bias'.*unexpected \['scale'"),
        ({"conditional": False}, r"missing none, unexpected \['scale_down_bias'.*edited"),
        ({"variant": "binery"}, r"NFT variant 'binery'. Did you mean 'binary'"),
        ({"hidden_size": "8"}, r"hidden_size must be a whole number"),
        ({"variant": "class_specific"}, r"num_labels and num_negatives|has shape"),
    ],
    ids=str,
)
def test_edited_config(binary, tiny_clip, changes, message):
    edit(binary, **changes)
    assert_refused(binary, tiny_clip, message, (AdapterError, UnknownNameError))


def test_a_pickle_is_never_opened(binary, tiny_clip):
    torch.save(load_file(binary / WEIGHTS), binary / "adapter_model.bin")
    (binary / WEIGHTS).unlink()
    assert_refused(binary, tiny_clip, r"adapter_model\.bin, a pickle.*safetensors only")


def test_no_weights_at_all(binary, tiny_clip):
    (binary / WEIGHTS).unlink()
    assert_refused(
        binary, tiny_clip, r"no adapter_model\.safetensors: the folder is incomplete", which=("native", "own")
    )


def test_damaged_weights(binary, tiny_clip):
    (binary / WEIGHTS).write_bytes((binary / WEIGHTS).read_bytes()[:1000])
    assert_refused(binary, tiny_clip, r"adapter_model\.safetensors is damaged", which=("native", "own"))


def test_damaged_config(binary, tiny_clip):
    (binary / "adapter_config.json").write_text("{not json")
    assert_refused(binary, tiny_clip, r"adapter_config\.json is not JSON", which=("native", "own"))
    (binary / "adapter_config.json").write_text("{}")
    assert_refused(binary, tiny_clip, r"does not say which kind of adapter", which=("native", "own"))


def test_class_specific_with_other_counts(tiny_clip, tmp_path):
    config = NFTConfig(variant="class_specific")
    get_peft_model(base_model(tiny_clip), config).save_pretrained(tmp_path)
    other = {"labels": ["a", "b", "c"], "negatives": NEGATIVES}
    message = (
        r"class-specific.*(2 labels and 3 negatives, not for 3 and 3|goldfish, school bus\) and cannot take others)"
    )
    with pytest.raises(AdapterError, match=message):
        OODCLIPForImageClassification.from_pretrained(tmp_path, **other)
    with pytest.raises(AdapterError, match=message):
        OODCLIPForImageClassification.from_pretrained(tiny_clip, **other).load_adapter(str(tmp_path))
    with pytest.raises(AdapterError, match=message):
        PeftModel.from_pretrained(OODCLIPForImageClassification.from_pretrained(tiny_clip, **other), tmp_path)


def test_the_base_is_gone_or_not_named(binary):
    edit(binary, base_model_name_or_path="/no/such/base")
    with pytest.raises(CheckpointError, match=r"adapter for /no/such/base, which does not exist"):
        OODCLIPForImageClassification.from_pretrained(binary, labels=LABELS)
    edit(binary, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match=r"names no base.*load_adapter"):
        OODCLIPForImageClassification.from_pretrained(binary, labels=LABELS)


def test_a_full_base_that_lost_its_bank_stays_loud(tiny_clip, tmp_path):
    base_model(tiny_clip).save_pretrained(tmp_path / "full")
    model = get_peft_model(OODCLIPForImageClassification.from_pretrained(tmp_path / "full"), NFTConfig())
    model.save_pretrained(tmp_path / "adapter")
    tensors = load_file(tmp_path / "full" / "model.safetensors")
    del tensors["text_bank.label_embeds"]
    save_file(tensors, tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks text_bank\.label_embeds"):
        OODCLIPForImageClassification.from_pretrained(tmp_path / "adapter")
