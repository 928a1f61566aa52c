"""Small deterministic inputs for the scores that look at embeddings, in fp64."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_oodclip.scores import ScoreInputs

DIM, NUM_LABELS, NUM_ID, LOGIT_SCALE = 6, 3, 40, 10.0


def waves(rows: int, columns: int, pace: float) -> Tensor:
    """Return numbers in [-1, 1] that look random and are the same everywhere, `[rows, columns]`."""
    grid = torch.arange(1, rows * columns + 1, dtype=torch.float64)
    return torch.sin(grid * grid * pace).reshape(rows, columns)


def label_embeds() -> Tensor:
    """Return label features of length 1, `[NUM_LABELS, DIM]`."""
    return normalize(waves(NUM_LABELS, DIM, 0.37), dim=-1)


def inputs_of(image_embeds: Tensor, logit_scale: float = LOGIT_SCALE) -> ScoreInputs:
    """Return the score inputs of images, compared with `label_embeds`."""
    labels = label_embeds()
    cosines = normalize(image_embeds, dim=-1) @ labels.T
    return ScoreInputs(cosines, image_embeds=image_embeds, label_embeds=labels, logit_scale=logit_scale)


def id_images() -> tuple[ScoreInputs, Tensor]:
    """Return ID training images and their class indices."""
    classes = torch.arange(NUM_ID) % NUM_LABELS
    return inputs_of(waves(NUM_ID, DIM, 0.11) + 2 * label_embeds()[classes]), classes


def new_images() -> ScoreInputs:
    """Return 5 images to judge."""
    return inputs_of(waves(5, DIM, 0.53) + 1)


def edge_cosines() -> dict[str, Tensor]:
    """Return cosines with ties, of a single image with two labels, and without any difference, `[B, N]`."""
    return {
        "tied": torch.tensor(
            [[0.3, 0.3, -0.2], [0.3, 0.1, 0.1], [1.0, 0.0, 0.0], [0.2, 0.2, 0.2]], dtype=torch.float64
        ),
        "tiny": torch.tensor([[0.25, 0.125]], dtype=torch.float64),
        "degenerate": torch.zeros(2, 5, dtype=torch.float64),
    }
