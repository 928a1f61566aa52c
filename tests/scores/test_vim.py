"""ViM: `a ||R^T f|| - logsumexp(z)`."""

import math

import numpy as np
import pytest
import torch
from post_hoc_inputs import DIM, LOGIT_SCALE, id_images, inputs_of, label_embeds, new_images, waves

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import get_score


def slow_vim(seen: np.ndarray, images: np.ndarray, dim: int) -> list[float]:
    """Return the score from the singular vectors of the ID features and `LOGIT_SCALE * f @ labels.T`."""
    head = LOGIT_SCALE * label_embeds().numpy()
    _, _, directions = np.linalg.svd(seen)
    rest = directions[dim:]
    factor = (seen @ head.T).max(1).mean() / np.linalg.norm(seen @ rest.T, axis=1).mean()
    return [
        factor * float(np.linalg.norm(rest @ image)) - math.log(sum(math.exp(logit) for logit in head @ image))
        for image in images
    ]


@pytest.mark.parametrize("space", ["raw", "normalized"])
@pytest.mark.parametrize("dim", [1, 4, 5])
def test_the_formula(dim: int, space: str) -> None:
    seen, _ = id_images()
    images = new_images()
    arrays = [inputs.image_embeds.numpy() for inputs in (seen, images)]
    if space == "normalized":
        arrays = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in arrays]
    computed = get_score("vim", dim=dim, feature_space=space).fit(seen).compute(images)
    torch.testing.assert_close(computed, torch.tensor(slow_vim(*arrays, dim), dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_virtual_logit_is_as_large_as_the_largest_on_id_images() -> None:
    seen, _ = id_images()
    fitted = get_score("vim", dim=3).fit(seen)
    virtual = fitted.compute(seen) + torch.logsumexp(LOGIT_SCALE * seen.image_embeds @ label_embeds().T, 1)
    largest = (LOGIT_SCALE * seen.image_embeds @ label_embeds().T).amax(1)
    assert float(virtual.mean()) == pytest.approx(float(largest.mean()), rel=1e-9)


@pytest.mark.parametrize("dim", [6, 256])
def test_a_principal_space_as_wide_as_the_embedding_is_refused(dim: int) -> None:
    with pytest.raises(ScoreInputError, match=rf"dim={dim} leaves nothing of embeddings of width 6.*dim=3"):
        get_score("vim", dim=dim).fit(id_images()[0])


def test_fewer_images_than_dimensions(warned: list[str]) -> None:
    with pytest.raises(ScoreInputError, match="4 ID images cannot span a principal space of 4"):
        get_score("vim", dim=4).fit(inputs_of(waves(4, DIM, 0.11)))
    assert warned == []
    get_score("vim", dim=2).fit(inputs_of(waves(4, DIM, 0.11)))
    assert ["4 ID images do not span the 6 dimensions" in text for text in warned] == [True]


def test_id_images_without_any_residual_are_refused() -> None:
    flat = waves(20, DIM, 0.11)
    flat[:, 2:] = 0
    with pytest.raises(ScoreInputError, match="leave nothing outside 2 dimensions"):
        get_score("vim", dim=2).fit(inputs_of(flat))


def test_no_principal_space_is_refused() -> None:
    with pytest.raises(ScoreInputError, match="dim must be at least 1"):
        get_score("vim", dim=0)
