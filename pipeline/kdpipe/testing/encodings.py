"""A test suite that every encoding of logits must pass.

    class TestMine(EncodingSuite):
        @pytest.fixture
        def encoding(self) -> Encoding:
            return get_encoding("mine:8")

        def error_bound(self, encoding: Encoding, shifted: Tensor) -> Tensor:
            return torch.full_like(shifted, 0.1)

pytest collects the suite's tests for the encoding that the fixture returns, before calibration. It must be registered,
see ``kdpipe.encoding.base``.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.fidelity import kl
from kdpipe.encoding.registry import get_encoding, restore_encoding
from kdpipe.errors import CorruptStoreError, DivergedError
from kdpipe.store.plan import Plan
from kdpipe.store.reader import open_store
from kdpipe.store.verify import verify_deep, verify_files
from kdpipe.store.writer import build
from kdpipe.testing.stores import TRAIN, all_shards, random_logits, shard_logits, small_plan, small_store

CLASSES = 12
"""Classes of the suite's logits."""


def normal_logits(rows: int = 64, *, seed: int = 0, spread: float = 3.0) -> Tensor:
    """Return normal logits, float32 ``(rows, CLASSES)``; equal arguments give equal logits."""
    return spread * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed))


def decoded(encoding: Encoding, logits: Tensor) -> Tensor:
    """Return ``logits`` encoded and decoded, float32 ``(n, classes)``."""
    encoded = encoding.encode(logits)
    return encoding.decode(*encoded.tensors(), logits.shape[1])


class EncodingSuite:
    """The properties that ``Encoding`` promises; subclasses define the fixture ``encoding`` and ``error_bound``."""

    row_max_error = 0.0
    """Largest relative error of the row maximum: 2^-8 if it is rounded to bfloat16."""

    fits_codes = False
    """Whether calibration changes the codes, and not only the values that they decode to."""

    def error_bound(self, encoding: Encoding, shifted: Tensor) -> Tensor:
        """Return the largest error of each decoded logit, infinite for none, like ``shifted``.

        ``shifted`` are logits minus their row maximum, float64 ``(n, classes)``. The error of the row maximum is not
        part of it.
        """
        raise NotImplementedError

    @pytest.fixture(params=["nominal", "calibrated"])
    def either(self, encoding: Encoding, request: pytest.FixtureRequest) -> Encoding:
        """Return the encoding before and after calibration."""
        return encoding.calibrate(normal_logits(seed=1)) if request.param == "calibrated" else encoding

    def test_the_name_stands_for_the_encoding(self, encoding: Encoding) -> None:
        """``get_encoding`` returns an equal encoding for the canonical name, of at most 64 characters."""
        again = get_encoding(encoding.name)
        assert again == encoding
        assert hash(again) == hash(encoding)
        assert again.name == encoding.name
        assert len(encoding.name) <= 64

    def test_the_description_restores_the_encoding(self, either: Encoding) -> None:
        """The description is plain JSON, has name and dtype, and restores an equal encoding, calibration included."""
        described = either.describe()
        assert described["name"] == either.name
        assert described["dtype"] == either.dtype == np.dtype(either.dtype).name
        read = json.loads(json.dumps(described, allow_nan=False))
        assert read == described
        assert restore_encoding(read) == either

    def test_a_wrong_description_is_refused(self, either: Encoding) -> None:
        """Descriptions with a missing, unknown or changed entry raise ``CorruptStoreError``."""
        described = either.describe()
        wrong = [{key: value for key, value in described.items() if key != left_out} for left_out in described]
        wrong += [{**described, key: None} for key in described] + [{**described, "unknown": 1}]
        for description in wrong:
            with pytest.raises(CorruptStoreError):
                restore_encoding(description)

    def test_calibration_repeats_and_changes_values_only(self, encoding: Encoding) -> None:
        """Equal pilots give equal encodings with the name and layout (and codes, unless they are fitted) of before."""
        pilot, logits = normal_logits(seed=1), normal_logits()
        fitted = encoding.calibrate(pilot)
        assert fitted == encoding.calibrate(pilot)
        for attribute in ("name", "dtype", "compression", "max_temperature", "full"):
            assert getattr(fitted, attribute) == getattr(encoding, attribute)
        assert fitted.width(CLASSES) == encoding.width(CLASSES)
        assert self.fits_codes or np.array_equal(fitted.encode(logits).codes, encoding.encode(logits).codes)

    def test_codes_have_the_declared_shape(self, either: Encoding) -> None:
        """Codes are ``(n, width)`` of the declared dtype, row maxima float32 ``(n,)``."""
        for rows in (1, 64):
            encoded = either.encode(normal_logits(rows))
            assert encoded.codes.shape == (rows, either.width(CLASSES))
            assert encoded.codes.dtype == either.dtype
            assert encoded.row_max.shape == (rows,)
            assert encoded.row_max.dtype == np.float32

    def test_the_error_is_within_the_bound(self, either: Encoding) -> None:
        """Every decoded logit is within ``error_bound``, and the row maximum within ``row_max_error``."""
        for spread in (0.01, 3.0, 30.0):
            logits = normal_logits(spread=spread)
            encoded = either.encode(logits)
            largest = logits.double().amax(dim=1)
            row_max = torch.from_numpy(encoded.row_max)
            assert ((row_max - largest).abs() <= self.row_max_error * largest.abs()).all()
            zeros = torch.zeros_like(row_max)
            values = either.decode(torch.from_numpy(encoded.codes), zeros, CLASSES).double()
            shifted = (logits - logits.amax(dim=1, keepdim=True)).double()
            bound = self.error_bound(either, shifted)
            assert ((values - shifted).abs() <= bound * (1 + 1e-6) + 1e-6).all()

    def test_the_largest_decoded_logit_is_the_row_maximum(self, either: Encoding) -> None:
        """Decoded rows are finite float32, and their largest value equals ``row_max``."""
        for logits in (normal_logits(), normal_logits(spread=1e4), normal_logits(spread=1e-6)):
            encoded = either.encode(logits)
            values = either.decode(*encoded.tensors(), CLASSES)
            assert values.dtype == torch.float32
            assert values.shape == logits.shape
            assert values.isfinite().all()
            assert np.array_equal(values.amax(dim=1).numpy(), encoded.row_max)

    def test_extreme_logits_decode_to_finite_values(self, either: Encoding) -> None:
        """Logits near the bounds of float32 decode to finite values, with codes that are valid."""
        logits = torch.zeros(3, CLASSES)
        logits[0, 0], logits[1, 0], logits[2] = -(2.0**126), 2.0**126, -(2.0**126)
        assert decoded(either, logits).isfinite().all()
        assert not either.invalid(torch.from_numpy(either.encode(logits).codes), CLASSES).any()

    def test_equal_logits_stay_equal(self, either: Encoding) -> None:
        """The decoded values of a row of equal logits are equal."""
        values = decoded(either, torch.tensor([0.0, 2.5, -7.25, 1000.0])[:, None].repeat(1, CLASSES))
        assert (values == values[:, :1]).all()

    def test_a_row_depends_on_nothing_else(self, either: Encoding) -> None:
        """Rows have equal codes and decoded values alone, in another order, and among other rows."""
        logits = normal_logits()
        order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
        whole, reordered = either.encode(logits), either.encode(logits[order])
        assert np.array_equal(reordered.codes, whole.codes[order.numpy()])
        assert np.array_equal(reordered.row_max, whole.row_max[order.numpy()])
        assert torch.equal(decoded(either, logits[order]), decoded(either, logits)[order])
        for row in range(8):
            assert np.array_equal(either.encode(logits[row : row + 1]).codes[0], whole.codes[row])

    def test_valid_codes_are_told_from_holes(self, either: Encoding) -> None:
        """Written codes are valid; rows of the fill value (NaN for floats, else 0) are not."""
        equal = torch.full((4, CLASSES), 2.5)
        for logits in (normal_logits(), normal_logits(spread=100), equal):
            codes = torch.from_numpy(either.encode(logits).codes)
            assert not either.invalid(codes, CLASSES).any()
            hole = torch.full_like(codes, math.nan) if codes.is_floating_point() else torch.zeros_like(codes)
            assert either.invalid(hole, CLASSES).all()

    def test_arguments_are_left_alone(self, either: Encoding) -> None:
        """Encoding changes neither the logits nor torch's generator, and accepts tensors of inference mode."""
        logits, state = normal_logits(), torch.get_rng_state()
        either.encode(logits)
        either.calibrate(logits)
        assert torch.equal(logits, normal_logits())
        assert torch.equal(state, torch.get_rng_state())
        with torch.inference_mode():
            inferred = normal_logits()
        assert np.array_equal(either.encode(inferred).codes, either.encode(logits).codes)

    def test_lower_temperatures_are_served(self, encoding: Encoding) -> None:
        """KL is finite and not negative at every temperature up to ``max_temperature``."""
        highest = encoding.max_temperature or 16.0
        assert highest > 0
        logits = normal_logits(256)
        fitted = encoding.calibrate(normal_logits(256, seed=1))
        for temperature in (highest / 4, highest / 2, highest):
            loss = kl(logits, decoded(fitted, logits), temperature)
            assert loss.isfinite().all()
            assert (loss >= 0).all()

    def test_a_store_returns_the_decoded_logits(self, encoding: Encoding, tmp_path: Path) -> None:
        """A store of the encoding is sealed, verified and read to the values that ``decode`` returns."""
        fitted = encoding.calibrate(normal_logits(seed=1))
        small_store(tmp_path / "a.zarr", _plan(fitted))
        assert verify_files(tmp_path / "a.zarr") == verify_deep(tmp_path / "a.zarr") == []
        store = open_store(tmp_path / "a.zarr")
        assert store.encoding == fitted
        for view in range(store.num_views + 1):
            logits = random_logits("train", view, samples=TRAIN, classes=CLASSES)
            assert np.array_equal(store.plane(view), decoded(fitted, torch.from_numpy(logits)).numpy())

    def test_a_store_refuses_logits_that_are_not_finite(self, encoding: Encoding, tmp_path: Path) -> None:
        """NaN and infinity raise ``DivergedError`` before anything of the shard is written."""
        plan = _plan(encoding)
        for number, value in enumerate((math.nan, math.inf, -math.inf)):
            with build(tmp_path / f"{number}.zarr", plan) as builder:
                shard = all_shards(builder)[0]
                logits = shard_logits(builder, shard)
                logits[1, 2] = value
                builder.submit(shard, logits)
                with pytest.raises(DivergedError, match="not finite"):
                    builder.drain()
                assert not builder.is_done(shard)


def _plan(encoding: Encoding) -> Plan:
    return replace(small_plan(classes=CLASSES, encoding=encoding.name), calibrated=encoding)
