import copy
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from typer.testing import CliRunner

import hf_oodclip.export
import hf_oodclip.onnx_file
from hf_oodclip import (
    Calibration,
    CLIPAdapterConfig,
    ContextPromptConfig,
    NFTConfig,
    TaskResidualConfig,
    export_onnx,
    get_score,
    list_scores,
)
from hf_oodclip.cli import app
from hf_oodclip.errors import (
    AdapterError,
    CalibrationError,
    ExportError,
    LabelError,
    OODCLIPError,
    ScoreInputError,
    UnknownNameError,
)
from hf_oodclip.export import read_onnx_metadata

ADAPTERS = {
    "nft": NFTConfig(hidden_size=4),
    "nft_class_specific": NFTConfig(variant="class_specific"),
    "nft_mlp": NFTConfig(variant="mlp", conditional=False),
    "context_prompt": ContextPromptConfig(num_context=2, negative_context="separate"),
    "clip_adapter": CLIPAdapterConfig(),
    "task_residual": TaskResidualConfig(),
    "lora": LoraConfig(target_modules=r".*vision_model.*(q_proj|v_proj)"),
}
NOT_EXPORTABLE = {"adaneg": "remembers", "odin": "perturbed", "clipn": "no_similarity", "zoc": "candidate"}


def run(path, *batches):
    """The outputs by name; of several batches put together."""
    session = onnxruntime.InferenceSession(str(path))
    found = [session.run(None, {"pixel_values": np.asarray(batch)}) for batch in batches]
    names = [output.name for output in session.get_outputs()]
    return {name: np.concatenate(parts) for name, *parts in zip(names, *found, strict=True)}


def p_value(ood_score, reference):
    """By the formula, one at a time, in exact arithmetic."""
    return (1 + sum(float(value) >= float(ood_score) for value in reference)) / (1 + len(reference))


def changed(model, config, seed=0):
    """Put an adapter on the model whose weights are no identity."""
    model.add_adapter(config, "adapter_under_test")
    generator = torch.Generator().manual_seed(seed)
    for name, values in model.named_parameters():
        if "adapter_under_test" in name:
            values.data += 0.2 * torch.randn(values.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def pixels(shared_model, real_images):
    """Real images: 6 ID, 2 near, 2 far."""
    chosen = [*real_images["id"][:6], *real_images["near"][:2], *real_images["far"][:2]]
    return shared_model.image_processor(images=chosen, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def calibrated(make_model, real_images):
    model = make_model()
    # Half of the ID images are called OOD, so that a few images show both verdicts.
    model.calibrate(real_images["id"], 0.5)
    return model


@pytest.fixture(scope="module")
def exported(calibrated, tmp_path_factory):
    return export_onnx(calibrated, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture
def tiny(make_model, tiny_clip):
    return make_model(tiny_clip, labels=["acorn", "tabby cat", "lawn mower"])


@pytest.fixture(scope="module")
def tiny_pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def assert_same(path, model, pixels):
    with torch.no_grad():
        wanted = model.eval()(pixels)
    for batch in (1, 2, len(pixels)):
        found = run(path, *pixels.split(batch))
        for name in ("logits", "ood_score"):
            reference = getattr(wanted, name).numpy()
            assert found[name].dtype == np.float32
            assert found[name].shape == reference.shape
            assert (np.abs(found[name] - reference) <= 1e-4 * np.maximum(1, np.abs(reference))).all()
        assert found["label"].tolist() == wanted.logits.argmax(-1).tolist()


def test_the_file_gives_what_the_model_gives(exported, calibrated, pixels):
    assert_same(exported, calibrated, pixels)


def test_decisions_follow_from_the_scores_by_the_formula(exported, calibrated, pixels):
    found = run(exported, pixels)
    reference = calibrated.calibration.ood_scores.tolist()
    assert found["p_value"].tolist() == [p_value(score, reference) for score in found["ood_score"]]
    assert found["is_ood"].tolist() == [bool(s > calibrated.calibration.threshold) for s in found["ood_score"]]
    assert {True, False} == set(found["is_ood"].tolist())
    wanted = calibrated.calibration.is_ood(calibrated.ood_scores(pixels)["neglabel"])
    assert found["is_ood"].tolist() == wanted.tolist()


def test_ties_and_scores_beyond_all_calibration_scores(tiny, tiny_pixels, tmp_path, warned):
    path = export_onnx(tiny, tmp_path / "first.onnx")
    first = run(path, tiny_pixels)
    assert list(first) == ["logits", "label", "ood_score"]
    assert "no p_value and is_ood" in " ".join(warned)
    assert read_onnx_metadata(path)["threshold"] is None
    middle = torch.from_numpy(np.sort(first["ood_score"])[1:4])
    # The very scores of three images, seven times each, and two images outside of them.
    tiny.set_calibration(Calibration.fit(middle.repeat(7), "neglabel"))
    found = run(export_onnx(tiny, tmp_path / "second.onnx"), tiny_pixels)
    assert np.array_equal(found["ood_score"], first["ood_score"])
    order = np.argsort(found["ood_score"])
    assert found["p_value"][order].tolist() == [1, 1, 15 / 22, 8 / 22, 1 / 22]
    assert found["is_ood"][order].tolist() == [False, False, False, False, True]


def test_a_damaged_picture_is_ood(exported, calibrated, pixels):
    damaged = pixels[:2].clone()
    damaged[1, 0, 5, 5] = torch.nan
    found = run(exported, damaged)
    assert np.isnan(found["ood_score"]).tolist() == [False, True]
    assert found["is_ood"][1]
    assert found["p_value"][1] == 1 / 41


@pytest.mark.parametrize("name", ["context_prompt", "lora"])
def test_adapters_are_inside(name, tiny, tiny_pixels, tmp_path):
    with torch.no_grad():
        before = tiny(tiny_pixels).logits
    changed(tiny, copy.deepcopy(ADAPTERS[name]))
    path = export_onnx(tiny, tmp_path / "model.onnx")
    assert_same(path, tiny, tiny_pixels)
    assert np.abs(run(path, tiny_pixels)["logits"] - before.numpy()).max() > 0.01
    (adapter,) = read_onnx_metadata(path)["adapters"]
    assert adapter["name"] == "adapter_under_test"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ADAPTERS) - {"context_prompt", "lora"}))
def test_further_adapters_are_inside(name, tiny, tiny_pixels, tmp_path):
    test_adapters_are_inside(name, tiny, tiny_pixels, tmp_path)


@pytest.mark.slow
def test_an_adapter_that_is_off_is_not_inside(tiny, tiny_pixels, tmp_path):
    with torch.no_grad():
        before = tiny(tiny_pixels).logits
    changed(tiny, ADAPTERS["nft"]).disable_adapters()
    path = export_onnx(tiny, tmp_path / "model.onnx")
    assert np.allclose(run(path, tiny_pixels)["logits"], before, atol=1e-4)
    assert read_onnx_metadata(path)["adapters"] == []


@pytest.mark.slow
def test_a_peft_model_is_the_model_inside_it(tiny, tiny_pixels, tmp_path):
    wrapped = get_peft_model(tiny, NFTConfig(hidden_size=4))
    with torch.no_grad():
        for name, values in wrapped.named_parameters():
            values += 0.3 if "tuned_shift" in name else 0
    assert_same(export_onnx(wrapped, tmp_path / "model.onnx"), wrapped.get_base_model(), tiny_pixels)


def check_score(name, model, pixels, folder):
    score = get_score(name, **({"dim": 6} if name == "vim" else {}))
    if score.requires_fit:
        images = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        score = model.fit_score(images, [row % 3 for row in range(60)], score)
    path = export_onnx(model, folder / "model.onnx", score=score)
    assert read_onnx_metadata(path)["score"] == score.key
    model.set_score(score)
    assert_same(path, model, pixels)
    assert np.ptp(run(path, pixels)["ood_score"]) > 0


def test_a_fitted_score(tiny, tiny_pixels, tmp_path):
    check_score("mahalanobis", tiny, tiny_pixels, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*list_scores()} - {*NOT_EXPORTABLE, "mahalanobis"}))
def test_every_other_score_of_one_image_pass(name, tiny, tiny_pixels, tmp_path):
    check_score(name, tiny, tiny_pixels, tmp_path)


@pytest.mark.slow
def test_gl_mcm_with_an_adapter_and_no_negatives(make_model, tiny_clip, tiny_pixels, tmp_path):
    model = make_model(tiny_clip, labels=["acorn", "tabby cat"], negatives=[], score="gl_mcm")
    changed(model, ADAPTERS["nft"])
    assert_same(export_onnx(model, tmp_path / "model.onnx"), model, tiny_pixels)


@pytest.mark.parametrize("name", sorted(NOT_EXPORTABLE))
def test_scores_of_more_than_one_image_pass_are_refused(name, tiny, tmp_path):
    with pytest.raises(ExportError, match=NOT_EXPORTABLE[name]):
        export_onnx(tiny, tmp_path / "model.onnx", score=name)


def test_a_half_precision_model_stays_so_and_its_file_is_float32(tiny, tiny_pixels, tmp_path, warned):
    tiny.calibrate(torch.randn(120, 3, 32, 32, generator=torch.Generator().manual_seed(3)), score="max_logit")
    tiny.to(torch.bfloat16).train()
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    # What an earlier, larger file of this name left.
    (tmp_path / "model.onnx.data").write_text("")
    path = export_onnx(tiny, tmp_path / "model.onnx", score="max_logit", check_images=tiny_pixels)
    assert "float32 instead of torch.bfloat16" in " ".join(warned)
    assert read_onnx_metadata(path)["check"]["largest_difference"]["logits"] <= 1e-4
    assert list(tmp_path.iterdir()) == [path]
    assert tiny.training
    assert tiny.score.key == "neglabel"
    assert before.keys() == tiny.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


# ---- what the file says ---------------------------------------------------------------------------


def test_metadata(exported, calibrated, id_labels):
    about = read_onnx_metadata(exported)
    assert about["labels"] == id_labels
    assert about["num_negatives"] == 8
    assert about["score"] == "neglabel"
    assert about["threshold"] == calibrated.calibration.threshold
    assert about["calibration"]["num_images"] == 40
    assert about["target_tpr"] == 0.5
    assert about["base"] == "pocket_clip"
    assert about["precision"] == "float32"
    assert about["check"]["images"] == 5
    assert 0 < about["check"]["largest_difference"]["logits"] <= 1e-4
    assert about["versions"]["torch"] == torch.__version__
    settings = onnxruntime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    assert json.loads(settings["hf_oodclip"]) == about


def test_the_file_is_one_and_names_no_path_of_this_machine(exported, pocket):
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    content = exported.read_bytes()
    for text in ("site-packages", str(Path(hf_oodclip.export.__file__).parent), pocket, str(Path.home())):
        assert text.encode() not in content
    # Of the text tower nothing is left.
    assert b"text_model" not in content


def test_other_preprocessing_is_described_not_guessed(tiny, tmp_path, warned):
    tiny.image_processor.do_center_crop = False
    settings = hf_oodclip.export._image_settings(tiny.image_processor)
    assert settings["do_center_crop"] is False
    assert "as its metadata says" in " ".join(warned)


# ---- the twelve lines -----------------------------------------------------------------------------


def twelve_lines():
    return re.search(r"```python\n(.*?)```", inspect.getdoc(hf_oodclip.export), re.S)[1].splitlines()


def test_twelve_lines_need_no_torch_and_give_the_same(exported, calibrated, real_images, tmp_path):
    assert len(twelve_lines()) == 12
    shutil.copy(exported, tmp_path / "model.onnx")
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'hf_oodclip', 'peft')))\n"
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    for role, image in (("id", real_images["id"][3]), ("far", real_images["far"][0])):
        picture = image.convert("RGB").resize((150, 97))
        picture.save(tmp_path / "photo.jpg", quality=95, exif=exif)
        done = subprocess.run(
            [sys.executable, "-c", blocked + "\n".join(twelve_lines())], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        score = calibrated.ood_scores([str(tmp_path / "photo.jpg")])["neglabel"]
        with torch.no_grad():
            shown = calibrated.image_processor(images=Image.open(tmp_path / "photo.jpg").rotate(-90, expand=True))
            label = int(calibrated(torch.tensor(np.array(shown["pixel_values"]))).logits.argmax())
        verdict = "OOD" if bool(calibrated.calibration.is_ood(score)) else "ID"
        assert done.stdout.strip() == (
            f"{calibrated.labels[label]} {verdict} {float(calibrated.calibration.p_values(score))}"
        ), role


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 131), (500, 333), (37, 41), (1000, 63)])
def test_the_preprocessing_of_the_twelve_lines_is_that_of_the_processor(size, exported, shared_model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    lines = [line.replace("photo.jpg", str(tmp_path / "photo.png")) for line in twelve_lines()]
    first = next(row for row, line in enumerate(lines) if line.startswith("how"))
    names = {"about": read_onnx_metadata(exported)}
    exec("\n".join([*lines[:2], *lines[first:10]]), names)
    wanted = shared_model.image_processor(images=Image.fromarray(noise), return_tensors="np")["pixel_values"]
    assert names["pixels"].dtype == np.float32
    assert names["pixels"].shape == wanted.shape
    assert np.abs(names["pixels"] - wanted).max() < 1e-5


# ---- 8 bits ---------------------------------------------------------------------------------------


def test_int8_is_smaller_and_calibrated_by_its_own_scores(exported, calibrated, real_images, pixels, tmp_path, warned):
    path = export_onnx(calibrated, tmp_path / "small.onnx", int8=True, calibration_images=real_images["id"])
    assert path.stat().st_size < 0.4 * exported.stat().st_size
    about = read_onnx_metadata(path)
    assert about["precision"] == "int8"
    assert not any("Give calibration_images" in text for text in warned)
    id_pixels = calibrated.image_processor(images=real_images["id"], return_tensors="pt")["pixel_values"]
    found = run(path, *id_pixels.split(1))
    scores = sorted(found["ood_score"].tolist())
    # 40 images and the model's target of 50 %: the conformal rank is ceil(41 * 0.5) = 21.
    assert about["threshold"] == scores[20]
    assert about["threshold"] != calibrated.calibration.threshold
    assert sum(~found["is_ood"]) == 21
    assert found["p_value"].tolist() == [p_value(score, scores) for score in found["ood_score"]]
    # The vision tower moves a little, and nothing else does.
    difference = np.abs(run(path, pixels)["logits"] - run(exported, pixels)["logits"])
    assert 1e-3 < difference.max() < 1


@pytest.mark.slow
def test_int8_with_the_calibration_of_the_model_warns(tiny, tmp_path, warned):
    tiny.calibrate(torch.randn(120, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    path = export_onnx(tiny, tmp_path / "model.onnx", int8=True)
    assert "Give calibration_images" in " ".join(warned)
    assert read_onnx_metadata(path)["threshold"] == tiny.calibration.threshold


def test_too_few_images_to_calibrate_with(tiny, tiny_pixels, tmp_path):
    with pytest.raises(CalibrationError, match="at least 20"):
        export_onnx(tiny, tmp_path / "model.onnx", calibration_images=tiny_pixels)
    assert list(tmp_path.iterdir()) == []


# ---- bad input, and files that must not be left behind --------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"score": "neglable"}, UnknownNameError, "neglabel"),
        ({"score": "knn"}, ScoreInputError, "not fitted"),
        ({"path": "model.pt"}, ExportError, r"end in \.onnx"),
        ({"path": "file/model.onnx"}, ExportError, "cannot be written"),
        ({"path": "old.onnx"}, ExportError, "overwrite=True"),
        ({"path": "folder.onnx"}, ExportError, r"end in \.onnx"),
        ({"check_images": []}, ExportError, "no images"),
    ],
)
def test_bad_input(options, error, says, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "old.onnx").write_text("kept")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=says):
        export_onnx(tiny, tmp_path / options.pop("path", "model.onnx"), **options)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old.onnx").read_text() == "kept"


def test_a_score_without_its_negatives(make_model, tiny_clip, tmp_path):
    model = make_model(tiny_clip, labels=["acorn", "tabby cat"], negatives=[])
    with pytest.raises(ScoreInputError, match="negatives"):
        export_onnx(model, tmp_path / "model.onnx", score="neglabel")


def test_a_model_without_labels(make_model, tiny_clip, tmp_path):
    with pytest.raises(LabelError, match="labels="):
        export_onnx(make_model(tiny_clip, labels=None, negatives=None), tmp_path / "model.onnx")


def test_another_kind_of_model(tiny, tmp_path):
    with pytest.raises(ExportError, match="got CLIPModel"):
        export_onnx(tiny.clip, tmp_path / "model.onnx")


def test_prompts_that_images_write_are_refused(tiny, tmp_path):
    tiny.add_adapter(ContextPromptConfig(num_context=2, conditional=True), "adapter_under_test")
    with pytest.raises(ExportError, match="conditional=False"):
        export_onnx(tiny, tmp_path / "model.onnx")


def test_a_score_torch_cannot_trace(tiny, tmp_path, monkeypatch):
    score = get_score("mcm")
    compute = type(score).compute
    monkeypatch.setattr(
        type(score), "compute", lambda self, inputs: compute(self, inputs) * (2 if inputs.similarity.max() > 0 else 1)
    )
    with pytest.raises(ExportError, match="torch operations alone"):
        export_onnx(tiny, tmp_path / "model.onnx", score=score)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_torch_never_appears(tiny, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("kept")
    monkeypatch.setattr(hf_oodclip.onnx_file, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match=r"logits .* differ by"):
        export_onnx(tiny, tmp_path / "model.onnx", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "kept"


def test_large_weights_lie_beside_the_file(tiny, tiny_pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_oodclip.onnx_file, "MAX_BYTES", 1000)
    path = export_onnx(tiny, tmp_path / "first" / "model.onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert_same((tmp_path / "first").rename(tmp_path / "moved") / "model.onnx", tiny, tiny_pixels)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all"])
def test_metadata_of_other_files(content, tmp_path):
    with pytest.raises(ExportError, match=r"none\.onnx"):
        read_onnx_metadata(tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"other\.onnx"):
        read_onnx_metadata(tmp_path / "other.onnx")


def test_without_the_extra_it_says_what_to_install(run_python, tiny_clip):
    code = f"""
import sys
sys.modules["onnxscript"] = sys.modules["onnxruntime"] = None
from hf_oodclip import OODCLIPForImageClassification, export_onnx
model = OODCLIPForImageClassification.from_pretrained({tiny_clip!r}, labels=["acorn"])
try:
    export_onnx(model, "model.onnx")
except Exception as error:
    print(type(error).__name__, error)
"""
    assert run_python(code) == (
        'ExportError ONNX needs onnxruntime, onnxscript: install with pip install "hf_oodclip[export]".'
    )


# ---- the command ----------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command(tiny_clip, tmp_path, real_images):
    (tmp_path / "photos").mkdir()
    for row, image in enumerate(real_images["id"][:25]):
        image.save(tmp_path / "photos" / f"{row:02d}.png")
    arguments = (tiny_clip, tmp_path / "model.onnx", "--labels", "acorn,tabby cat", "--score", "max_logit")
    result = command(*arguments, "--calibrate", tmp_path / "photos", "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["calibration"]["num_images"] == 25
    assert about["bytes"] == (tmp_path / "model.onnx").stat().st_size
    again = command(*arguments)
    assert isinstance(again.exception, ExportError)
    assert "--overwrite" in str(again.exception)


def test_the_command_puts_an_adapter_on_its_base(tiny, tiny_clip, pocket, tiny_pixels, tmp_path):
    changed(tiny, NFTConfig(hidden_size=4))
    tiny.save_pretrained(tmp_path / "adapter")
    result = command(tiny_clip, tmp_path / "model.onnx", "--adapter", tmp_path / "adapter")
    assert result.exit_code == 0, result.output
    assert "3 labels, 8 negatives, score neglabel" in result.stdout
    assert "Not calibrated" in result.stdout
    assert_same(tmp_path / "model.onnx", tiny, tiny_pixels)
    other = command(pocket, tmp_path / "other.onnx", "--adapter", tmp_path / "adapter")
    assert isinstance(other.exception, AdapterError)
    assert issubclass(ExportError, OODCLIPError)
    assert not (tmp_path / "other.onnx").exists()
