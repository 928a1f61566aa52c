"""RMDS: Mahalanobis distance to the nearest class less that to all images together."""

import numpy as np
import pytest
import torch
from post_hoc_inputs import DIM, id_images, inputs_of, new_images
from test_mahalanobis import slow_mahalanobis

from hf_oodclip.errors import ScoreInputError
from hf_oodclip.scores import get_score


@pytest.mark.parametrize("space", ["raw", "normalized"])
def test_the_formula(space: str) -> None:
    seen, classes = id_images()
    images = new_images()
    arrays = [inputs.image_embeds.numpy() for inputs in (seen, images)]
    if space == "normalized":
        arrays = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in arrays]
    by_class = slow_mahalanobis(arrays[0], classes.numpy(), arrays[1])
    together = slow_mahalanobis(arrays[0], np.zeros(len(classes)), arrays[1])
    computed = get_score("rmds", feature_space=space).fit(seen, classes).compute(images)
    torch.testing.assert_close(computed, torch.tensor(np.subtract(by_class, together)), rtol=1e-9, atol=1e-9)


def test_what_is_unusual_for_every_class_cancels_out() -> None:
    seen, classes = id_images()
    embeds = seen.image_embeds.clone()
    # A direction in which the classes do not differ, and images neither.
    embeds[:, -1] = 0.1 * torch.sin(torch.arange(len(embeds)).double())
    seen = inputs_of(embeds)
    image = embeds[:1].clone()
    blurred = image.clone()
    blurred[:, -1] += 2.0
    change = {
        name: float(torch.diff(get_score(name).fit(seen, classes).compute(inputs_of(torch.cat([image, blurred])))))
        for name in ("mahalanobis", "rmds")
    }
    assert change["mahalanobis"] > 100
    assert abs(change["rmds"]) < 0.2 * change["mahalanobis"]


def test_one_class_is_refused() -> None:
    seen, _ = id_images()
    with pytest.raises(ScoreInputError, match=r"'rmds'.*at least two, or use mahalanobis"):
        get_score("rmds").fit(seen, [2] * len(seen.similarity))


def test_both_gaussians_are_kept() -> None:
    state = get_score("rmds").fit(*id_images()).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {
        "class_means": (3, DIM),
        "whitening": (DIM, DIM),
        "overall_mean": (1, DIM),
        "overall_whitening": (DIM, DIM),
    }
