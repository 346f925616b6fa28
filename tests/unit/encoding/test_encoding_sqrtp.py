"""Bytes in steps of the square root of probability: closed forms, calibration, damage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.kinds.sqrtp import SqrtP
from kdpipe.encoding.registry import get_encoding
from kdpipe.testing.encodings import EncodingSuite, decoded


def pilot(rows: int = 512, classes: int = 50) -> torch.Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(3))


def level_widths(shifted: torch.Tensor, bits: int, temperature: float) -> torch.Tensor:
    """Return the width of the level of each logit, infinite for level 0; of logits at an end, the wider level's."""
    inner = 2 * temperature * ((torch.arange(2**bits - 1, dtype=torch.float64) + 0.5) / (2**bits - 1)).log()
    ends = torch.cat([torch.tensor([-math.inf]), inner, torch.zeros(1)])
    below, above = (torch.bucketize(shifted + off, inner) for off in (-1e-6, 1e-6))
    return ends.diff()[below].maximum(ends.diff()[above])


class TestSqrtP(EncodingSuite):
    @pytest.fixture(params=[(2, 1.0), (5, 0.5), (8, 4.0)], ids=str)
    def encoding(self, request: pytest.FixtureRequest) -> SqrtP:
        return SqrtP.nominal(*request.param)

    def error_bound(self, encoding: SqrtP, shifted: torch.Tensor) -> torch.Tensor:
        return level_widths(shifted, encoding.bits, encoding.temperature)


@pytest.mark.parametrize(("bits", "temperature"), [(2, 1.0), (5, 0.5), (8, 4.0)])
def test_codes_are_rounded_square_roots(bits: int, temperature: float) -> None:
    logits = pilot()
    shifted = (logits - logits.amax(dim=1, keepdim=True)).double().numpy()
    exact = (2**bits - 1) * np.exp(shifted / (2 * temperature))
    codes = SqrtP.nominal(bits, temperature).encode(logits).codes
    assert np.abs(codes - exact).max() <= 0.5 + 1e-4
    sure = np.abs(exact % 1 - 0.5) > 1e-4
    assert np.array_equal(codes[sure], np.rint(exact[sure]))


def test_the_nominal_table_inverts_the_formula() -> None:
    table = np.array(SqrtP.nominal(2, 4.0).table)
    assert table == pytest.approx(8 * np.log(np.array([0.25, 1, 2, 3]) / 3))
    assert table[-1] == 0
    assert np.array_equal(table.astype(np.float32), table)


def test_calibration_by_hand() -> None:
    # Two levels below the top are met: 2 by one logit, 0 by two of rows with different normalizers.
    logits = torch.tensor([[0.0, -1.0, -8.0], [0.0, -6.0, -50.0]])
    fitted = SqrtP.nominal(2, 1.0).calibrate(logits)
    assert fitted.encode(logits).codes.tolist() == [[3, 2, 0], [3, 0, 0]]
    weights = 1 / np.exp(logits.double().numpy()).sum(axis=1)
    level_0 = (weights[0] * np.exp(-8) + weights[1] * (np.exp(-6) + np.exp(-50))) / (weights[0] + 2 * weights[1])
    assert fitted.table == pytest.approx((np.log(level_0), 2 * np.log(1 / 3), -1.0, 0.0))


def test_calibration_lowers_the_divergence_at_its_temperature() -> None:
    fitting, held_out = pilot(128, 1000)[::2], pilot(128, 1000)[1::2]
    nominal = SqrtP.nominal(4, 1.0)
    fitted = nominal.calibrate(fitting)
    assert float(kl(held_out, decoded(fitted, held_out), 1).mean()) < 0.9 * float(
        kl(held_out, decoded(nominal, held_out), 1).mean()
    )


def test_calibration_does_not_move_codes_and_repeats() -> None:
    nominal = SqrtP.nominal(6, 2.0)
    fitted = nominal.calibrate(pilot())
    assert np.array_equal(fitted.encode(pilot()).codes, nominal.encode(pilot()).codes)
    assert nominal.calibrate(pilot()) == fitted == fitted.calibrate(pilot())
    assert fitted != nominal


def test_a_pilot_far_below_any_probability_gives_a_finite_table() -> None:
    logits = torch.tensor([[0.0, -(2.0**127), -1e30]])
    assert np.isfinite(SqrtP.nominal(8, 0.5).calibrate(logits).table).all()


def test_a_higher_temperature_than_its_own_suffers() -> None:
    logits = pilot()
    low, high = (SqrtP.nominal(8, temperature).calibrate(logits) for temperature in (1.0, 4.0))
    assert float(kl(logits, decoded(low, logits), 4).mean()) > 10 * float(kl(logits, decoded(high, logits), 4).mean())


def test_rows_that_no_encoder_writes_are_found() -> None:
    chosen = get_encoding("sqrtp4@4")
    codes = torch.tensor([[15, 0, 3], [0, 0, 0], [14, 3, 2], [16, 15, 0], [15, 15, 15]], dtype=torch.uint8)
    assert chosen.invalid(codes, 3).tolist() == [False, True, True, True, False]
