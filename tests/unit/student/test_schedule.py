"""Which view, which order and which learning rate belong to an epoch and a step."""

import math
from itertools import pairwise

import numpy as np
import pytest

from kdpipe.student.schedule import epoch_batches, learning_rate, view_of_epoch


def test_views_are_cycled_from_one() -> None:
    assert [view_of_epoch(epoch, 3) for epoch in range(7)] == [1, 2, 3, 1, 2, 3, 1]
    assert [view_of_epoch(epoch, 0) for epoch in range(3)] == [0, 0, 0]
    assert [view_of_epoch(epoch, None) for epoch in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 3), (9, 3), (7, 3), (5, 100), (1, 4), (129, 128)])
def test_each_sample_once_and_no_batch_of_one(samples: int, batch_size: int) -> None:
    batches = epoch_batches(samples, batch_size=batch_size, data_seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(samples))
    assert all(len(batch) > 1 for batch in batches) or samples == 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(100, batch_size=10, data_seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_learning_rate_rises_then_follows_a_cosine() -> None:
    rates = [learning_rate(step, steps=100, warmup=10, peak=0.4) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)
    assert rates[99] == pytest.approx(0.2 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
