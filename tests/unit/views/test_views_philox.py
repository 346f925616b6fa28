"""The random numbers: the published vectors, a plain re-implementation, and their distributions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]  # scikit-learn brings it

from kdpipe.views import Draws, permutation, philox

WORD = st.integers(0, 2**32 - 1)


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10 as the paper writes it, one counter at a time, on Python's integers."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 2**32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


def vectorized(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    def one(word: int) -> npt.NDArray[np.uint32]:
        return np.array([word], dtype=np.uint32)

    c0, c1, c2, c3 = counter
    words = philox((one(c0), one(c1), one(c2), one(c3)), (one(key[0]), one(key[1])))
    return tuple(int(word[0]) for word in words)


def some_draws(count: int, *, seed: int = 0, view: int = 1) -> Draws:
    ids = np.random.default_rng(5).integers(0, 256, (count, 16), dtype=np.uint8)
    return Draws(ids, seed, view)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert vectorized(counter, key) == words
    assert scalar_philox(counter, key) == words


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
@settings(max_examples=200, deadline=None)
def test_equals_a_scalar_implementation(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert vectorized(counter, key) == scalar_philox(counter, key)


def test_words_are_keyed_with_the_first_eight_bytes_little_endian() -> None:
    sample_id = bytes(range(1, 17))
    draws = Draws(np.frombuffer(sample_id, dtype=np.uint8).reshape(1, 16), seed=9, view=7)
    words = tuple(int(word[0]) for word in draws.words(stream=3, block=2))
    key = int.from_bytes(sample_id[:4], "little"), int.from_bytes(sample_id[4:8], "little")
    assert words == scalar_philox((2, 3, 7, 9), key)


def test_each_coordinate_changes_the_words() -> None:
    draws = some_draws(4)
    words = [
        draws.words(1),
        draws.words(2),
        draws.words(1, block=1),
        some_draws(4, view=2).words(1),
        some_draws(4, seed=1).words(1),
    ]
    assert len({np.stack(each).tobytes() for each in words}) == len(words)


@pytest.mark.parametrize("high", [2, 3, 9, 10, 57, 256])
def test_integers_are_uniform(high: int) -> None:
    count = 2**18
    drawn = some_draws(count).integers(1, high)
    assert drawn.dtype == np.int64
    observed = np.bincount(drawn, minlength=high)
    assert len(observed) == high
    expected = count / high
    chi_square = ((observed - expected) ** 2 / expected).sum()
    # Six standard deviations of a chi-square variable with high - 1 degrees of freedom, and room for its skew.
    freedom = high - 1
    assert chi_square < freedom + 6 * np.sqrt(2 * freedom) + 12


@pytest.mark.parametrize("high", [3 * 2**30, 2**31 + 1, 2**32 - 5, 2**32])
def test_integers_are_uniform_where_draws_are_rejected(high: int) -> None:
    count, bins = 2**18, 64
    drawn = some_draws(count).integers(1, high)
    assert drawn.min() >= 0
    assert drawn.max() < high
    observed = np.bincount(drawn * bins // high, minlength=bins)
    expected = count / bins
    assert ((observed - expected) ** 2 / expected).sum() < 63 + 6 * np.sqrt(2 * 63) + 12
    # 3 * 2^30 without rejection would give every third number twice as often.
    thirds = np.bincount(drawn % 3, minlength=3)
    assert ((thirds - count / 3) ** 2 / (count / 3)).sum() < 30


def test_a_rejected_draw_takes_the_next_block() -> None:
    draws, high = some_draws(512), 2**31 + 1
    drawn = draws.integers(4, high)
    threshold = (2**32 - high) % high
    rejected = 0
    for row, sample_id in enumerate(draws.sample_ids):
        key = (
            int.from_bytes(sample_id[:4].tobytes(), "little"),
            int.from_bytes(sample_id[4:8].tobytes(), "little"),
        )
        block = 0
        while (product := scalar_philox((block, 4, 1, 0), key)[0] * high) % 2**32 < threshold:
            block += 1
            rejected += 1
        assert drawn[row] == product >> 32
    assert rejected > 100


def test_integers_take_a_bound_for_each_sample() -> None:
    draws = some_draws(6)
    bounds = np.array([1, 2, 3, 100, 2**20, 2**32], dtype=np.uint64)
    drawn = draws.integers(1, bounds)
    alone = [int(draws.integers(1, bound)[row]) for row, bound in enumerate(bounds)]
    assert drawn.tolist() == alone
    assert drawn[0] == 0


@pytest.mark.parametrize("high", [2, 256, 2**16, 3, 257, 1000, 65_537])
def test_a_million_integers_pass_chi_square(high: int) -> None:
    observed = np.bincount(some_draws(2**20).integers(6, high), minlength=high)
    assert len(observed) == high
    assert stats.chisquare(observed).pvalue > 1e-4


@pytest.mark.parametrize(("stream", "block"), [(1, 0), (1, 9), (2**31 - 1, 0)])
def test_uniform_is_53_bits_of_the_published_words(stream: int, block: int) -> None:
    draws = some_draws(200, seed=11, view=13)
    drawn = draws.uniform(stream, block)
    assert drawn.dtype == np.float64
    for row, sample_id in enumerate(draws.sample_ids.tolist()):
        key = int.from_bytes(sample_id[:4], "little"), int.from_bytes(sample_id[4:8], "little")
        first, second, *_ = scalar_philox((block, stream, 13, 11), key)
        assert int(drawn[row] * 2**53) == (first >> 5 << 26) + (second >> 6)
        assert float(drawn[row] * 2**53).is_integer()


@pytest.mark.parametrize("block", [0, 1])
def test_a_million_uniforms_pass_kolmogorov_smirnov(block: int) -> None:
    drawn = some_draws(2**20).uniform(1, block)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-4
    # The lower bits too, which the order of the draws hardly depends on.
    assert stats.kstest((drawn * 2**26) % 1, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("high", [3, 33, 257, 1000, 2**20 + 1, 2**32 - 1, 2**32])
def test_the_largest_uniform_stays_below_any_bound(high: int) -> None:
    largest = (2**53 - 1) * 2.0**-53
    assert int(np.float64(largest) * high) == high - 1


def test_neighboring_coordinates_are_uncorrelated() -> None:
    count = 2**18
    base = some_draws(count).uniform(1)
    counted = np.zeros((count, 16), dtype=np.uint8)
    counted[:, :4] = np.arange(count, dtype="<u4").view(np.uint8).reshape(count, 4)
    successive = Draws(counted, 0, 1).uniform(1)
    neighbors = {
        "stream": (base, some_draws(count).uniform(2)),
        "block": (base, some_draws(count).uniform(1, 1)),
        "view": (base, some_draws(count, view=2).uniform(1)),
        "seed": (base, some_draws(count, seed=1).uniform(1)),
        "sample": (base[:-1], base[1:]),
        "sample whose id is one more": (successive[:-1], successive[1:]),
    }
    for name, (one, other) in neighbors.items():
        # The correlation of independent draws has a standard deviation of 1 / sqrt(count).
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(count), name


def test_no_samples_give_no_draws() -> None:
    assert some_draws(0).integers(1, 5).shape == (0,)
    assert some_draws(0).uniform(1).shape == (0,)


@given(st.integers(0, 3000), WORD, WORD)
@example(0, 0, 0)
@example(1, 0, 0)
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(n: int, seed: int, stream: int) -> None:
    order = permutation(n, seed=seed, stream=stream)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutation_depends_on_seed_and_stream_and_nothing_else() -> None:
    base = permutation(100, seed=1, stream=2)
    assert np.array_equal(base, permutation(100, seed=1, stream=2))
    assert not np.array_equal(base, permutation(100, seed=2, stream=2))
    assert not np.array_equal(base, permutation(100, seed=1, stream=3))


def test_permutation_sorts_by_the_published_words() -> None:
    words = [scalar_philox((position, 6, 0, 0), (5, 0)) for position in range(50)]
    expected = sorted(range(50), key=lambda position: (words[position][0] << 32) + words[position][1])
    assert permutation(50, seed=5, stream=6).tolist() == expected


def test_permutation_puts_each_element_anywhere() -> None:
    places = np.array([permutation(5, seed=seed, stream=0) for seed in range(5000)])
    for column in places.T:
        observed = np.bincount(column, minlength=5)
        assert ((observed - 1000) ** 2 / 1000).sum() < 30
