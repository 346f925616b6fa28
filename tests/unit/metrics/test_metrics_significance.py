"""Intervals and paired tests against scipy and against counting every case."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, permutation_test

from kdpipe.metrics.significance import PairedDifference, accuracy_interval, correct, paired


def _runs(rows: int, *, samples: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    easy = draw.random(samples)  # samples differ in difficulty, so the errors of two runs coincide in part
    return draw.random((rows, samples)) < 0.4 + 0.5 * easy


@pytest.mark.parametrize(("hits", "samples"), [(0, 1), (1, 1), (0, 40), (40, 40), (17, 40), (9140, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(hits: int, samples: int) -> None:
    expected = binomtest(hits, samples).proportion_ci(method="wilson")
    found = accuracy_interval(hits / samples, samples)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= hits / samples <= found.high <= 1


@pytest.mark.parametrize(("accuracy", "samples"), [(1.2, 5), (-0.1, 5), (math.nan, 5), (0.5, 0)])
def test_an_impossible_accuracy_has_no_interval(accuracy: float, samples: int) -> None:
    with pytest.raises(ValueError, match="expected an accuracy"):
        accuracy_interval(accuracy, samples)


@pytest.mark.parametrize("samples", [1, 12, 500, 10_000])
def test_the_p_value_is_that_of_mcnemars_exact_test(samples: int) -> None:
    first, second = _runs(2, samples=samples)
    better, worse = int((first & ~second).sum()), int((second & ~first).sum())
    found = paired(first, second)
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.difference == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert found.discordant == pytest.approx((first != second).mean())
    assert found.samples == samples
    assert paired(second, first).p_value == found.p_value


def test_a_hopeless_difference_has_a_tiny_p_value_and_not_zero() -> None:
    first = np.ones(500, dtype=bool)
    assert math.log2(paired(first, ~first).p_value) == pytest.approx(-499)


def test_equal_students_are_not_told_apart() -> None:
    (only,) = _runs(1, samples=300)
    assert paired(only, only) == PairedDifference(0.0, 0.0, 0.0, 1.0, 300, 0.0)
    assert paired(only, only).samples_needed() is None


@pytest.mark.parametrize(("first_runs", "second_runs"), [(2, 2), (3, 2), (3, 1), (1, 4)])
def test_of_several_seeds_every_change_of_signs_is_counted(first_runs: int, second_runs: int) -> None:
    first, second = _runs(first_runs, samples=9, seed=1), _runs(second_runs, samples=9, seed=2)
    units = np.round((first.mean(axis=0) - second.mean(axis=0)) * 12).astype(int)
    sums = [abs(np.dot(signs, units)) for signs in itertools.product((-1, 1), repeat=9)]
    assert paired(first, second).p_value == pytest.approx(np.mean(np.array(sums) >= abs(units.sum())), abs=1e-12)


def test_of_many_samples_it_agrees_with_scipys_permutation_test() -> None:
    first, second = _runs(3, samples=400, seed=3), _runs(3, samples=400, seed=4)
    per_sample = np.round(3 * (first.mean(axis=0) - second.mean(axis=0)))
    expected = permutation_test(
        (per_sample,), np.sum, permutation_type="samples", n_resamples=5_000, rng=np.random.default_rng(0)
    )
    assert paired(first, second).p_value == pytest.approx(expected.pvalue, abs=0.02)


def test_copies_of_one_run_are_tested_like_the_run() -> None:
    first, second = _runs(2, samples=700, seed=5)
    single, double = paired(first, second), paired(np.tile(first, (2, 1)), np.tile(second, (2, 1)))
    assert double.p_value == pytest.approx(single.p_value, rel=1e-9)
    assert double.discordant == pytest.approx(single.discordant)


def test_the_interval_is_that_of_resampled_samples() -> None:
    first, second = _runs(2, samples=800, seed=6)
    found = paired(first, second)
    draw = np.random.default_rng(99)
    picked = draw.integers(0, 800, (4000, 800))
    low, high = np.quantile(first[picked].mean(axis=1) - second[picked].mean(axis=1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)
    assert paired(first, second) == found
    assert paired(first, second, seed=1) != found


def test_the_interval_covers_the_true_difference() -> None:
    covered = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        chances = np.array([0.12, 0.06, 0.82])  # right only by the first, only by the second, by both or none
        kind = draw.choice(3, size=500, p=chances)
        found = paired(kind == 0, kind == 1)
        covered += found.low <= 0.06 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_as_many_samples_as_needed_decide_with_the_stated_power() -> None:
    both, neither = np.ones(100, dtype=bool), np.zeros(100, dtype=bool)
    first, second = both.copy(), both.copy()
    second[:6], first[6:9] = False, False
    found = paired(first, second)
    needed = found.samples_needed()
    assert needed is not None
    decided = 0
    for seed in range(300):
        kind = np.random.default_rng(seed).choice(3, size=needed, p=[0.06, 0.03, 0.91])
        decided += paired(kind == 0, kind == 1).significant
    assert decided / 300 == pytest.approx(0.8, abs=0.07)
    d, q = 0.03, 0.09
    assert needed == math.ceil(((norm.ppf(0.975) * q**0.5 + norm.ppf(0.8) * (q - d * d) ** 0.5) / d) ** 2)
    assert paired(both, neither).samples_needed() < 10


def test_correct_leaves_out_unlabeled_samples_and_prefers_the_lower_class() -> None:
    logits = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [5, 0, 0]], np.float32)
    assert correct(logits, np.array([0, 2, -1, 1], np.int32)).tolist() == [True, False, False]


def test_other_samples_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same n > 0 samples"):
        paired(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="same n > 0 samples"):
        paired(np.ones(0, dtype=bool), np.ones(0, dtype=bool))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_any_pair_has_a_sensible_difference(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs, dtype=bool).T
    found, turned = paired(first, second), paired(second, first)
    assert -1 <= found.low <= found.high <= 1
    assert 0 < found.p_value <= 1
    assert found.difference == pytest.approx(-turned.difference)
    assert (found.samples_needed() is None) == (found.difference == 0)
