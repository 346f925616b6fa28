"""The suite for encodings finds encodings that break a promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdpipe.encoding.base import Encoded
from kdpipe.encoding.kinds.dense import Dense
from kdpipe.errors import KdpipeError
from kdpipe.testing.encodings import EncodingSuite


class Suite(EncodingSuite):
    def error_bound(self, encoding: Any, shifted: torch.Tensor) -> torch.Tensor:
        return shifted.abs() * 2.0**-11 + 2.0**-25


class Renamed(Dense):
    name = "fp99"  # type: ignore[assignment]


class Biased(Dense):
    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        values = super().decode(codes, row_max, classes)
        return torch.where(codes == 0, values, values + 0.5)


class Batchwise(Dense):
    """Rows that depend on the batch: its first one is left as it is."""

    def encode(self, logits: torch.Tensor) -> Encoded:
        encoded = super().encode(logits)
        codes = encoded.codes.copy()
        codes[1:] = (codes[1:] * 2).astype(codes.dtype)
        return Encoded(codes, encoded.row_max)


class InPlace(Dense):
    def encode(self, logits: torch.Tensor) -> Encoded:
        return super().encode(logits.sub_(1))


class Trusting(Dense):
    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        return torch.zeros(len(codes), dtype=torch.bool)


class Forgetful(Dense):
    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "made": 3.5}


class Infinite(Dense):
    """Logits of a plain cast, without the lowest float as bound."""

    def encode(self, logits: torch.Tensor) -> Encoded:
        row_max = logits.amax(dim=1)
        with np.errstate(over="ignore"):
            codes = (logits - row_max[:, None]).numpy().astype(np.float16)
        return Encoded(codes, row_max.numpy())


class TestSound(Suite):
    """The double that the faulty encodings are made of passes."""

    @pytest.fixture
    def encoding(self) -> Dense:
        return Dense("float16")


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (Renamed, Suite().test_the_name_stands_for_the_encoding),
        (Forgetful, Suite().test_the_description_restores_the_encoding),
        (Biased, Suite().test_the_error_is_within_the_bound),
        (Batchwise, Suite().test_a_row_depends_on_nothing_else),
        (InPlace, Suite().test_arguments_are_left_alone),
        (Trusting, Suite().test_valid_codes_are_told_from_holes),
        (Infinite, Suite().test_extreme_logits_decode_to_finite_values),
    ],
)
def test_a_fault_is_found(faulty: type[Dense], test: Callable[[Dense], None]) -> None:
    with pytest.raises((AssertionError, KdpipeError)):
        test(faulty("float16"))
