"""The `ood-image-classification` pipeline: every way to make it, every input it takes, every option."""

import base64
import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModelForImageClassification, CLIPModel, pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hf_oodclip
from hf_oodclip.errors import (
    ImageReadError,
    LabelError,
    OODCLIPError,
    ScoreInputError,
    UnknownNameError,
)

TASK = "ood-image-classification"
LABELS = ["goldfish", "school bus", "tabby cat"]


@pytest.fixture(scope="module")
def make_pipeline(pocket, id_labels, make_model):
    """A factory of pipelines over the pocket CLIP, by default those of `make_model`."""

    def make(model=None, **options):
        if model is None:
            model = make_model()
            options = {"image_processor": model.image_processor, **options}
        return pipeline(TASK, model=model, **options)

    return make


@pytest.fixture(scope="module")
def classifier(make_pipeline):
    """A pipeline for tests that change nothing in it."""
    return make_pipeline()


@pytest.fixture(scope="module")
def images(real_images) -> list[Image.Image]:
    """16 real images, ID and not, in RGB."""
    return [
        image.convert("RGB") for image in [*real_images["id"][:6], *real_images["near"][:5], *real_images["far"][:5]]
    ]


@pytest.fixture(scope="module")
def expected(classifier, images):
    """What the pipeline says about `images`, one by one."""
    return [classifier(image) for image in images]


def same(found, expected):
    """Equal up to rounding: a kernel may round otherwise for another batch size."""
    assert isinstance(found, list)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert same(one.get("labels", []), other.get("labels", []))
        one, other = ({key: value for key, value in result.items() if key != "labels"} for result in (one, other))
        assert one == pytest.approx(other, abs=1e-5)
    return True


def text_passes(model):
    """A list that grows with every forward pass of the text tower."""
    passes = []
    model.clip.text_model.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


# ---------------------------------------------------------------- results


def test_results_equal_the_formulas(classifier, images, expected):
    model = classifier.model
    clip = CLIPModel.from_pretrained(hf_oodclip.pocket_path()).eval()
    pixels = model.image_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        ood_scores = model(pixels).ood_score.tolist()
    probabilities = torch.softmax(clip.logit_scale.detach().exp() * embeds @ model.text_bank.label_embeds.T, dim=-1)
    nearest = (embeds @ model.text_bank.negative_embeds.T).argmax(dim=-1)
    for row, result in enumerate(expected):
        assert result == {
            "label": model.labels[int(probabilities[row].argmax())],
            "score": pytest.approx(float(probabilities[row].max()), abs=1e-5),
            "ood_score": pytest.approx(ood_scores[row], abs=1e-5),
            "p_value": None,
            "is_ood": None,
            "nearest_negative": model.negatives.texts[int(nearest[row])],
        }
    assert len({result["nearest_negative"] for result in expected}) > 2
    assert len({result["label"] for result in expected}) > 2


def test_results_are_plain_python(classifier, images, expected):
    result = classifier(images[0], top_k=None, threshold=-0.5)
    assert json.loads(json.dumps(result)) == result
    assert [type(result[key]) for key in ("label", "score", "ood_score", "is_ood", "nearest_negative")] == [
        str,
        float,
        float,
        bool,
        str,
    ]
    assert list(expected[0]) == ["label", "score", "ood_score", "p_value", "is_ood", "nearest_negative"]


def test_no_negatives_no_nearest_negative(make_pipeline, pocket, images):
    classifier = make_pipeline(pocket, labels=LABELS)
    assert classifier.model.score.name == "mcm"
    assert set(classifier(images[0])) == {"label", "score", "ood_score", "p_value", "is_ood"}


def test_nearest_negative_after_the_words_changed(make_pipeline, images):
    classifier = make_pipeline()
    classifier.model.set_labels(LABELS, negatives=["gravel"])
    assert classifier(images[0])["nearest_negative"] == "gravel"


# ---------------------------------------------------------------- ways to make it


def ways_to_make_it(make_model, folder):
    """Arguments of `pipeline` that must all give the same pipeline."""
    model = make_model()
    model.save_pretrained(folder)
    plain = {"labels": model.labels, "negatives": model.negatives.texts}
    auto = AutoModelForImageClassification.from_pretrained(folder)
    return {
        "plain CLIP": {"model": hf_oodclip.pocket_path(), **plain},
        "plain CLIP, model_kwargs": {"model": hf_oodclip.pocket_path(), "model_kwargs": plain},
        "full checkpoint": {"model": str(folder)},
        "full checkpoint as a path": {"model": folder},
        "model object": {"model": model, "image_processor": model.image_processor},
        "model object and processor folder": {"model": model, "image_processor": hf_oodclip.pocket_path()},
        "Auto model object": {"model": auto, "image_processor": auto.image_processor},
        "class by name": {"model": str(folder), "pipeline_class": hf_oodclip.OODImageClassificationPipeline},
    }


def test_ways_to_make_it(make_model, images, expected, tmp_path):
    for name, arguments in ways_to_make_it(make_model, tmp_path).items():
        made = pipeline(TASK, **arguments)
        assert isinstance(made, hf_oodclip.OODImageClassificationPipeline), name
        assert same(made(images[:4]), expected[:4]), name


def test_labels_for_a_full_checkpoint(make_model, make_pipeline, images, tmp_path):
    make_model(templates="nice").save_pretrained(tmp_path)
    classifier = make_pipeline(str(tmp_path), labels=LABELS)
    assert classifier.model.labels == LABELS
    assert classifier.model.config.label_templates == ["the nice {}"]
    assert len(classifier.model.negatives) == 8
    assert classifier(images[0])["label"] in LABELS


def test_templates_and_score_when_it_is_made(make_pipeline, pocket, images):
    classifier = make_pipeline(pocket, labels=LABELS, templates="nice", score="energy", top_k=2, threshold=1e9)
    model = classifier.model
    assert model.config.label_templates == ["the nice {}"]
    result = classifier(images[0])
    energy = model.ood_scores([images[0]], ["energy"])["energy"]
    assert result["ood_score"] == pytest.approx(float(energy), abs=1e-5)
    assert result["is_ood"] is False
    assert len(result["labels"]) == 2
    # A call may say otherwise, and the next call is as before.
    assert classifier(images[0], top_k=1, threshold=-1e9).keys() == {
        "label",
        "score",
        "ood_score",
        "p_value",
        "is_ood",
    }
    assert classifier(images[0], threshold=-1e9)["is_ood"] is True
    assert classifier(images[0]) == result


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision(make_pipeline, pocket, id_labels, images, expected, dtype):
    classifier = make_pipeline(pocket, labels=id_labels, negatives=list(pipeline_words(expected)), dtype=dtype)
    assert classifier.model.clip.dtype in (torch.bfloat16, torch.float16)
    results = classifier(images, batch_size=4)
    assert all(0 <= result["score"] <= 1 for result in results)
    agree = sum(result["label"] == other["label"] for result, other in zip(results, expected, strict=True))
    assert agree >= 13
    # fp32 scores: more distinct values than bf16 has between 0.5 and 1.
    assert any(torch.tensor(result["ood_score"]).bfloat16().float() != result["ood_score"] for result in results)


def pipeline_words(expected):
    return dict.fromkeys(result["nearest_negative"] for result in expected)


def test_no_labels(make_pipeline, pocket):
    with pytest.raises(LabelError, match=r"no labels.*labels=\["):
        make_pipeline(pocket)


def test_a_model_that_is_not_ours(make_pipeline, pocket, classifier):
    with pytest.raises(ScoreInputError, match=r"needs an OODCLIPForImageClassification, got CLIPModel"):
        make_pipeline(CLIPModel.from_pretrained(pocket), image_processor=classifier.image_processor, labels=LABELS)


def test_a_checkpoint_that_is_not_ours(make_pipeline, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    # transformers wraps what a model class raises, and quotes it.
    with pytest.raises(ValueError, match="is a 'vit' checkpoint; this package loads clip"):
        make_pipeline(str(tmp_path), labels=LABELS)


# ---------------------------------------------------------------- inputs


def forms_of(image, folder, server):
    """One image in every form the pipeline takes."""
    image.save(folder / "one.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    return {
        "path string": str(folder / "one.png"),
        "path": folder / "one.png",
        "URL": f"{server}/one.png",
        "PIL": image,
        "array": np.asarray(image),
        "base64": text,
        "data URL": f"data:image/png;base64,{text}",
    }


FORMS = ("path string", "path", "URL", "PIL", "array", "base64", "data URL")


@pytest.mark.parametrize("form", FORMS)
def test_one_image(classifier, images, expected, form, tmp_path, server):
    given = forms_of(images[0], tmp_path, server)[form]
    assert same([classifier(given)], expected[:1])
    assert same(classifier([given, given]), expected[:1] * 2)


def sources_of(images):
    """All images in every form of many."""
    rows = datasets.Dataset.from_dict({"image": images, "n": list(range(16))}, features=datasets.Features(
        {"image": datasets.Image(), "n": datasets.Value("int64")}
    ))  # fmt: skip
    return {
        "list": images,
        "KeyDataset": KeyDataset(rows, "image"),
        "column": rows["image"],
        "generator": (image for image in images),
        "streaming dataset": (row["image"] for row in rows.to_iterable_dataset()),
    }


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("source", ["list", "KeyDataset", "column", "generator", "streaming dataset"])
def test_many_images(classifier, images, expected, source, batch_size):
    given = sources_of(images)[source]
    assert same(list(classifier(given, batch_size=batch_size)), expected)


def test_a_column_of_a_streaming_dataset(classifier, images, expected):
    rows = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    assert same(list(classifier(rows.to_iterable_dataset()["image"], batch_size=3)), expected)


def test_lists_and_columns_give_lists_and_streams_give_iterators(classifier, images):
    sources = sources_of(images)
    assert type(classifier(sources["list"])) is list
    assert type(classifier(sources["column"])) is list
    consumed = []
    stream = classifier(image for image in images if not consumed.append(1))
    next(iter(stream))
    assert 1 <= len(consumed) < 5


def test_images_of_many_kinds_in_one_batch(classifier, images):
    alpha = images[0].copy()
    alpha.putalpha(255)
    deep = Image.fromarray(np.asarray(images[0].convert("L")).astype(np.uint16) * 257)
    kinds = [
        alpha,
        images[0].convert("L"),
        images[0].convert("CMYK"),
        images[0].convert("P"),
        images[0].convert("1"),
        deep,
        images[0].resize((1, 1)),
        images[0].resize((500, 3)),
        images[0].resize((33, 77)),
    ]
    results = classifier(kinds, batch_size=4)
    assert all(np.isfinite([result["score"], result["ood_score"]]).all() for result in results)
    assert same([results[0]], [classifier(images[0])])
    assert same([results[5]], [results[1]])


def test_a_bad_image_among_good_ones_is_named(classifier, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing more")
    with pytest.raises(ImageReadError, match=r"broken\.png"):
        classifier([images[0], tmp_path / "broken.png", images[1]], batch_size=3)


def test_a_stalled_server_is_given_up(classifier, monkeypatch):
    import socket

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/image.png"
        with pytest.raises(ImageReadError, match=address):
            classifier(address, timeout=0.1)


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(("top_k", "count"), [(2, 2), (5, 5), (20, 20), (99, 20), (None, 20)])
def test_top_k(classifier, images, expected, top_k, count):
    result = classifier(images[0], top_k=top_k)
    ranked = result.pop("labels")
    assert same([result], expected[:1])
    assert ranked[0] == {"label": result["label"], "score": result["score"]}
    probabilities = [entry["score"] for entry in ranked]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({entry["label"] for entry in ranked}) == len(ranked) == count
    if count == 20:
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert {entry["label"] for entry in ranked} == set(classifier.model.labels)


def test_top_k_in_a_batch(classifier, images):
    results = classifier(images[:5], top_k=3, batch_size=5)
    assert [len(result["labels"]) for result in results] == [3] * 5
    assert same(results, [classifier(image, top_k=3) for image in images[:5]])


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "all"])
def test_bad_top_k(classifier, images, top_k):
    with pytest.raises(ScoreInputError, match=rf"top_k.*positive whole number.*None for all.*{top_k!r}"):
        classifier(images[0], top_k=top_k)


def test_threshold_is_exclusive_and_beats_no_calibration(classifier, images, expected, warned):
    value = expected[0]["ood_score"]
    assert classifier(images[0], threshold=value)["is_ood"] is False
    below = float(np.nextafter(np.float32(value), np.float32(-np.inf)))
    result = classifier(images[0], threshold=below)
    assert result["is_ood"] is True
    assert result["p_value"] is None
    assert warned == []


@pytest.mark.parametrize("threshold", ["0.5", [0.5], float("nan")])
def test_bad_threshold(classifier, images, threshold):
    with pytest.raises(OODCLIPError, match="threshold"):
        classifier(images[0], threshold=threshold)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("score", ["mcm", "energy", "gen", "max_logit", "mcm object", "neglabel object"])
def test_score_for_one_call(classifier, images, expected, score, batch_size):
    options = {"mcm object": ("mcm", {"temperature": 0.1}), "neglabel object": ("neglabel", {"num_groups": 2})}
    name, option = options.get(score, (score, {}))
    chosen = hf_oodclip.get_score(name, **option) if option else name
    found = classifier(images, score=chosen, batch_size=batch_size)
    key = hf_oodclip.get_score(name, **option).key
    wanted = classifier.model.ood_scores(images, [chosen])[key].tolist()
    assert [result["ood_score"] for result in found] == pytest.approx(wanted, abs=1e-5)
    assert [result["ood_score"] for result in found] != [result["ood_score"] for result in expected]
    assert [result["label"] for result in found] == [result["label"] for result in expected]
    assert same(classifier(images[:2]), expected[:2])
    assert classifier.model.score.name == "neglabel"


def test_score_that_needs_negatives_without_any(make_pipeline, pocket, images):
    classifier = make_pipeline(pocket, labels=LABELS)
    with pytest.raises(ScoreInputError, match=r"'neglabel' needs negative_similarity.*negatives="):
        classifier(images[0], score="neglabel")


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [("topk", "top_k"), ("treshold", "threshold"), ("scores", "score"), ("time_out", "timeout")],
)
def test_a_misspelt_option_is_suggested(classifier, make_pipeline, pocket, images, option, suggestion):
    with pytest.raises(UnknownNameError, match=rf"{option}.*Did you mean '{suggestion}'.*Allowed: score, threshold"):
        classifier(images[0], **{option: 1})
    with pytest.raises(UnknownNameError, match=f"Did you mean '{suggestion}'"):
        make_pipeline(pocket, labels=LABELS, **{option: 1})


def test_a_misspelt_score_is_suggested(classifier, images):
    with pytest.raises(UnknownNameError, match="Did you mean 'neglabel'"):
        classifier(images[0], score="neg_label")


# ---------------------------------------------------------------- calibration


def test_before_calibration_one_hint(make_pipeline, images, warned):
    classifier = make_pipeline()
    results = [*classifier(images[:6], batch_size=3), classifier(images[0]), classifier(images[1], top_k=2)]
    assert {(result["p_value"], result["is_ood"]) for result in results} == {(None, None)}
    assert len(warned) == 1
    for part in ("'neglabel'", "model.calibrate", "oodclip calibrate", "threshold="):
        assert part in warned[0]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_after_calibration(make_pipeline, real_images, images, warned, batch_size):
    classifier = make_pipeline()
    calibration = classifier.model.calibrate(real_images["id"], 0.8)
    warned.clear()
    results = classifier(images, batch_size=batch_size)
    ood_scores = torch.tensor([result["ood_score"] for result in results])
    assert [result["is_ood"] for result in results] == calibration.is_ood(ood_scores).tolist()
    assert [result["p_value"] for result in results] == calibration.p_values(ood_scores).tolist()
    # By hand, from the 40 calibration scores.
    for result in results:
        larger = sum(value >= result["ood_score"] for value in calibration.ood_scores.tolist())
        assert result["p_value"] == pytest.approx((1 + larger) / 41)
        assert result["is_ood"] == (result["p_value"] <= 0.2 + 1e-9)
    assert {result["is_ood"] for result in results} == {True, False}
    assert warned == []
    assert json.loads(json.dumps(results)) == results
    # Where both are there, the threshold of the call decides, and the p-value stays.
    accepting = classifier(images, threshold=1e9, batch_size=batch_size)
    assert {result["is_ood"] for result in accepting} == {False}
    assert [result["p_value"] for result in accepting] == [result["p_value"] for result in results]


def test_a_score_that_is_not_the_calibrated_one(make_pipeline, real_images, images, warned):
    classifier = make_pipeline()
    classifier.model.calibrate(real_images["id"])
    classifier.model.calibrate(real_images["id"], score=hf_oodclip.get_score("mcm", temperature=0.5))
    warned.clear()
    for _ in range(2):
        result = classifier(images[0], score="mcm")
        assert (result["p_value"], result["is_ood"]) == (None, None)
    assert len(warned) == 1
    for part in ("'mcm' is not calibrated", "neglabel", "mcm(temperature=0.5)"):
        assert part in warned[0]
    classifier(images[0], score="energy")
    assert len(warned) == 2
    calibrated = classifier(images[0], score=hf_oodclip.get_score("mcm", temperature=0.5))
    assert calibrated["p_value"] is not None and type(calibrated["is_ood"]) is bool
    assert len(warned) == 2


def test_the_text_tower_never_runs_for_an_image(make_pipeline, real_images, images):
    classifier = make_pipeline()
    passes = text_passes(classifier.model)
    classifier.model.calibrate(real_images["id"])
    classifier(images, batch_size=4)
    classifier(images[0], score="energy", top_k=None)
    assert passes == []


# ---------------------------------------------------------------- saving


def saved_pipeline(make_pipeline, real_images, folder):
    classifier = make_pipeline()
    # Not on the images of the tests: rounding may put an image on either side of itself.
    classifier.model.calibrate(real_images["id"][6:])
    classifier.save_pretrained(folder)
    return classifier


def test_a_saved_pipeline_comes_back(make_pipeline, real_images, images, tmp_path):
    classifier = saved_pipeline(make_pipeline, real_images, tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert same(loaded(images), classifier(images))
    assert "custom_pipelines" not in loaded.model.config.to_dict()


def test_a_saved_pipeline_carries_no_code(make_pipeline, real_images, tmp_path):
    # No code of this package is to be run from the Hub.
    saved_pipeline(make_pipeline, real_images, tmp_path)
    assert list(tmp_path.glob("**/*.py")) == []


@pytest.mark.parametrize(
    "order",
    ["import hf_oodclip\nfrom transformers import pipeline", "from transformers import pipeline\nimport hf_oodclip"],
    ids=["hf_oodclip first", "transformers first"],
)
def test_a_saved_pipeline_comes_back_in_another_process(
    make_pipeline, real_images, images, run_python, tmp_path, order
):
    classifier = saved_pipeline(make_pipeline, real_images, tmp_path / "saved")
    images[7].save(tmp_path / "image.png")
    printed = run_python(
        f"{order}\nimport json\n"
        f"print(json.dumps(pipeline({TASK!r}, model={str(tmp_path / 'saved')!r})({str(tmp_path / 'image.png')!r})))"
    )
    assert same([json.loads(printed.splitlines()[-1])], [classifier(images[7])])


def test_the_processor_of_the_pipeline_is_saved(make_pipeline, pocket, pocket_copy, tmp_path):
    (pocket_copy / "preprocessor_config.json").unlink()
    model = hf_oodclip.OODCLIPForImageClassification.from_pretrained(pocket_copy, labels=LABELS)
    other = hf_oodclip.OODCLIPForImageClassification.from_pretrained(pocket).image_processor
    other.image_mean = [0.25, 0.5, 0.75]
    make_pipeline(model, image_processor=other).save_pretrained(tmp_path / "saved")
    loaded = make_pipeline(str(tmp_path / "saved"))
    assert list(loaded.image_processor.image_mean) == [0.25, 0.5, 0.75]
    assert list(loaded.model.image_processor.image_mean) == [0.25, 0.5, 0.75]
