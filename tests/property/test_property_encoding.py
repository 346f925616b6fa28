"""Encodings over generated logits: how far off decoding may be, and what it keeps exactly."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.fidelity import Fidelity
from kdpipe.encoding.registry import get_encoding, restore_encoding

ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(4, 12)),
    elements=st.one_of(
        st.floats(-30, 30, width=32),
        st.floats(-7e4, 7e4, width=32),
        st.floats(-(2.0**127), 2.0**127, width=32),
        st.sampled_from([0.0, 1.0, -1.0, 2.0**-20]),
    ),
)
TEMPERATURES = st.sampled_from([0.5, 1, 2.5, 4, 16])
TAILP = st.builds(lambda bits, temperature: f"tailp{bits}@{temperature:g}", st.integers(2, 8), TEMPERATURES)
SQRTP = st.builds(lambda bits, temperature: f"sqrtp{bits}@{temperature:g}", st.integers(2, 8), TEMPERATURES)
NAMES = st.one_of(
    st.sampled_from(["fp32", "fp16", "topk1", "topk3", "klt0.05", "klt0.4", "peaks1@2"]),
    st.integers(1, 9).map(lambda bits: f"fp16r{bits}"),
    SQRTP,
    TAILP,
)


def shifted(logits: np.ndarray) -> np.ndarray:
    """Return logits minus their row's maximum, in float32."""
    with np.errstate(over="ignore"):
        return logits - logits.max(axis=1, keepdims=True)


def differences(chosen: Encoding, logits: np.ndarray) -> np.ndarray:
    """Return what the codes stand for before the maximum is added."""
    encoded = chosen.encode(torch.from_numpy(logits))
    zero = torch.zeros(len(logits))
    return chosen.decode(torch.from_numpy(encoded.codes), zero, logits.shape[1]).double().numpy()


@given(NAMES, ROWS, st.booleans())
@example("tailp2@0.5", np.full((1, 4), 3.2e-44, dtype=np.float32), False)
@example("peaks1@2", np.zeros((1, 4), dtype=np.float32), True)
@settings(max_examples=300, deadline=None)
def test_what_every_encoding_keeps(name: str, logits: np.ndarray, calibrated: bool) -> None:
    chosen = get_encoding(name)
    tensor = torch.from_numpy(logits.copy())
    if calibrated:
        chosen = chosen.calibrate(tensor)
    encoded = chosen.encode(tensor)
    codes, classes = torch.from_numpy(encoded.codes), logits.shape[1]
    assert np.array_equal(tensor.numpy(), logits)
    assert encoded.codes.shape == (len(logits), chosen.width(classes))
    assert encoded.codes.dtype == chosen.dtype
    # Rounded to bfloat16: 8 bits, of which numbers below 2^-126 have fewer.
    largest = logits.max(axis=1).astype(np.float64)
    off = np.maximum(2.0**-8 * np.abs(largest), 2.0**-134) if name.startswith(("tailp", "klt", "peaks")) else 0
    assert (np.abs(encoded.row_max - largest) <= off).all()
    assert not chosen.invalid(codes, classes).any()
    decoded = chosen.decode(codes, torch.from_numpy(encoded.row_max), classes).numpy()
    assert decoded.dtype == np.float32
    assert decoded.shape == logits.shape
    # Where the range of float32 is left, the lowest code plus the maximum is what remains.
    assert np.isfinite(decoded).all()
    assert np.array_equal(decoded.max(axis=1), encoded.row_max)
    assert restore_encoding(chosen.describe()) == chosen
    for row in range(len(logits)):
        alone = chosen.encode(torch.from_numpy(logits[row : row + 1].copy()))
        if chosen.full:
            assert np.array_equal(alone.codes[0], encoded.codes[row])


@given(st.one_of(st.none(), st.integers(1, 9)), ROWS)
@example(9, np.array([[0, -65504, -65488, -1e38]], np.float32))
@example(1, np.array([[0, -65504, -49152, -1e38]], np.float32))
@settings(max_examples=200, deadline=None)
def test_rounded_halves_are_within_half_a_step(bits: int | None, logits: np.ndarray) -> None:
    chosen = get_encoding("fp16" if bits is None else f"fp16r{bits}")
    kept = 10 if bits is None else bits
    exact = np.maximum(shifted(logits), -(2 - 2.0**-kept) * 2**15).astype(np.float64)
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-30)))
    bound = 2.0 ** (exponent - kept - 1) + np.where(np.abs(exact) < 2.0**-14, 2.0**-25, 0)
    found = differences(chosen, logits)
    assert (np.abs(found - exact) <= bound).all()
    for row, coded in zip(logits, found, strict=True):
        assert (np.diff(coded[np.argsort(row, kind="stable")]) >= 0).all()
        top, second = np.sort(row.astype(np.float64))[::-1][:2]
        if top - second > 1e-3:
            assert coded.argmax() == row.argmax()


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_single_precision_keeps_the_differences(logits: np.ndarray) -> None:
    lowest = np.finfo(np.float32).min
    assert np.array_equal(differences(get_encoding("fp32"), logits), np.maximum(shifted(logits), lowest))


def bounds(bits: int, temperature: float) -> np.ndarray:
    """Return the ends of every level, ``levels + 1``."""
    levels = 2**bits
    inner = 2 * temperature * np.log((np.arange(levels - 1) + 0.5) / (levels - 1))
    return np.array([-np.inf, *inner, 0.0])


@given(st.integers(2, 8), TEMPERATURES, ROWS, ROWS)
@settings(max_examples=200, deadline=None)
def test_square_roots_stay_in_their_level(bits: int, temperature: float, logits: np.ndarray, pilot: np.ndarray) -> None:
    ends = bounds(bits, temperature)
    near = 1e-6 * temperature
    exact = shifted(logits).astype(np.float64)
    for chosen in (
        get_encoding(f"sqrtp{bits}@{temperature:g}"),
        get_encoding(f"sqrtp{bits}@{temperature:g}").calibrate(torch.from_numpy(pilot)),
    ):
        codes = chosen.encode(torch.from_numpy(logits)).codes
        assert (codes.max(axis=1) == 2**bits - 1).all()
        found = differences(chosen, logits)
        for values in (exact, found):
            slack = near + 1e-6 * np.abs(np.where(np.isfinite(values), values, 0))
            assert (values >= ends[codes] - slack).all()
            assert (values <= ends[codes.astype(int) + 1] + slack).all()
        table = np.array(chosen.describe()["table"])
        assert (np.diff(table) >= 0).all()
        margin = -2 * temperature * np.log(1 - 0.5 / (2**bits - 1)) * (1 + 1e-6)
        for row, coded in zip(exact, found, strict=True):
            if -np.sort(row)[-2] > margin:
                assert coded.argmax() == row.argmax()


@given(st.integers(2, 8), TEMPERATURES, ROWS, ROWS)
@settings(max_examples=200, deadline=None)
def test_tails_keep_their_mass(bits: int, temperature: float, logits: np.ndarray, pilot: np.ndarray) -> None:
    chosen = get_encoding(f"tailp{bits}@{temperature:g}").calibrate(torch.from_numpy(pilot))
    levels = get_encoding(f"sqrtp{bits}@{temperature / 2:g}").encode(torch.from_numpy(logits)).codes
    codes = chosen.encode(torch.from_numpy(logits)).codes
    assert np.array_equal(codes[:, :-1], levels)
    found, exact = differences(chosen, logits) / temperature, shifted(logits).astype(np.float64) / temperature
    for row, coded, level in zip(exact, found, levels, strict=True):
        assert len(set(coded[level == 0])) <= 1
        mass = np.exp(row[level == 0]).sum()
        if mass > np.exp(-31) * (level == 0).sum():
            assert abs(np.log(np.exp(coded[level == 0]).sum() / mass)) <= 1 / 16 + 1e-5


@given(st.integers(1, 3), ROWS)
@settings(max_examples=200, deadline=None)
def test_the_largest_are_kept_and_the_rest_share_what_is_left(k: int, logits: np.ndarray) -> None:
    found = differences(get_encoding(f"topk{k}"), logits)
    exact = np.maximum(shifted(logits), -65504).astype(np.float64)
    for row, coded in zip(exact, found, strict=True):
        order = np.argsort(coded, kind="stable")[::-1]
        kept = np.sort(row)[::-1][:k]
        assert np.abs(coded[order][:k] - kept).max() <= np.abs(kept).max() * 2.0**-11 + 2.0**-25
        # The rest may tie with the largest: its mean is rounded, and one of it is lower by that times their number.
        assert row[coded.argmax()] >= -(len(row) - k) * 2.0**-22
        rest = np.sort(row)[::-1][k:]
        mean = rest[0] + np.log(np.mean(np.exp(rest - rest[0])))
        tail = coded[order][k:]
        assert (tail == tail[0]).all()
        assert tail[0] == pytest.approx(mean, rel=2.0**-10, abs=1e-5)
        p = np.exp(coded - coded.max()) / np.exp(coded - coded.max()).sum()
        assert (p >= 0).all()
        assert p.sum() == pytest.approx(1)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Draw logits, logits near them, and two ways to cut them into blocks."""
    rows = draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    scale = draw(st.sampled_from([0.0, 1e-4, 1.0, 100.0]))
    logits = 5 * torch.randn(rows, 6, generator=generator)
    cuts = [draw(st.lists(st.integers(0, rows), max_size=4)) for _ in range(2)]
    orders = [torch.tensor(draw(st.permutations(range(rows)))) for _ in range(2)]
    return logits, logits + scale * torch.randn(rows, 6, generator=generator), list(zip(cuts, orders, strict=True))


@given(pairs())
@settings(max_examples=60, deadline=None)
def test_fidelity_does_not_depend_on_order_or_grouping(drawn: tuple[torch.Tensor, torch.Tensor, Any]) -> None:
    reference, decoded, ways = drawn
    whole = Fidelity.of(reference, decoded)
    for cuts, order in ways:
        total = Fidelity.none()
        ends = [0, *sorted(cuts), len(reference)]
        for start, stop in pairwise(ends):
            rows = order[start:stop]
            total = Fidelity.of(reference[rows], decoded[rows]) + total
        assert total == whole
        assert total.summary() == whole.summary()
        assert Fidelity.from_json(total.to_json()) == whole
