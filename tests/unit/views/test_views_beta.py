"""The mixing weights: the beta distribution to the last bit of a 32-bit word."""

from __future__ import annotations

import decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special  # type: ignore[import-untyped]  # scikit-learn brings it

from kdpipe.errors import RecipeError
from kdpipe.views.mixing import lambda_steps, thresholds

ALPHAS = [0.01, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 4, 10, 33.3, 100]
MIDDLES = (np.arange(256) + 0.5) / 256


@pytest.mark.parametrize("alpha", ALPHAS)
def test_thresholds_are_the_beta_distribution(alpha: float) -> None:
    expected = special.betainc(alpha, alpha, MIDDLES) * 2.0**32
    assert np.abs(np.array(thresholds(alpha)) - expected).max() <= 1


@given(st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_thresholds_are_ordered_symmetric_words(alpha: float) -> None:
    table = thresholds(alpha)
    assert len(table) == 256
    assert all(type(threshold) is int for threshold in table)
    assert list(table) == sorted(table)
    assert table[0] >= 0
    assert table[-1] <= 2**32
    assert all(table[k] + table[255 - k] == 2**32 for k in range(256))


def test_alpha_one_is_uniform() -> None:
    assert thresholds(1) == tuple((2 * k + 1) * 2**23 for k in range(256))


def test_alpha_two_is_the_smoothstep() -> None:
    # I_x(2, 2) = 3 x^2 - 2 x^3, an integer in units of 2^-32 at odd multiples of 1/512.
    odd = [2 * k + 1 for k in range(256)]
    assert thresholds(2) == tuple((3 * 512 * x**2 - 2 * x**3) * 2**5 for x in odd)


def test_alpha_one_half_is_the_arcsine() -> None:
    expected = 2 / np.pi * np.arcsin(np.sqrt(MIDDLES)) * 2**32
    assert np.abs(np.array(thresholds(0.5)) - expected).max() < 0.51


def test_known_answers() -> None:
    chosen = [0, 1, 17, 64, 127, 128, 255]
    assert [thresholds(0.2)[k] for k in chosen] == [
        649227382,
        809185379,
        1334060177,
        1781716903,
        2144807270,
        2150160026,
        3645739914,
    ]
    assert [thresholds(0.8)[k] for k in chosen] == [
        24074319,
        57996558,
        416328156,
        1204045459,
        2140186939,
        2154780357,
        4270892977,
    ]


def test_the_callers_decimal_context_does_not_matter() -> None:
    expected = thresholds(0.3)
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert thresholds(0.3) == expected


@pytest.mark.parametrize("alpha", [0, -1, 0.0099, 100.1, float("inf"), float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(RecipeError, match=r"expected 0\.01 to 100") as refusal:
        thresholds(alpha)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1, 7.7])
def test_steps_count_the_thresholds_at_most_the_word(alpha: float) -> None:
    table = thresholds(alpha)
    near = {word + offset for word in table for offset in (-1, 0, 1)} | {0, 2**32 - 1}
    words = sorted(word for word in near if 0 <= word < 2**32)
    found = lambda_steps(np.array(words, dtype=np.uint32), table)
    assert found.dtype == np.int64
    assert found.tolist() == [sum(threshold <= word for threshold in table) for word in words]


def test_steps_have_the_moments_of_the_beta_distribution() -> None:
    words = np.random.default_rng(3).integers(0, 2**32, 2**20, dtype=np.uint32)
    for alpha in (0.2, 1.0, 5.0):
        weight = lambda_steps(words, thresholds(alpha)) / 256
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(weight.mean() - 0.5) < 6 * np.sqrt(variance / len(words))
        # Rounding to multiples of 1/256 adds at most its own variance twice over.
        assert abs(weight.var() - variance) < 2e-4


def test_a_small_alpha_reaches_both_ends() -> None:
    ends = np.array([0, 2**32 - 1], dtype=np.uint32)
    assert lambda_steps(ends, thresholds(0.2)).tolist() == [0, 256]


def test_no_words_have_no_steps() -> None:
    assert lambda_steps(np.zeros(0, dtype=np.uint32), thresholds(1)).shape == (0,)
