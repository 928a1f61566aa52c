"""Fixtures of the adapter tests: every variant, a fresh tiny model, image embeddings."""

import pytest
import torch

from hf_oodclip import NFTConfig
from hf_oodclip.adapters.nft.config import VARIANTS

CASES = [(variant, conditional) for variant in VARIANTS for conditional in (True, False)]
CASE_IDS = [f"{variant}-{'conditional' if conditional else 'fixed'}" for variant, conditional in CASES]


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=CASE_IDS)


@pytest.fixture
def config(case):
    """The config of one variant, with and without image conditioning."""
    return NFTConfig(variant=case[0], conditional=case[1], hidden_size=4, residual_scale=0.5)


@pytest.fixture
def tiny(make_model, tiny_clip):
    """A fresh tiny model: 20 labels, 8 negatives, embeddings of width 24."""
    return make_model(tiny_clip)


@pytest.fixture
def image_embeds():
    """Six image embeddings for the tiny model."""
    return torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
