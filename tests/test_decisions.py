"""Scores that need more than cosines, on a real model: fitted, from pixels, from patches, with a memory."""

import pytest
import torch
from torch.nn.functional import normalize
from transformers import pipeline

import hf_oodclip
from hf_oodclip import OODCLIPForImageClassification, encoders, get_score
from hf_oodclip.errors import ScoreInputError
from hf_oodclip.image_features import iterate_image_embeds
from hf_oodclip.metrics import auroc

FITTED = {"knn": {"k": 10}, "mahalanobis": {}, "rmds": {}, "vim": {"dim": 20}, "react": {}}
FROM_PIXELS = ("gl_mcm", "odin")


@pytest.fixture
def fitted(make_model, real_images):
    """Makes a model with a score fitted to the 40 real ID images."""

    def fit(name, **model_options):
        model = make_model(**model_options)
        model.fit_score(real_images["id"], torch.arange(40) // 2, score=get_score(name, **FITTED[name]))
        return model

    return fit


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("name", FITTED)
def test_fit_score_is_fit_on_the_score_inputs(fitted, name, pixel_values, real_images):
    model = fitted(name)
    assert model.score.name == name
    images = model.image_processor(images=real_images["id"], return_tensors="pt")["pixel_values"]
    by_hand = get_score(name, **FITTED[name])
    with torch.no_grad():
        by_hand.fit(model.score_inputs(images, score=by_hand), torch.arange(40) // 2)
        expected = by_hand(model.score_inputs(pixel_values))
        found = model(pixel_values).ood_score
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.ood_scores(pixel_values)[model.score.key], found)


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_score_is_saved_with_the_model(fitted, name, pixel_values, tmp_path):
    model = fitted(name)
    model.calibrate(pixel_values.repeat(2, 1, 1, 1), 0.9)
    expected = model.ood_scores(pixel_values)
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.score == model.score
    found = loaded.ood_scores(pixel_values)
    assert found.keys() == expected.keys()
    assert torch.equal(found[loaded.score.key], expected[loaded.score.key])
    assert loaded.calibration.threshold == model.calibration.threshold


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_score_works_in_bf16(fitted, name, real_images):
    model = fitted(name)
    images = [*real_images["near"], *real_images["far"]]
    exact = model.ood_scores(images)[model.score.key]
    halves = model.to(torch.bfloat16).ood_scores(images)[model.score.key]
    assert halves.dtype == torch.float32
    # The vision tower rounds, the score does not.
    assert (halves - exact).abs().max() < 0.1 * (exact.max() - exact.min())


@pytest.mark.parametrize(("name", "options"), [("mahalanobis", {}), ("vim", {"dim": 128})])
def test_fitted_to_half_the_images_it_tells_the_other_half_from_textures(
    make_model, id_dataset, real_images, name, options
):
    model = make_model()
    model.fit_score(id_dataset.select(range(0, 800, 2)), id_dataset["label"][::2], score=get_score(name, **options))
    own = model.ood_scores(id_dataset.select(range(1, 800, 8)))[model.score.key]
    far = model.ood_scores(real_images["far"])[model.score.key]
    assert auroc(own, far) > 0.7


def test_other_labels_drop_the_fit_with_a_warning(fitted, pixel_values, warned):
    model = fitted("mahalanobis")
    model.set_labels(model.labels[:5])
    assert [text for text in warned if "fitted" in text] == [
        "The labels changed, so what the score was fitted to was dropped: call fit_score again."
    ]
    assert model.score.name == "mahalanobis"
    assert not any("score_state" in name for name in model.state_dict())
    with pytest.raises(ScoreInputError, match=r"'mahalanobis' is not fitted: call model\.fit_score"):
        model(pixel_values)
    model.fit_score(pixel_values, [0, 1, 2, 3] * 4)
    assert torch.isfinite(model(pixel_values).ood_score).all()


def test_a_model_saved_before_fitting_can_be_fitted_after_loading(make_model, pixel_values, tmp_path):
    model = make_model(score="knn")
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(ScoreInputError, match="not fitted"):
        loaded(pixel_values)
    returned = loaded.fit_score(pixel_values)
    assert returned == loaded.score
    assert torch.isfinite(loaded(pixel_values).ood_score).all()


def test_fitting_again_replaces_the_fit_and_leaves_the_given_score_alone(fitted, pixel_values):
    model = fitted("knn")
    before = model.score
    bank = before.state_dict()["bank"].clone()
    model.fit_score(pixel_values, score=before)
    assert torch.equal(before.state_dict()["bank"], bank)
    assert len(model.score.state_dict()["bank"]) == 16


def test_fit_score_refuses_what_it_cannot_do(shared_model, pixel_values):
    with pytest.raises(
        ScoreInputError, match=r"'neglabel' needs no fit. Those that do: knn, mahalanobis, react, rmds"
    ):
        shared_model.fit_score(pixel_values)
    with pytest.raises(ScoreInputError, match="given no images"):
        shared_model.fit_score([], score="knn")
    with pytest.raises(ScoreInputError, match="fitted by class: give labels"):
        shared_model.fit_score(pixel_values, score="rmds")
    assert shared_model.score.name == "neglabel"


# ---------------------------------------------------------------- patches and pixels


def test_patch_similarity_is_that_of_the_patch_embeddings(make_model, pixel_values):
    model = make_model(score="gl_mcm")
    with torch.no_grad():
        found = model.score_inputs(pixel_values)
        patches = normalize(encoders.encode_patches(model.clip, pixel_values), dim=-1)
    torch.testing.assert_close(found.patch_similarity, patches @ model.text_bank.label_embeds.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FROM_PIXELS)
def test_every_way_from_pixels_gives_the_same(make_model, name, pixel_values, real_images):
    model = make_model(score=name)
    expected = model.ood_scores(pixel_values)[name]
    classifier = pipeline("ood-image-classification", model=model, image_processor=model.image_processor)
    with torch.no_grad():
        embeds, _ = encoders.encode_images(model.clip, pixel_values)
        ways = {
            "forward": model(pixel_values).ood_score,
            "score inputs": model.score(model.score_inputs(pixel_values)),
            "embeddings besides": model.score(model.score_inputs(pixel_values, embeds)),
            "another in use": make_model().ood_scores(pixel_values, [name, "mcm"], batch_size=5)[name],
            "pipeline": torch.tensor([one["ood_score"] for one in classifier(real_images["id"][:16])]),
        }
    for way, found in ways.items():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("name", FROM_PIXELS)
def test_stored_embeddings_are_not_enough(make_model, name, pixel_values):
    model = make_model(score=name)
    embeds = torch.cat(list(iterate_image_embeds(model, pixel_values)))
    with pytest.raises(ScoreInputError, match=rf"'{name}' needs \w+, which is missing: stored image embeddings"):
        model.score(model.score_inputs(image_embeds=embeds))


def test_odin_changes_the_score_and_neither_label_nor_gradients(make_model, pixel_values):
    plain, model = make_model(), make_model()
    model.set_score("odin", epsilon=0.02, logit_temperature=100.0)
    expected, found = plain(pixel_values), model(pixel_values)
    assert torch.equal(found.logits, expected.logits)
    unchanged = get_score("odin", epsilon=0.0, logit_temperature=100.0)
    # Surer of whatever it predicts.
    assert (found.ood_score < plain.ood_scores(pixel_values, [unchanged])[unchanged.key]).all()
    assert all(weight.grad is None for weight in model.parameters())


def test_two_odins_have_a_step_each(shared_model, pixel_values):
    chosen = [get_score("odin", epsilon=epsilon) for epsilon in (0.0, 0.01)]
    found = shared_model.ood_scores(pixel_values, chosen)
    alone = [shared_model.ood_scores(pixel_values, [score])[score.key] for score in chosen]
    assert torch.equal(torch.stack(list(found.values())), torch.stack(alone))
    assert (alone[0] > alone[1]).all()


def test_hidden_states_come_only_when_asked_for(make_model, pixel_values):
    model = make_model(score="gl_mcm")
    assert model(pixel_values).hidden_states is None
    assert model(pixel_values, output_hidden_states=True).hidden_states is not None


def test_neither_pixels_nor_embeddings_is_refused(shared_model):
    with pytest.raises(ScoreInputError, match="pixel_values or image_embeds"):
        shared_model.score_inputs()


# ---------------------------------------------------------------- memory


def test_the_score_in_use_remembers_until_reset(make_model, pixel_values):
    model = make_model(score=get_score("adaneg", gap=0.0, temperature=1.0))
    first = model(pixel_values).ood_score
    assert model.score.num_remembered > 0
    assert (model(pixel_values).ood_score - first).abs().max() > 1e-4
    model.score.reset()
    torch.testing.assert_close(model(pixel_values).ood_score, first)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.set_labels(model.labels),
        lambda model: model.set_score(get_score("adaneg", gap=0.0)),
        lambda model: (model.set_score("mcm"), model.set_score("adaneg")),
    ],
    ids=["labels", "score", "another score"],
)
def test_other_labels_or_another_score_forget_the_images(make_model, change, pixel_values, warned):
    model = make_model(score=get_score("adaneg", gap=0.0))
    model(pixel_values)
    change(model)
    assert model.score.num_remembered == 0
    assert warned == []


def test_the_images_remembered_are_not_saved(make_model, pixel_values, tmp_path):
    model = make_model(score=get_score("adaneg", gap=0.0))
    fresh = model(pixel_values).ood_score
    model.save_pretrained(tmp_path)
    loaded = OODCLIPForImageClassification.from_pretrained(tmp_path)
    assert loaded.score == model.score
    assert loaded.score.num_remembered == 0
    torch.testing.assert_close(loaded(pixel_values).ood_score, fresh)


def test_a_score_asked_for_by_name_starts_with_an_empty_memory(make_model, pixel_values):
    model = make_model()
    first = model.ood_scores(pixel_values, ["adaneg"])["adaneg"]
    assert torch.equal(model.ood_scores(pixel_values, ["adaneg"])["adaneg"], first)


# ---------------------------------------------------------------- texts of their own


def test_clipn_and_zoc_take_their_texts_by_replace(shared_model, pixel_values):
    from dataclasses import replace

    encoder = shared_model.text_encoder()
    with torch.no_grad():
        inputs = shared_model.score_inputs(pixel_values)
        images = normalize(inputs.image_embeds, dim=-1)
        denials = images @ encoder.embed(shared_model.labels, "a photo without a {}").T
        names = images @ encoder.embed(["gravel", "fog"]).T
    clipn = get_score("clipn")(replace(inputs, no_similarity=denials))
    zoc = get_score("zoc")(replace(inputs, candidate_similarity=names))
    assert min(len(clipn.unique()), len(zoc.unique())) >= 8
    for name, field in (("clipn", "no_similarity"), ("zoc", "candidate_similarity")):
        with pytest.raises(ScoreInputError, match=rf"needs {field}.*dataclasses.replace\(inputs, {field}="):
            shared_model.ood_scores(pixel_values, [name])


def test_all_scores_are_listed():
    assert {*FITTED, *FROM_PIXELS, "ash", "eoe", "zoc", "clipn", "adaneg", "mcm"} <= set(hf_oodclip.list_scores())
