"""An epoch's order is a random permutation, computed by position."""

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from vidtok_plugin.training.permutation import permuted
from vidtok_plugin.training.sampler import BLOCK, EpochSampler


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64, 65, 1000, 2**17 + 1])
def test_each_index_comes_once(size: int) -> None:
    assert np.array_equal(np.sort(permuted(range(size), size, seed=[3, 1])), np.arange(size))


def test_positions_are_independent_of_each_other() -> None:
    whole = permuted(range(1000), 1000, seed=[0, 5])
    assert np.array_equal(permuted(range(3, 1000, 7), 1000, seed=[0, 5]), whole[3::7])


def test_all_orders_are_equally_likely() -> None:
    """Chi-squared over the 24 orders of 4 samples: 23 on average, above 60 once in 30,000 times."""
    counts = Counter(tuple(permuted(range(4), 4, seed=[0, epoch]).tolist()) for epoch in range(2400))
    assert sum((counts[order] - 100) ** 2 / 100 for order in permutations(range(4))) < 60


@pytest.mark.parametrize("size", [100, 1000])
def test_any_index_comes_at_any_position(size: int) -> None:
    """Indices in tenths by positions in tenths, over 100 epochs: chi-squared with 81 degrees of freedom."""
    counts = np.zeros((10, 10))
    for epoch in range(100):
        order = permuted(range(size), size, seed=[1, epoch])
        np.add.at(counts, (np.arange(size) * 10 // size, order * 10 // size), 1)
    expected = size  # 100 epochs of size / 100 each
    assert ((counts - expected) ** 2 / expected).sum() < 140  # once in 20,000 times


def test_neighbors_in_an_order_are_no_neighbors_in_the_data() -> None:
    order = permuted(range(10_000), 10_000, seed=[2, 0])
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).mean() < 0.002  # 0.0002 at random


def test_an_epoch_of_billions_of_samples_starts_at_once() -> None:
    """The order was a list: 40 million windows took 5 s and 1.5 GB at each start."""
    sampler = EpochSampler(3_000_000_000, batch_size=8, seed=0, rank=1, world_size=4)
    sampler.start_at(1, 2_000_000_000)
    tracemalloc.start()
    keys = iter(sampler)
    drawn = [next(keys)[1] for _ in range(2 * BLOCK)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert len(set(drawn)) == 2 * BLOCK and 1.4e9 < np.mean(drawn) < 1.6e9
    assert drawn == sampler.indices(1, range(2_000_000_001, 2_000_000_001 + 8 * BLOCK, 4))
