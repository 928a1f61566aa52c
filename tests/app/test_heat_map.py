"""The heat map is the rule it names, changes sign with the score, and follows what blanking the image does."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from hf_oodclip import Score, get_score
from hf_oodclip.app.heat_map import patch_relevance, relevance_picture
from hf_oodclip.scores import ScoreInfo


@pytest.fixture(scope="module")
def model(engine):
    return engine.bank(engine.start).model


@pytest.fixture(scope="module")
def pixels(model, real_images):
    images = [*real_images["id"][:8], *real_images["far"]]
    return model.image_processor(images=images, return_tensors="pt")["pixel_values"]


@dataclass
class Negated(Score):
    """NegLabel with its sign turned."""

    name = "negated"
    needs = ("negative_similarity",)
    info = ScoreInfo("Negated", "", "", 2026, "")

    def compute(self, inputs):
        return -get_score("neglabel").compute(inputs)


@dataclass
class Constant(Score):
    """Says the same of every image."""

    name = "constant"
    info = ScoreInfo("Constant", "", "", 2026, "")

    def compute(self, inputs):
        return torch.zeros(len(inputs.similarity))


def slow_relevance(model, pixel_values, sign):
    """The rule of Chefer et al. in loops over layers, heads and tokens, for sign * neglabel."""
    pixel_values = pixel_values.clone().requires_grad_()
    output = model.clip.vision_model(pixel_values, output_attentions=True)
    embeds = model.clip.visual_projection(output.pooler_output)
    value = sign * get_score("neglabel")(model.score_inputs(image_embeds=embeds)).sum()
    gradients = torch.autograd.grad(value, output.attentions)
    tokens = output.attentions[0].shape[-1]
    relevance = np.eye(tokens)
    for attention, gradient in zip(output.attentions, gradients, strict=True):
        heads = attention[0].detach().double().numpy() * gradient[0].double().numpy()
        passed = np.zeros((tokens, tokens))
        for head in heads:
            for row in range(tokens):
                for column in range(tokens):
                    passed[row, column] += max(0.0, head[row, column]) / len(heads)
        relevance = relevance + passed @ relevance
    return relevance[0, 1:]


def test_it_is_the_rule_in_loops(model, pixels):
    expected = slow_relevance(model, pixels[:1], 1) - slow_relevance(model, pixels[:1], -1)
    found = patch_relevance(model, pixels[:1], get_score("neglabel"))
    assert found.shape == (8, 8)
    assert np.allclose(found.flatten().numpy(), expected / np.abs(expected).max(), atol=1e-4)


def test_it_turns_with_the_score(model, pixels):
    found = patch_relevance(model, pixels[:1], get_score("neglabel"))
    assert torch.allclose(patch_relevance(model, pixels[:1], Negated()), -found, atol=1e-5)
    assert found.abs().max() == 1


def test_what_it_marks_drives_the_score(model, pixels):
    score = get_score("max_logit")
    generator = torch.Generator().manual_seed(0)
    changes = []
    for image in pixels:
        order = patch_relevance(model, image[None], score).flatten().argsort()
        chosen = (order[-16:], order[:16], torch.randperm(64, generator=generator)[:16])
        blanked = image.repeat(4, 1, 1, 1)
        for copy, patches in zip(blanked[1:], chosen, strict=True):
            for patch in patches.tolist():
                row, column = divmod(patch, 8)
                copy[:, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = image.mean((1, 2), keepdim=True)
        with torch.no_grad():
            values = score(model.score_inputs(blanked))
        changes.append(values[1:] - values[0])
    raising, lowering, others = torch.stack(changes).mean(0).tolist()
    # Without what raised the score it falls, without what lowered it it rises, and at random it stays.
    assert raising < others - 0.005 < others + 0.005 < lowering


def test_it_leaves_no_trace_in_the_model(model, pixels):
    before = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with torch.inference_mode():
        patch_relevance(model, pixels[:1], get_score("mcm"))
    assert [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()] == before
    assert not any(required for required, _ in before)


def test_every_score_offered_has_one(engine, model, pixels):
    for key, score in engine.bank(engine.start).scores.items():
        found = patch_relevance(model, pixels[:1], score)
        assert torch.isfinite(found).all(), key
        assert found.abs().max() > 0.99, key


def test_a_score_that_no_patch_moves_has_none(model, pixels):
    assert patch_relevance(model, pixels[:1], Constant()) is None


def test_the_picture_is_red_and_blue_where_it_says():
    relevance = torch.zeros(4, 4)
    relevance[0, 0], relevance[3, 3] = 1, -1
    picture = np.asarray(relevance_picture(Image.new("RGB", (64, 64), (120, 120, 120)), relevance, size=128))
    assert picture.shape == (128, 128, 3)
    red, blue, grey = picture[4, 4].astype(int), picture[-5, -5].astype(int), picture[4, -5]
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 80
    assert len(set(grey.tolist())) == 1


def test_the_engine_draws_it(engine, photos):
    picture = engine.heat_map(engine.start, "neglabel", photos["far"][0])
    assert picture.size == (384, 384)
    red, _, blue = np.asarray(picture, dtype=int).transpose(2, 0, 1)
    assert (np.abs(red - blue) > 20).any()
