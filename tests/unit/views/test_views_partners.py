"""The partners: bijections for every population, equal to a scalar cipher, and spread evenly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdpipe.views.mixing import partners
from tests.unit.views.test_views_philox import scalar_philox

WORD = st.integers(0, 2**32 - 1)


def everyone(population: int, *, seed: int = 0, view: int = 1) -> list[int]:
    return list(partners(np.arange(population), population=population, seed=seed, view=view).tolist())


def scalar_partner(position: int, population: int, seed: int, view: int) -> int:
    """The cipher on one position, with Python's integers and the test's own Philox."""
    half = 0
    while 4**half < population:
        half += 1
    key = int.from_bytes(b"part", "little"), int.from_bytes(b"ners", "little")
    while True:
        left, right = divmod(position, 2**half)
        for number in range(12):
            words = scalar_philox((right, 2**31 + number // 4, view, seed), key)
            left, right = right, left ^ (words[number % 4] % 2**half)
        position = left * 2**half + right
        if position < population:
            return position


@pytest.mark.parametrize("view", [1, 2])
def test_bijection_for_every_small_population(view: int) -> None:
    for population in range(1, 301):
        assert sorted(everyone(population, view=view)) == list(range(population))


@pytest.mark.parametrize("exponent", [10, 11, 15, 16, 17])
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_bijection_at_powers_of_two_and_their_neighbors(exponent: int, offset: int) -> None:
    population = 2**exponent + offset
    assert sorted(everyone(population)) == list(range(population))


@given(st.integers(1, 10**6), WORD, WORD)
@example(10**6, 0, 0)
@example(50_000, 2**32 - 1, 2**32 - 1)
@settings(max_examples=25, deadline=None)
def test_bijection_for_any_population(population: int, seed: int, view: int) -> None:
    found = partners(np.arange(population), population=population, seed=seed, view=view)
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(population))


@given(WORD, st.integers(1, 2**32), WORD, WORD)
@example(0, 1, 0, 0)
@example(2**32 - 1, 2**32, 0, 0)
@settings(max_examples=40, deadline=None)
def test_equals_a_scalar_implementation(number: int, population: int, seed: int, view: int) -> None:
    position = number % population
    found = partners(np.array([position]), population=population, seed=seed, view=view)
    assert found.tolist() == [scalar_partner(position, population, seed, view)]


@given(st.lists(st.integers(0, 999), max_size=50))
@settings(max_examples=50, deadline=None)
def test_a_subset_has_the_partners_of_the_whole(positions: list[int]) -> None:
    subset = np.array(positions, dtype=np.int64)
    whole = np.array(everyone(1000, seed=3, view=4))
    assert np.array_equal(partners(subset, population=1000, seed=3, view=4), whole[subset])
    assert subset.tolist() == positions


def test_seeds_and_views_give_unrelated_permutations() -> None:
    population = 20_000
    coordinates = [(0, 1), (0, 2), (1, 1), (1, 0), (2**32 - 1, 1), (0, 2**32 - 1)]
    found = [np.array(everyone(population, seed=seed, view=view)) for seed, view in coordinates]
    identity = np.arange(population)
    for one in range(len(found)):
        for other in (identity, *found[:one]):
            # Two random permutations agree in about 1 place (a Poisson variable), and correlate by about 1/sqrt(N).
            assert (found[one] == other).sum() < 12
            assert abs(np.corrcoef(found[one], other)[0, 1]) < 6 / np.sqrt(population)


@pytest.mark.parametrize("population", [2, 3, 5, 16, 17, 64, 100])
def test_a_sample_meets_everyone_equally_often(population: int) -> None:
    views = 100 * population
    positions = np.array([0, population // 2, population - 1])
    met = np.array([partners(positions, population=population, seed=7, view=view) for view in range(views)])
    for column in met.T:
        observed = np.bincount(column, minlength=population)
        freedom = population - 1
        assert ((observed - 100) ** 2 / 100).sum() < freedom + 6 * np.sqrt(2 * freedom) + 12


@pytest.mark.parametrize("population", [3, 4])
def test_every_permutation_of_a_few_samples_is_as_likely(population: int) -> None:
    orders = list(itertools.permutations(range(population)))
    views = 200 * len(orders)
    observed = np.bincount(
        [orders.index(tuple(everyone(population, view=view))) for view in range(views)], minlength=len(orders)
    )
    freedom = len(orders) - 1
    assert ((observed - 200) ** 2 / 200).sum() < freedom + 6 * np.sqrt(2 * freedom) + 12


def test_neighbours_do_not_meet_neighbors() -> None:
    population, views = 30, 12_000
    met = np.array([partners(np.array([4, 5]), population=population, seed=1, view=view) for view in range(views)])
    distance = (met[:, 1] - met[:, 0]) % population
    observed = np.bincount(distance, minlength=population)
    assert observed[0] == 0
    expected = views / (population - 1)
    assert ((observed[1:] - expected) ** 2 / expected).sum() < 28 + 6 * np.sqrt(2 * 28) + 12


@pytest.mark.parametrize(
    ("population", "seed", "view", "known"),
    [
        (10, 0, 1, [1, 8, 5, 3, 6]),
        (1000, 7, 3, [525, 621, 872, 970, 819]),
        (50000, 0, 1, [21170, 35945, 15921, 22239, 49444]),
        (1281167, 4294967295, 4294967295, [113835, 154922, 704085, 418238, 394548]),
        (4294967296, 5, 2, [3722905375, 698103194, 426231112, 1558419852, 3551517357]),
    ],
)
def test_known_answers(population: int, seed: int, view: int, known: list[int]) -> None:
    positions = np.array([0, 1, 2, population // 2, population - 1])
    assert partners(positions, population=population, seed=seed, view=view).tolist() == known


@pytest.mark.parametrize(("positions", "population"), [([-1], 5), ([5], 5), ([0, 3, 12], 12), ([0], 0)])
def test_a_position_outside_the_population_is_refused(positions: list[int], population: int) -> None:
    with pytest.raises(IndexError, match=f"population of {population}"):
        partners(np.array(positions), population=population, seed=0, view=1)


def test_no_positions_have_no_partners() -> None:
    assert partners(np.zeros(0, dtype=np.int64), population=9, seed=0, view=1).shape == (0,)
