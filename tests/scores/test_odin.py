"""ODIN: softmax probability after a step of the pixels towards the predicted label."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slow_reference import random_cosines, softmax
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import ScoreInputs, get_score

STD = [0.5, 0.25, 0.125]


def linear_model(weight: Tensor, labels: Tensor, logit_scale: float = 100.0) -> Any:
    """Return a model whose image embeddings are linear in the pixels."""
    clip = SimpleNamespace(
        get_image_features=lambda pixel_values: SimpleNamespace(pooler_output=pixel_values.flatten(1) @ weight)
    )
    return SimpleNamespace(
        clip=clip,
        cosines=lambda embeds: (normalize(embeds, dim=-1) @ labels.T, None),
        logit_scale=logit_scale,
        image_processor=SimpleNamespace(image_std=STD),
    )


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, the map to embeddings, and label features."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    return pixels, weight, normalize(torch.randn(3, 5, generator=generator, dtype=torch.float64), dim=-1)


def test_the_step_is_against_the_gradient_by_finite_differences(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels, weight, labels = parts
    model = linear_model(weight, labels)
    score = get_score("odin", logit_temperature=20.0, epsilon=0.01)
    step = score.perturb(model, pixels) - pixels

    def loss(image: Tensor, predicted: Tensor) -> Tensor:
        logits = 100 * normalize(image.flatten(1) @ weight, dim=-1) @ labels.T
        return cross_entropy(logits / 20, predicted)

    for row in range(4):
        image = pixels[row : row + 1]
        predicted = (normalize(image.flatten(1) @ weight, dim=-1) @ labels.T).argmax(1)
        for place in range(12):
            nudge = torch.zeros(12, dtype=torch.float64)
            nudge[place] = 1e-6
            nudge = nudge.reshape(1, 3, 2, 2)
            slope = loss(image + nudge, predicted) - loss(image - nudge, predicted)
            expected = (-0.01 if slope > 0 else 0.01) / STD[place // 4]
            assert step[row].flatten()[place].item() == pytest.approx(expected)


def test_the_formula_after_the_step() -> None:
    changed = random_cosines(8, 5).double()
    expected = [-max(softmax([40.0 / 1000 * cosine for cosine in row])) for row in changed.tolist()]
    computed = get_score("odin").compute(ScoreInputs(changed, perturbed_similarity=changed, logit_scale=40.0))
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_step_makes_the_prediction_surer(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels, weight, labels = parts
    model = linear_model(weight, labels)
    score = get_score("odin", logit_temperature=100.0, epsilon=0.001)

    def scores_of(images: Tensor) -> Tensor:
        cosines = model.cosines(images.flatten(1) @ weight)[0]
        return score.compute(ScoreInputs(cosines, perturbed_similarity=cosines))

    assert (scores_of(score.perturb(model, pixels)) < scores_of(pixels)).all()
    assert torch.equal(get_score("odin", epsilon=0.0).perturb(model, pixels), pixels)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_without_gradients_around_it(context: Any, parts: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels, weight, labels = parts
    weight.requires_grad_()
    expected = get_score("odin").perturb(linear_model(weight, labels), pixels)
    with context():
        found = get_score("odin").perturb(linear_model(weight, labels), pixels.clone())
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert weight.grad is None


def test_where_the_gradient_is_zero_its_sign_is_one(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    pixels, weight, labels = parts
    weight[0] = 0
    step = get_score("odin", epsilon=0.1).perturb(linear_model(weight, labels), pixels) - pixels
    assert step[:, 0, 0, 0].tolist() == pytest.approx([-0.2] * 4)


def test_defaults_are_those_of_the_paper() -> None:
    assert get_score("odin").options == {"logit_temperature": 1000.0, "epsilon": 0.0014}


@pytest.mark.parametrize("bad", [{"logit_temperature": 0}, {"epsilon": -0.1}, {"epsilon": float("nan")}])
def test_options_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ScoreInputError, match="logit_temperature must be positive and epsilon at least 0"):
        get_score("odin", **bad)
