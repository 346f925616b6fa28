r"""``sqrtp:BITS,TEMPERATURE``: a byte per class, in uniform steps of the square root of the tempered probability.

With :math:`d = z - z_{max}`, the temperature :math:`T_0` and :math:`L = 2^{bits}` levels,

.. math:: q = \mathrm{round}((L - 1)\, e^{d / (2 T_0)}).

The KL of near distributions is about :math:`2 \sum (\Delta \sqrt{p})^2`, so a uniform step in :math:`\sqrt{p}` at
temperature :math:`T_0` is its natural quantizer, and serves lower temperatures as well. At higher ones, the classes
that share level 0 matter, and their differences are lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, LZ4, Compression, Encoded, Temperature, shift
from kdpipe.errors import CorruptStoreError
from kdpipe.registry import between

Bits = Annotated[int, between(2, 8)]
"""Binary logarithm of the number of levels."""

_LOWEST = -600.0
"""Lower bound of ``d / T0``: its ``exp`` is still a normal float64."""


@dataclass(frozen=True)
class SqrtP:
    """``codes = round((levels - 1) * exp((logits - row_max) / (2 * T0)))``; ``logits = table[codes] + row_max``.

    The largest class always has code ``levels - 1``, which decodes to exactly zero, so no row is all zeros. A logit
    and its decoded value lie in the same level, between ``2 * T0 * log((q - 0.5) / (levels - 1))`` and the
    same of ``q + 0.5``; level 0 has no lower end. The top class stays the top class if it leads by more than
    ``-2 * T0 * log(1 - 0.5 / (levels - 1))``.
    """

    bits: int
    """2 to 8."""
    temperature: float
    """The temperature T0 of the probabilities that are quantized."""
    table: tuple[float, ...]
    """``levels`` logit differences by code, exact in float32, not decreasing, the last zero."""

    @classmethod
    def nominal(cls, bits: int, temperature: float) -> SqrtP:
        """Return the encoding before calibration: each level decodes to its center, level 0 as if it were 0.25."""
        return cls(
            bits, float(temperature), _exact(_inverse(np.maximum(np.arange(2.0**bits), 0.25), bits, temperature))
        )

    @property
    def name(self) -> str:
        """Such as ``sqrtp8@4``."""
        return f"sqrtp{self.bits}@{self.temperature:g}"

    @property
    def dtype(self) -> str:
        """One byte for any number of bits; the unused ones compress to nothing."""
        return "uint8"

    @property
    def compression(self) -> Compression:
        """LZ4 with bitshuffle."""
        return LZ4

    @property
    def max_temperature(self) -> float:
        """T0, the encoding's own temperature."""
        return self.temperature

    @property
    def full(self) -> bool:
        """True: there is a code for every class."""
        return True

    def width(self, classes: int) -> int:
        """Return the number of classes."""
        return classes

    def calibrate(self, logits: torch.Tensor) -> SqrtP:
        r"""Fit the table to a pilot of logits: the value of each level that minimizes the expected KL at T0.

        The derivative of a row's KL by the value :math:`v_l` of level :math:`l` is the level's mass in the decoded row
        minus its mass in the teacher's. Setting its mean over the pilot to zero, with each row's normalizer :math:`Z`
        held fixed, gives the tempered mean

        .. math:: v_l = T_0 \log \frac{\sum e^{d/T_0} / Z}{\sum 1 / Z}

        over the pilot's logits in the level. It lies within the level, so the table does not decrease. Levels
        without a logit keep their nominal value, which lies within the level too.
        """
        pilot = logits.detach().cpu()
        codes = self.quantize(shift(pilot, lowest=-math.inf)[0]).flatten().numpy()
        shifted = (pilot - pilot.amax(dim=1, keepdim=True)).double().div_(self.temperature).clamp_(min=_LOWEST).exp_()
        weight = (1 / shifted.sum(dim=1, keepdim=True)).expand_as(shifted)
        levels = 2**self.bits
        mass = np.bincount(codes, weights=(shifted * weight).flatten().numpy(), minlength=levels)
        count = np.bincount(codes, weights=weight.flatten().numpy(), minlength=levels)
        table = _inverse(np.maximum(np.arange(float(levels)), 0.25), self.bits, self.temperature)
        filled = count > 0
        table[filled] = self.temperature * np.log(mass[filled] / count[filled])
        table[-1] = 0.0
        return SqrtP(self.bits, self.temperature, _exact(table))

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)`` by comparing with the levels' bounds: equal codes on every device."""
        shifted, row_max = shift(logits, lowest=-math.inf)
        return Encoded(self.quantize(shifted).to(torch.uint8).cpu().numpy(), row_max.cpu().numpy())

    def quantize(self, shifted: torch.Tensor) -> torch.Tensor:
        """Return the uint8 levels of float32 logits minus their row's maximum."""
        bounds = torch.tensor(_bounds(self.bits, self.temperature), dtype=torch.float32, device=shifted.device)
        return torch.bucketize(shifted, bounds, out_int32=True, right=True).to(torch.uint8)

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Decode to float32 ``(n, classes)`` by looking codes up in the table."""
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        values: torch.Tensor = table.index_select(0, codes.flatten().to(torch.int32))
        return values.reshape(codes.shape).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Return which rows lack the largest code, or have one beyond the table."""
        return torch.from_numpy(codes.cpu().numpy().max(axis=1) != 2**self.bits - 1)

    def describe(self) -> dict[str, JsonValue]:
        """Return the table and the formula."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "bits": self.bits,
            "temperature": self.temperature,
            "table": list(self.table),
            "decode": "float32(table)[codes] + row_max",
        }

    def restored(self, description: Mapping[str, Any]) -> SqrtP:
        """Return the encoding with the table of a description.

        Raises:
            CorruptStoreError: it is no table of finite float32 values that rise to zero.
        """
        values, levels = description.get("table"), 2**self.bits
        if not isinstance(values, list) or len(values) != levels or not all(type(value) is float for value in values):
            raise CorruptStoreError(f"the table of encoding '{self.name}' is not a list of {levels} floats.")
        limit = float(np.finfo(np.float32).max)
        if not all(math.isfinite(each) and abs(each) <= limit and float(np.float32(each)) == each for each in values):
            raise CorruptStoreError(f"the table of encoding '{self.name}' has values that are not finite float32.")
        if values[-1] != 0 or any(after < before for before, after in pairwise(values)):
            raise CorruptStoreError(f"the table of encoding '{self.name}' does not rise to zero.")
        return replace(self, table=tuple(values))


@ENCODINGS.register("sqrtp")
def sqrtp(bits: Bits, temperature: Temperature) -> SqrtP:
    """A byte per class, uniform in the square root of the probability at a temperature; serves up to it."""
    return SqrtP.nominal(bits, temperature)


@cache
def _bounds(bits: int, temperature: float) -> tuple[float, ...]:
    """Return the lower ends of levels 1 and up as logit differences."""
    return _exact(_inverse(np.arange(2.0**bits - 1) + 0.5, bits, temperature))


def _inverse(level: npt.NDArray[np.float64], bits: int, temperature: float) -> npt.NDArray[np.float64]:
    """Return the logit differences that encode to ``level`` before rounding."""
    differences: npt.NDArray[np.float64] = 2 * temperature * np.log(level / (2**bits - 1))
    return differences


def _exact(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Round to float32, as Python floats."""
    return tuple(values.astype(np.float32).tolist())
