"""Half-precision codes of shifted logits: how far they are from the logits, and what they keep exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.registry import get_encoding
from kdpipe.testing.encodings import EncodingSuite

FP16 = get_encoding("fp16")
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.one_of(
        st.floats(-30, 30, width=32),
        st.floats(-7e4, 7e4, width=32),
        st.floats(-(2.0**127), 2.0**127, width=32),
    ),
)


def round_trip(logits: torch.Tensor) -> torch.Tensor:
    encoded = FP16.encode(logits)
    return FP16.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), logits.shape[1])


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_error_is_at_most_half_a_step(logits: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        shifted = np.maximum(logits - logits.max(axis=1, keepdims=True), np.float32(-65504))
    # Ten bits of mantissa; numbers below 2^-14 all have its step.
    exponent = np.floor(np.log2(np.maximum(np.abs(shifted.astype(np.float64)), 2.0**-14)))
    half_step = 2.0 ** (exponent - 11)
    encoded = FP16.encode(torch.from_numpy(logits.copy()))
    assert encoded.codes.dtype == np.float16
    assert encoded.codes.shape == logits.shape
    assert encoded.row_max.dtype == np.float32
    assert encoded.row_max.shape == logits.shape[:1]
    error = np.abs(encoded.codes.astype(np.float64) - shifted.astype(np.float64))
    assert (error <= half_step).all()
    # Adding the maximum back rounds once more, in single precision.
    decoded = round_trip(torch.from_numpy(logits)).numpy()
    target = shifted.astype(np.float64) + logits.max(axis=1, keepdims=True)
    assert (np.abs(decoded - target) <= half_step + np.spacing(np.abs(decoded)) / 2).all()


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_the_row_maximum_is_exact(logits: np.ndarray) -> None:
    decoded = round_trip(torch.from_numpy(logits))
    assert np.array_equal(decoded.numpy().max(axis=1), logits.max(axis=1))
    assert np.array_equal(FP16.encode(torch.from_numpy(logits)).row_max, logits.max(axis=1))


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_the_order_is_kept_and_the_top_class_when_it_stands_out(logits: np.ndarray) -> None:
    codes = FP16.encode(torch.from_numpy(logits)).codes
    for row, coded in zip(logits, codes, strict=True):
        assert (np.diff(coded[np.argsort(row, kind="stable")]) >= 0).all()
        top, second = np.sort(row)[::-1][:2] if len(row) > 1 else (1.0, 0.0)
        if float(top) - float(second) > 1e-3:
            assert coded.argmax() == row.argmax()
            assert (coded == 0).sum() == 1


class TestDense(EncodingSuite):
    @pytest.fixture(params=["fp32", "fp16", "fp16r9", "fp16r3", "fp16r1"])
    def encoding(self, request: pytest.FixtureRequest) -> Encoding:
        return get_encoding(request.param)

    def error_bound(self, encoding: Encoding, shifted: torch.Tensor) -> torch.Tensor:
        if encoding.name == "fp32":
            return torch.zeros_like(shifted)
        bits = int(encoding.name.partition("r")[2] or 10)
        exponent = shifted.abs().clamp(min=2.0**-30).log2().floor()
        return 2.0 ** (exponent - bits - 1) + torch.where(shifted.abs() < 2.0**-14, 2.0**-25, 0.0)


def kl(logits: torch.Tensor, approximate: torch.Tensor, *, temperature: float) -> float:
    p = (logits.double() / temperature).log_softmax(dim=1)
    q = (approximate.double() / temperature).log_softmax(dim=1)
    return float((p.exp() * (p - q)).sum(dim=1).mean())


@pytest.mark.parametrize(("temperature", "limit"), [(1.0, 1e-6), (4.0, 1e-6)])
def test_kl_is_tiny_over_a_thousand_classes(temperature: float, limit: float) -> None:
    logits = 3 * torch.randn(256, 1000, generator=torch.Generator().manual_seed(0))
    shifted = kl(logits, round_trip(logits), temperature=temperature)
    assert 0 <= shifted < limit


def test_shifting_beats_a_plain_cast_of_large_logits() -> None:
    logits = 2 * torch.randn(256, 1000, generator=torch.Generator().manual_seed(0)) + 30
    plain = kl(logits, logits.half().float(), temperature=1)
    assert kl(logits, round_trip(logits), temperature=1) < plain / 5


@pytest.mark.parametrize("bits", range(1, 10))
def test_rounding_is_to_the_nearest_even(bits: int) -> None:
    step = 2.0**-bits
    quarters = torch.arange(1, 4 * 2**bits, dtype=torch.float32) * (-step / 4) - 1
    logits = torch.cat([torch.zeros(1), quarters])[None]
    codes = get_encoding(f"fp16r{bits}").encode(logits).codes[0, 1:].astype(np.float64)
    below = quarters > -2
    expected = np.rint(quarters.numpy().astype(np.float64) / step) * step
    assert np.array_equal(codes[below], expected[below])


def test_fewer_bits_leave_zeros() -> None:
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    for bits in range(1, 10):
        words = get_encoding(f"fp16r{bits}").encode(logits).codes.view(np.uint16)
        assert (words & ((1 << (10 - bits)) - 1) == 0).all()


def test_rounding_down_does_not_leave_the_range() -> None:
    logits = torch.tensor([[0.0, -65_504.0, -1e30]])
    for bits in range(1, 10):
        codes = get_encoding(f"fp16r{bits}").encode(logits).codes
        assert codes[0, 1:].tolist() == [-(2 - 2.0**-bits) * 2**15] * 2


def test_rows_that_no_encoder_writes_are_found() -> None:
    codes = torch.tensor([[0, -1], [-1, 0], [-1, -1], [1, 0], [0, float("nan")], [0, -float("inf")]]).half()
    assert FP16.invalid(codes, 2).tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(("rows", "classes"), [(256, 1_000), (3, 40_000), (1_100, 1_000)])
def test_a_batch_is_decoded_alike_by_any_number_of_threads(rows: int, classes: int) -> None:
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(0)) * 9
    encoded = FP16.encode(logits)
    expected = encoded.codes.astype(np.float32) + encoded.row_max[:, None]
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            decoded = FP16.decode(torch.from_numpy(encoded.codes), torch.from_numpy(encoded.row_max), classes)
            assert np.array_equal(decoded.numpy(), expected)
    finally:
        torch.set_num_threads(threads)
