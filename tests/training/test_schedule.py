"""Order of the batches and learning rates, against what is worked out by hand."""

import math

import pytest
import torch
from hf_oodclip.training.recipe import Recipe
from hf_oodclip.training.schedule import Plan, private_seed


def joined(batches):
    return [position for batch in batches for position in batch]


def epoch_of(plan, epoch):
    """The positions of all steps of an epoch."""
    first = epoch * plan.steps_per_epoch
    return [plan.positions(step).tolist() for step in range(first, first + plan.steps_per_epoch)]


def test_an_epoch_takes_every_image_once_in_its_own_order():
    plan = Plan(Recipe(batch_size=3, epochs=3), 10)
    assert (plan.steps_per_epoch, plan.num_steps) == (4, 12)
    orders = []
    for epoch in range(3):
        batches = epoch_of(plan, epoch)
        assert [len(batch) for batch in batches] == [3, 3, 3, 1]
        orders.append(joined(batches))
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [plan.epoch_of(step) for step in (0, 3, 4, 11)] == [0, 0, 1, 2]


def test_the_order_depends_on_the_seed_and_the_step_alone():
    def order(seed):
        return epoch_of(Plan(Recipe(batch_size=3, seed=seed), 10), 1)

    expected = order(5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    plan = Plan(Recipe(batch_size=3, seed=5), 10)
    # As a resumed run does: right into the middle, and back.
    assert plan.positions(6).tolist() == expected[2]
    assert plan.positions(0).tolist() != expected[0]
    assert epoch_of(plan, 1) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert order(6) != expected


def test_private_seeds_differ_by_every_part():
    every = ((0, "order", 0), (0, "order", 1), (1, "order", 0), (0, "step", 0), (0,))
    seeds = [private_seed(*parts) for parts in every]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert private_seed(0, "order", 0) == seeds[0]


@pytest.mark.parametrize(
    ("images", "share", "steps"),
    [(4000, 0.1, 401), (100, 0.29, 30), (80, 0.1, 9), (5, 0.1, 1), (10, 0.95, 10), (10, 0.999, 10), (10, 1.0, 10)],
)
def test_a_share_of_the_batches_is_floored_and_one_added(images, share, steps):
    # As KR-NFT's code has it, floor(len(loader) / 10) + 1: 401 of 4,000, and 1,203 in three epochs.
    plan = Plan(Recipe(epoch_fraction=share, batch_size=1, epochs=3), images)
    assert (plan.steps_per_epoch, plan.num_steps) == (steps, 3 * steps)
    taken = joined(epoch_of(plan, 0))
    assert len(set(taken)) == steps
    assert (sorted(taken) != list(range(steps))) == (1 < steps < images)


def test_learning_rates_by_hand():
    constant = Plan(Recipe(learning_rate=0.5, epochs=2, batch_size=1), 3)
    assert [constant.learning_rate(step) for step in range(6)] == [0.5] * 6

    options = {"learning_rate": 1.0, "warmup_learning_rate": 0.01, "final_learning_rate": 0.2, "batch_size": 1}
    cosine = Plan(Recipe(schedule="cosine", warmup_epochs=1, epochs=5, **options), 2)
    # Two steps of warm-up, then eight eighths of half a cosine from 1 to 0.2.
    by_hand = [0.01, 0.01] + [0.2 + 0.8 * (1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)]
    assert [cosine.learning_rate(step) for step in range(10)] == pytest.approx(by_hand, abs=1e-15)
    assert cosine.learning_rate(2) == 1.0
    assert cosine.learning_rate(6) == pytest.approx(0.6)
    assert cosine.learning_rate(10) == pytest.approx(0.2)

    only_warmup = Plan(Recipe(schedule="cosine", warmup_epochs=9, epochs=1, **options), 2)
    assert [only_warmup.learning_rate(step) for step in range(2)] == [0.01, 0.01]
    assert Plan(Recipe(epochs=0), 5).num_steps == 0
