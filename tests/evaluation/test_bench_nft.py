"""The NFT benchmark compares two sides that return the same, and measures what it says."""

import sys

import pytest
import torch
from hf_oodclip.evaluation import bench_nft


@pytest.mark.parametrize("name", bench_nft.SIDES)
def test_both_sides_return_the_same(name):
    problem = bench_nft.Problem(20, 300, 32)
    wanted, found = (side(problem) for side in bench_nft.SIDES[name])
    pairs = zip(wanted, found, strict=True) if isinstance(wanted, tuple) else [(wanted, found)]
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", bench_nft.SIDES)
def test_ours_needs_a_twentieth_of_the_memory(name):
    """Peak resident memory, each side in a process of its own, at the size of the issue."""
    assert bench_nft.bench_memory([name])[name]["times_smaller"] >= 20
