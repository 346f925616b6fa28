"""Drawing by weight: how often each sample and class is drawn, in one epoch and on average."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.training import schedule
from kdpipe.training.schedule import Sampling, apportion, epoch_batches, epoch_samples, shuffled
from kdpipe.views import permutation

DRAW = 2**32

weights = st.one_of(
    st.floats(0, 1e3), st.sampled_from([0.0, 1.0, 0.1, 1 / 3, 2.0, 5e-324, 1.7e308]), st.integers(0, 5).map(float)
)
samples = st.lists(st.tuples(weights, st.integers(-1, 3)), min_size=1, max_size=40).filter(
    lambda rows: any(weight for weight, _ in rows)
)


def _arrays(rows: list[tuple[float, int]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    return np.array([weight for weight, _ in rows]), np.array([label for _, label in rows], dtype=np.int32)


def _wanted(rows: list[tuple[float, int]], balance: bool) -> list[Fraction]:
    """Return the mean number of draws of each sample, by the definition and in exact arithmetic."""
    exact = [Fraction(weight) for weight, _ in rows]
    wanted = [len(rows) * weight / sum(exact) for weight in exact]
    if not balance:
        return wanted
    owned = {
        label: sum((w for w, (_, own) in zip(wanted, rows, strict=True) if own == label), Fraction(0))
        for label in range(4)
    }
    classes = [label for label, share in owned.items() if share]
    return [
        weight
        if label < 0
        else weight * sum(owned.values()) / len(classes) / owned[label]
        if owned[label]
        else Fraction(0)
        for weight, (_, label) in zip(wanted, rows, strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(rows=samples, balance=st.booleans(), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 500))
def test_each_sample_is_drawn_its_mean_rounded_down_or_up(
    rows: list[tuple[float, int]], balance: bool, seed: int, epoch: int
) -> None:
    drawing = Sampling.of(*_arrays(rows), balance=balance)
    drawn = drawing.draw(data_seed=seed, epoch=epoch)
    assert len(drawn) == len(rows)
    assert (np.diff(drawn) >= 0).all()
    counts = np.bincount(drawn, minlength=len(rows))
    resolved = Fraction(2, DRAW)
    for count, wanted in zip(counts.tolist(), _wanted(rows, balance), strict=True):
        assert wanted - 1 - resolved < count < wanted + 1 + resolved
        if wanted.denominator == 1:
            assert count == wanted
    for label in range(-1, 4):
        own = [index for index, (_, found) in enumerate(rows) if found == label]
        share = sum((_wanted(rows, balance)[index] for index in own), Fraction(0))
        assert share - 1 - resolved < int(counts[own].sum()) < share + 1 + resolved


@settings(max_examples=200, deadline=None)
@given(rows=samples, balance=st.booleans())
def test_means_are_exact_to_one_place_of_the_ruler(rows: list[tuple[float, int]], balance: bool) -> None:
    drawing = Sampling.of(*_arrays(rows), balance=balance)
    assert drawing.lengths.sum() == len(rows) * DRAW
    for length, wanted in zip(drawing.lengths.tolist(), _wanted(rows, balance), strict=True):
        assert abs(length - wanted * DRAW) < 2
        assert length == 0 or wanted > 0


@pytest.mark.parametrize("balance", [False, True])
def test_over_epochs_each_sample_is_drawn_by_its_weight(balance: bool) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([-1, 0, 1, 2], [5, 30, 9, 3]).astype(np.int32)
    given = rng.exponential(size=47)
    epochs = 4000
    drawing = Sampling.of(given, labels, balance=balance)
    counts = np.stack([np.bincount(drawing.draw(data_seed=1, epoch=epoch), minlength=47) for epoch in range(epochs)])
    expected = given / given.sum() * 47
    if balance:
        known = labels >= 0
        expected[known] *= (expected[known].sum() / 3 / np.bincount(labels[known], expected[known]))[labels[known]]
    assert drawing.expected == pytest.approx(expected, abs=1e-9)
    part = expected % 1
    error = np.sqrt(part * (1 - part) / epochs)
    assert (np.abs(counts.mean(axis=0) - expected) < 5 * error + 1e-9).all()


def test_samples_of_a_class_are_drawn_in_all_combinations() -> None:
    """Half of four: with one order for all epochs, or for all seeds, there would be a few pairs only."""
    labels = np.array([0] * 4 + [1] * 2, dtype=np.int32)
    drawing = Sampling.of(np.array([1.0] * 4 + [4.0] * 2), labels)
    for runs in ([(0, epoch) for epoch in range(200)], [(seed, 0) for seed in range(200)]):
        drawn = [drawing.draw(data_seed=seed, epoch=epoch) for seed, epoch in runs]
        pairs = {tuple(epoch[epoch < 4].tolist()) for epoch in drawn}
        assert {(first, second) for first in range(4) for second in range(first + 1, 4)} <= pairs


@pytest.mark.parametrize("start", [0, 1, DRAW - 1])
def test_wherever_the_ruler_begins_there_are_as_many_draws(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_start", lambda data_seed, epoch: start)
    for weights in ([1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 2.0], [1.0, 1e-9, 1.0]):
        drawn = Sampling.of(np.array(weights), np.zeros(3, np.int32)).draw(data_seed=0, epoch=0)
        assert len(drawn) == 3
        if 0 in weights:
            assert set(drawn.tolist()) == {weights.index(max(weights))}


@pytest.mark.parametrize("weight", [1.0, 0.1, 1 / 3, 1e300, 5e-324])
@pytest.mark.parametrize("balance", [False, True])
def test_equal_weights_leave_the_order_as_it_was(weight: float, balance: bool) -> None:
    for samples in (1, 2, 96, 999):
        labels = (np.arange(samples) % 3).astype(np.int32) if samples % 3 == 0 else np.zeros(samples, dtype=np.int32)
        drawing = Sampling.of(np.full(samples, weight), labels, balance=balance)
        for epoch in (0, 7):
            seeds = {"data_seed": 3, "epoch": epoch}
            order = shuffled(epoch_samples(samples, drawing, **seeds), **seeds)
            assert np.array_equal(order, permutation(samples, seed=3, stream=0x0DE7 + epoch))
            assert np.array_equal(order, np.concatenate(epoch_batches(samples, batch_size=32, **seeds)))


def test_unlabelled_samples_keep_their_share() -> None:
    labels = np.array([0] * 8 + [1] * 2 + [-1] * 6, dtype=np.int32)
    drawn = np.bincount(Sampling.of(np.ones(16), labels, balance=True).draw(data_seed=0, epoch=0), minlength=16)
    assert drawn[10:].tolist() == [1] * 6
    assert drawn[:8].sum() == drawn[8:10].sum() == 5


GOLDEN = [0, 0, 1, 2, 2, 3, 4, 5, 5, 6]
"""An epoch on any machine, as of the first version."""


def test_the_draw_is_a_function_of_weights_seed_and_epoch() -> None:
    def drawn(seed: int, epoch: int) -> tuple[int, ...]:
        weights = 2 - np.arange(50) / 32
        return tuple(Sampling.of(weights, np.zeros(50, np.int32)).draw(data_seed=seed, epoch=epoch))

    assert drawn(5, 2) == drawn(5, 2)
    assert len({drawn(seed, epoch) for seed in (0, 1, 2**32 - 1) for epoch in range(3)}) == 9
    assert [int(sample) for sample in drawn(0, 0)[:10]] == GOLDEN


def test_the_digest_is_of_all_that_decides() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.int32)
    digest = Sampling.of(np.array([1.0, 2, 3, 4]), labels).digest
    assert digest == Sampling.of(np.array([2.0, 4, 6, 8]), labels).digest
    assert digest != Sampling.of(np.array([1.0, 2, 4, 3]), labels).digest
    assert digest != Sampling.of(np.array([1.0, 2, 3, 4]), labels[::-1].copy()).digest
    assert digest != Sampling.of(np.array([1.0, 2, 3, 4]), labels, balance=True).digest


@pytest.mark.parametrize("bad", [[0, 0], [-1, 2], [np.nan, 1], [np.inf, 1]])
def test_weights_that_mean_nothing_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite and 0 or more"):
        Sampling.of(np.array(bad), np.zeros(2, np.int32))


@given(shares=st.lists(st.integers(0, 2**70), min_size=1, max_size=20), total=st.integers(0, 2**60))
def test_a_total_is_parted_into_whole_numbers(shares: list[int], total: int) -> None:
    parts = apportion(shares, total)
    if not sum(shares):
        assert parts == [0] * len(shares)
        return
    assert sum(parts) == total
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - Fraction(share * total, sum(shares))) < 1
