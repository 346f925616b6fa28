"""How much each of several teachers counts: closed forms, and the draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdpipe.distil.several_stores import MixedTargets, confidence, drawn
from kdpipe.testing.doubles import ConstantTargets
from tests.unit.views.test_views_philox import scalar_philox


def _said(teachers: int, n: int = 12, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(teachers, n, classes, generator=torch.Generator().manual_seed(teachers))


def _probabilities(said: torch.Tensor) -> np.ndarray:
    raised = np.exp(said.double().numpy())
    return np.asarray(raised / raised.sum(axis=2, keepdims=True))


def _weights(said: torch.Tensor, labels: torch.Tensor, *shares: float) -> np.ndarray:
    return confidence(said, labels, torch.tensor(shares)).numpy()


def test_two_teachers_count_as_their_probabilities_of_the_label() -> None:
    said, labels = _said(2), torch.arange(12) % 5
    right = _probabilities(said)[:, range(12), labels]
    assert np.allclose(_weights(said, labels, 0.5, 0.5), right / right.sum(axis=0), atol=1e-6)


def test_three_teachers_count_as_published() -> None:
    """Equation by equation: a share of 1 - exp(CE) / sum(exp(CE)), divided by the number of teachers less one."""
    said, labels = _said(3), torch.arange(12) % 5
    losses = -np.log(_probabilities(said)[:, range(12), labels])
    published = (1 - np.exp(losses) / np.exp(losses).sum(axis=0)) / (3 - 1)
    assert np.allclose(_weights(said, labels, 1 / 3, 1 / 3, 1 / 3), published, atol=1e-6)
    assert published.max() <= 0.5


def test_without_a_label_two_teachers_count_as_exp_of_minus_their_entropy() -> None:
    said = _said(2)
    probabilities = _probabilities(said)
    entropies = -(probabilities * np.log(probabilities)).sum(axis=2)
    expected = np.exp(-entropies) / np.exp(-entropies).sum(axis=0)
    assert np.allclose(_weights(said, torch.full((12,), -1), 0.5, 0.5), expected, atol=1e-6)


def test_each_sample_is_weighed_by_its_own_label_or_entropy() -> None:
    said, labels = _said(2), torch.tensor([3, -1] * 6)
    mixed = _weights(said, labels, 0.5, 0.5)
    assert np.array_equal(mixed[:, ::2], _weights(said, torch.full((12,), 3), 0.5, 0.5)[:, ::2])
    assert np.array_equal(mixed[:, 1::2], _weights(said, torch.full((12,), -1), 0.5, 0.5)[:, 1::2])


def test_shares_multiply_the_confidence() -> None:
    said, labels = _said(2), torch.arange(12) % 5
    equal = _weights(said, labels, 0.5, 0.5)
    product = equal * [[0.8], [0.2]]
    assert np.allclose(_weights(said, labels, 0.8, 0.2), product / product.sum(axis=0), atol=1e-6)
    alike = said[:1].repeat(2, 1, 1)
    assert np.allclose(_weights(alike, labels, 0.8, 0.2), [[0.8], [0.2]], atol=1e-6)


def test_a_row_s_constant_and_extreme_logits_do_no_harm() -> None:
    said, labels = _said(3), torch.arange(12) % 5
    shifted = said + torch.tensor([7.0, -20.0, 0.0])[:, None, None]
    shares = (1 / 3, 1 / 3, 1 / 3)
    assert np.allclose(_weights(shifted, labels, *shares), _weights(said, labels, *shares), atol=1e-5)
    extreme = _weights(1e4 * said, torch.tensor([0, -1] * 6), *shares)
    assert np.isfinite(extreme).all()
    assert np.allclose(extreme.sum(axis=0), 1)


def _place(number: int) -> tuple[int, int, int]:
    return number % 3, number % 101, 128 * (number // 7)


def test_draws_are_those_of_the_counter_based_generator() -> None:
    shares = (0.2, 0.5, 0.3)
    for number in range(300):
        seed, epoch, first = _place(number)
        word = scalar_philox((first, epoch, 0x7EAC, 0), (seed, 0))[0]
        expected = sum(word >= bound * 2**32 for bound in (0.2, 0.7))
        assert drawn(shares, data_seed=seed, epoch=epoch, first=first) == expected


def test_teachers_are_drawn_as_often_as_their_shares_say() -> None:
    shares, count = (0.2, 0.5, 0.3), 20_000
    for places in ([(0, 0, 128 * n) for n in range(count)], [(0, n, 0) for n in range(count)]):
        found = np.bincount([drawn(shares, data_seed=s, epoch=e, first=f) for s, e, f in places], minlength=3) / count
        # Five standard deviations of a share of one half.
        assert np.abs(found - shares).max() < 5 * math.sqrt(0.25 / count)


PIXELS = torch.empty(0)


def test_mixed_targets_draw_one_teacher_for_each_batch_whatever_came_before() -> None:
    batches = np.split(np.arange(24), 8)

    def epoch(number: int, *, done: int = 0) -> list[float]:
        targets = MixedTargets([ConstantTargets(1, 0), ConstantTargets(2, 0)], (0.4, 0.6), mix="draw")
        targets.start_epoch(1, None)
        targets.order(np.arange(24), data_seed=5, epoch=number)
        if done:
            targets.skip(3 * done)
        said = [targets.logits(batch, PIXELS) for batch in batches[done:]]
        assert all((each == each[0]).all() for each in said)
        return [each[0, 0].item() for each in said]

    whole = epoch(2)
    assert whole == [1.0 + drawn((0.4, 0.6), data_seed=5, epoch=2, first=3 * step) for step in range(8)]
    assert set(whole) == {1.0, 2.0}
    assert epoch(2, done=3) == whole[3:]
    assert epoch(3) != whole


def test_every_part_is_asked_for_every_batch() -> None:
    parts = [ConstantTargets(1, 0), ConstantTargets(2, 0)]
    targets = MixedTargets(parts, (0.5, 0.5), mix="draw")
    targets.order(np.arange(24), data_seed=0, epoch=0)
    for batch in np.split(np.arange(24), 8):
        targets.logits(batch, PIXELS)
    assert [len(part.requested) for part in parts] == [8, 8]


def test_mixed_targets_look_the_labels_up() -> None:
    said = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    parts = [ConstantTargets(*row.tolist()) for row in said]
    labels = np.array([1, -1, 0, 0], dtype=np.int32)
    targets = MixedTargets(parts, (0.5, 0.5), mix="confidence", labels=labels)
    given = targets.logits(np.array([3, 0, 1]), PIXELS)
    weights = confidence(said[:, None].repeat(1, 3, 1), torch.tensor([0, 1, -1]), torch.tensor([0.5, 0.5]))
    assert torch.allclose(given, weights[0][:, None] * said[0] + weights[1][:, None] * said[1])
    assert weights[0, 0] > 0.7 > 0.3 > weights[0, 1]
    blind = MixedTargets(parts, (0.5, 0.5), mix="confidence").logits(np.array([3, 0]), PIXELS)
    assert torch.equal(blind[0], blind[1])


def test_a_mean_of_logits_is_a_geometric_mean_of_probabilities_at_any_temperature() -> None:
    parts = [ConstantTargets(2, -1, 0.5), ConstantTargets(-3, 1, 1)]
    mean = MixedTargets(parts, (0.7, 0.3)).logits(np.array([0]), PIXELS)
    for temperature in (0.5, 1.0, 4.0):
        tempered = [(part.row / temperature).softmax(dim=0) for part in parts]
        product = tempered[0] ** 0.7 * tempered[1] ** 0.3
        assert torch.allclose((mean[0] / temperature).softmax(dim=0), product / product.sum(), atol=1e-6)


def test_a_share_for_each_part() -> None:
    with pytest.raises(ValueError, match="a share for each of 2 parts, found 1"):
        MixedTargets([ConstantTargets(1), ConstantTargets(2)], (1.0,))
