"""KNN: `2 - 2 cos` to the k-th nearest ID image."""

import math

import pytest
import torch
from post_hoc_inputs import id_images, inputs_of, new_images, waves

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import get_score


def slow_knn(image: list[float], bank: list[list[float]], k: int) -> float:
    """Return the k-th smallest squared distance between vectors of length 1."""

    def unit(vector: list[float]) -> list[float]:
        length = math.sqrt(math.fsum(value * value for value in vector))
        return [value / length for value in vector]

    own = unit(image)
    return sorted(math.fsum((a - b) ** 2 for a, b in zip(own, unit(other), strict=True)) for other in bank)[k - 1]


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_kth_smallest_distance(k: int) -> None:
    seen, images = id_images()[0].image_embeds, new_images()
    expected = [slow_knn(image, seen.tolist(), k) for image in images.image_embeds.tolist()]
    computed = get_score("knn", k=k).fit(inputs_of(seen)).compute(images)
    torch.testing.assert_close(computed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_hand_values() -> None:
    seen = torch.eye(6, dtype=torch.float64)[:3] * 5
    images = torch.tensor([[2.0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [-1, 0, 0, 0, 0, 0]], dtype=torch.float64)
    fitted = get_score("knn", k=1).fit(inputs_of(seen))
    assert fitted.compute(inputs_of(images)).tolist() == [0, 2, 2]
    # cos = -1 to the farthest of three.
    assert get_score("knn", k=3).fit(inputs_of(seen)).compute(inputs_of(images)).tolist() == [2, 2, 4]


def test_the_length_of_embeddings_does_not_count() -> None:
    seen, images = id_images()[0].image_embeds, new_images().image_embeds
    fitted = get_score("knn", k=3).fit(inputs_of(seen))
    longer = get_score("knn", k=3).fit(inputs_of(seen * torch.linspace(1, 9, len(seen)).double()[:, None]))
    torch.testing.assert_close(longer.compute(inputs_of(images * 7)), fitted.compute(inputs_of(images)))


def test_too_few_id_images_lower_k_with_a_warning(warned: list[str]) -> None:
    seen = waves(10, 6, 0.11)
    lowered = get_score("knn").fit(inputs_of(seen))
    assert ["k=50 but only 10 ID images" in text for text in warned] == [True]
    assert torch.equal(
        lowered.compute(new_images()), get_score("knn", k=10).fit(inputs_of(seen)).compute(new_images())
    )
    assert len(warned) == 1


@pytest.mark.parametrize("k", [0, -1])
def test_no_neighbour_is_refused(k: int) -> None:
    with pytest.raises(ScoreInputError, match="k must be at least 1"):
        get_score("knn", k=k)
