"""Shares of ranks, their order, and seeds."""

from __future__ import annotations

import re

import pytest
import torch

from semckd_kernels.training.data.sampling import Share, derived_seed


@pytest.mark.parametrize(("count", "world_size"), [(12, 1), (12, 3), (13, 3), (14, 3), (5, 4)])
def test_shares_of_an_epoch(count: int, world_size: int) -> None:
    shares = [Share(batch_size=2, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    orders = [share.train_order(count, epoch=1) for share in shares]
    # equal lengths, all samples, and as few of them twice as that takes
    assert {len(order) for order in orders} == {-(-count // world_size)}
    seen = torch.cat(orders).bincount(minlength=count)
    assert seen.min() == 1
    assert seen.max() <= 2
    assert (seen == 2).sum() == -count % world_size
    assert {share.train_steps(count) for share in shares} == {-(-len(orders[0]) // 2)}


@pytest.mark.parametrize(("count", "world_size"), [(12, 3), (13, 3), (2, 4)])
def test_test_samples_come_exactly_once(count: int, world_size: int) -> None:
    orders = [Share(2, rank=rank, world_size=world_size).test_order(count) for rank in range(world_size)]
    assert torch.equal(torch.cat(orders).sort().values, torch.arange(count))
    lengths = [len(order) for order in orders]
    assert max(lengths) - min(lengths) <= 1


def test_a_step_of_all_ranks_is_one_step_of_a_single_one() -> None:
    alone = Share(batch_size=8, seed=3).train_order(32, 0).split(8)
    ranks = [Share(batch_size=4, seed=3, rank=rank, world_size=2).train_order(32, 0).split(4) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert set(batch.tolist()) == {n for rank in ranks for n in rank[step].tolist()}


def test_order_follows_seed_and_epoch() -> None:
    first = Share(2, seed=3).train_order(100, 0)
    assert torch.equal(first, Share(2, seed=3).train_order(100, 0))
    assert not torch.equal(first, Share(2, seed=3).train_order(100, 1))
    assert not torch.equal(first, Share(2, seed=4).train_order(100, 0))


def test_derived_seeds() -> None:
    parts = [(a, name, b) for a in range(20) for name in ("order", "augment") for b in range(20)]
    seeds = {derived_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # 12, 3 is not 1, 23
    assert derived_seed(12, 3) != derived_seed(1, 23)
    # a run of today resumes tomorrow
    assert derived_seed(0, "order", 0) == 3_471_081_512_423_777_433


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"batch_size": 1, "world_size": 0}, "world_size must be at least 1, got 0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank must be from 0 to world_size - 1 = 1, got 2"),
        ({"batch_size": 1, "rank": -1}, "rank must be from 0 to world_size - 1 = 0, got -1"),
    ],
    ids=str,
)
def test_bad_shares(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Share(**arguments)


def test_a_step_must_fit_the_training_set() -> None:
    Share(10).check_fits(10)
    Share(5, world_size=2).check_fits(10)
    with pytest.raises(ValueError, match=r"^batch_size must be at most 10, the number of training samples, got 11$"):
        Share(11).check_fits(10)
    with pytest.raises(ValueError, match=r"^batch_size x world_size = 6 x 2 must be at most 10, the number of"):
        Share(6, world_size=2).check_fits(10)
