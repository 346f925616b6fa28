"""Which view, which order and which learning rate belong to an epoch and a step."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.training.schedule import epoch_batches, learning_rate, rate, view_of_epoch
from kdpipe.training.settings import Optimization


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


def _rates(epochs: int, steps: int, **settings: Any) -> list[float]:
    optimization = Optimization(**{"epochs": epochs, "lr": 0.4, "warmup_epochs": 0} | settings)
    return [rate(optimization, step, steps) for step in range(epochs * steps)]


@pytest.mark.parametrize("epochs", [1, 3, 30])
def test_one_cycle_is_pytorch_s(epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=epochs * 7, cycle_momentum=False)
    for found in _rates(epochs, 7, lr_schedule="one-cycle", warmup_epochs=1):
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step() if theirs.last_epoch + 1 < epochs * 7 else None


def test_steps_are_pytorch_s_multi_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], gamma=0.2)
    rates = _rates(8, 5, lr_schedule="step", lr_steps=(4, 6), lr_gamma=0.2)
    for epoch in range(8):
        assert rates[5 * epoch : 5 * epoch + 5] == pytest.approx([optimizer.param_groups[0]["lr"]] * 5)
        optimizer.step()
        theirs.step()


def test_a_constant_rate_rises_first_where_it_is_told_to() -> None:
    assert _rates(3, 4, lr_schedule="constant") == [0.4] * 12
    assert _rates(3, 4, lr_schedule="constant", warmup_epochs=1) == pytest.approx([0.1, 0.2, 0.3] + [0.4] * 9)
