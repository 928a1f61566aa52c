"""Mahalanobis: squared distance to the nearest class under the covariance all classes share."""

import numpy as np
import pytest
import torch
from post_hoc_inputs import DIM, id_images, inputs_of, new_images, waves
from sklearn.covariance import EmpiricalCovariance, ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from hf_oodclip.errors import ScoreInputError, UnknownNameError
from hf_oodclip.scores import get_score
from hf_oodclip.scores.gaussian import whitening


def slow_mahalanobis(seen: np.ndarray, classes: np.ndarray, images: np.ndarray, ridge: float = 1e-6) -> list[float]:
    """Return the score by the formula, class by class and image by image."""
    means = {c: seen[classes == c].mean(0) for c in set(classes.tolist())}
    centred = np.stack([row - means[c] for row, c in zip(seen, classes.tolist(), strict=True)])
    sigma = sum(np.outer(row, row) for row in centred) / len(seen)
    sigma = sigma + np.eye(len(sigma)) * ridge * np.trace(sigma) / len(sigma)
    inverse = np.linalg.inv(sigma)
    return [min(float((f - mean) @ inverse @ (f - mean)) for mean in means.values()) for f in images]


@pytest.mark.parametrize("space", ["raw", "normalized"])
def test_the_formula(space: str) -> None:
    seen, classes = id_images()
    images = new_images()
    arrays = [inputs.image_embeds.numpy() for inputs in (seen, images)]
    if space == "normalized":
        arrays = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in arrays]
    expected = slow_mahalanobis(arrays[0], classes.numpy(), arrays[1])
    computed = get_score("mahalanobis", feature_space=space).fit(seen, classes).compute(images)
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_scikit_learn_agrees() -> None:
    seen, classes = id_images()
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True)
    lda.fit(seen.image_embeds.numpy(), classes.numpy())
    means = torch.tensor(lda.means_)
    centred = (seen.image_embeds - means[classes]).numpy()
    model = EmpiricalCovariance(assume_centered=True).fit(centred)
    np.testing.assert_allclose(model.covariance_, lda.covariance_)
    images = new_images()
    distances = [model.mahalanobis((images.image_embeds - mean).numpy()) for mean in means]
    computed = get_score("mahalanobis").fit(seen, classes).compute(images)
    torch.testing.assert_close(computed, torch.tensor(np.min(distances, axis=0)), rtol=2e-5, atol=0)


def test_hand_values() -> None:
    corners = torch.zeros(4, DIM, dtype=torch.float64)
    corners[:, :2] = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    # Variance 1 in two dimensions, almost none in the others: the identity there, and the ridge of 2/6 * 1e-6.
    sigma_inverse = whitening(torch.cat([corners] * 3), 1, "mahalanobis")
    along = torch.tensor([3.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    assert float((sigma_inverse @ along).square().sum()) == pytest.approx(9, rel=1e-5)


def test_too_few_images_are_shrunk_as_scikit_learn_does_with_a_warning(warned: list[str]) -> None:
    few = waves(5, DIM, 0.11)
    centred = few - few.mean(0)
    covariance, shrinkage = ledoit_wolf(centred.numpy(), assume_centered=True)
    assert 0 < shrinkage < 1
    covariance += np.eye(DIM) * 1e-6 * np.trace(covariance) / DIM
    matrix = whitening(centred, 1, "mahalanobis")
    np.testing.assert_allclose((matrix.T @ matrix).numpy(), np.linalg.inv(covariance), rtol=1e-7)
    assert [f"shrunk by {shrinkage:.3f}" in text and "5 images" in text for text in warned] == [True]
    # One image more than dimensions and means: full rank, no shrinkage.
    whitening(waves(7, DIM, 0.11), 1, "mahalanobis")
    assert len(warned) == 1


def test_a_class_without_images_is_left_out() -> None:
    seen, classes = id_images()
    seen, classes = inputs_of(seen.image_embeds[classes != 1]), classes[classes != 1]
    fitted = get_score("mahalanobis").fit(seen, classes)
    assert fitted.state_dict()["class_means"].shape == (2, DIM)
    expected = slow_mahalanobis(seen.image_embeds.numpy(), classes.numpy(), new_images().image_embeds.numpy())
    torch.testing.assert_close(fitted.compute(new_images()), torch.tensor(expected, dtype=torch.float64))


def test_the_units_of_the_embedding_do_not_count() -> None:
    seen, classes = id_images()
    fitted = get_score("mahalanobis").fit(seen, classes)
    scaled = get_score("mahalanobis").fit(inputs_of(seen.image_embeds * 1000), classes)
    torch.testing.assert_close(
        scaled.compute(inputs_of(new_images().image_embeds * 1000)), fitted.compute(new_images())
    )


def test_fp32_is_close_to_fp64_far_from_the_origin() -> None:
    seen, classes = id_images()
    offset = torch.full((DIM,), 100.0, dtype=torch.float64)
    exact = get_score("mahalanobis").fit(seen, classes).compute(new_images())
    far = inputs_of((seen.image_embeds + offset).float().double())
    fitted = get_score("mahalanobis").fit(far, classes)
    fitted.load_state_dict({name: value.float() for name, value in fitted.state_dict().items()})
    images = inputs_of((new_images().image_embeds + offset).float().double())
    single = fitted(type(images)(images.similarity.float(), image_embeds=images.image_embeds.float()))
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-3)


def test_images_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ScoreInputError, match="do not vary"):
        get_score("mahalanobis").fit(inputs_of(torch.ones(9, DIM, dtype=torch.float64)), [0] * 9)


def test_an_unknown_space_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'normalized'"):
        get_score("mahalanobis", feature_space="normalised")
