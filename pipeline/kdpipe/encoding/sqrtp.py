r"""``sqrtp<bits>@T0``: one byte per class, in uniform steps of the square root of the tempered probability.

With :math:`d = z - z_{max}` and :math:`L = 2^{bits}` levels,

.. math:: q = \mathrm{round}((L - 1)\, e^{d / (2 T_0)}).

KL between near distributions is about :math:`2 \sum (\Delta \sqrt{p})^2`, so a uniform step in
:math:`\sqrt{p}` at temperature :math:`T_0` is its natural quantiser, and a good one below :math:`T_0`. Above, the
classes that share level 0 matter and are no longer told apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import LZ4, Compression, Encoded, shift

_LOWEST = -600.0
"""Smallest ``d / T0`` that is told from minus infinity; ``exp`` of it is still a normal float64."""


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
    """T0."""
    table: tuple[float, ...]
    """``levels`` logit differences by code, exact in float32, not decreasing, the last zero."""

    @classmethod
    def nominal(cls, bits: int, temperature: float) -> SqrtP:
        """Return the encoding before calibration: each level decodes to its centre, level 0 as if it were 0.25."""
        return cls(bits, temperature, _exact(_inverse(np.maximum(np.arange(2.0**bits), 0.25), bits, temperature)))

    @property
    def name(self) -> str:
        """``sqrtp<bits>@<T0>``."""
        return f"sqrtp{self.bits}@{self.temperature:g}"

    @property
    def dtype(self) -> str:
        """One byte, whatever the number of bits; the unused ones cost nothing once compressed."""
        return "uint8"

    @property
    def compression(self) -> Compression:
        """The fast one."""
        return LZ4

    @property
    def max_temperature(self) -> float:
        """T0."""
        return self.temperature

    @property
    def full(self) -> bool:
        """Every class has its code."""
        return True

    def width(self, classes: int) -> int:
        """One code per class."""
        return classes

    def calibrate(self, logits: torch.Tensor) -> SqrtP:
        r"""Fit the table to a pilot of logits: the value per level that minimises the expected KL at T0.

        The KL of a row changes with the value :math:`v_l` of level :math:`l` as the mass that the decoded row gives
        the level minus the mass that it had. Setting the mean over the pilot to zero, with each row's normaliser
        :math:`Z` taken as unchanged, gives the tempered mean

        .. math:: v_l = T_0 \log \frac{\sum e^{d/T_0} / Z}{\sum 1 / Z}

        over the pilot's logits in the level. It lies within the level, so the table does not decrease. Levels
        without a logit keep their nominal value, which lies within the level too.
        """
        pilot = logits.detach().cpu()
        codes = self.quantise(shift(pilot, lowest=-math.inf)[0]).flatten().numpy()
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
        return Encoded(self.quantise(shifted).to(torch.uint8).cpu().numpy(), row_max.cpu().numpy())

    def quantise(self, shifted: torch.Tensor) -> torch.Tensor:
        """Return the uint8 levels of float32 logits minus their row's maximum."""
        bounds = torch.tensor(_bounds(self.bits, self.temperature), dtype=torch.float32, device=shifted.device)
        return torch.bucketize(shifted, bounds, out_int32=True, right=True).to(torch.uint8)

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Decode to float32 ``(n, classes)`` by looking codes up in the table."""
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        values: torch.Tensor = table.index_select(0, codes.flatten().to(torch.int32))
        return values.reshape(codes.shape).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Rows without the largest code, or with one beyond the table."""
        return torch.from_numpy(codes.cpu().numpy().max(axis=1) != 2**self.bits - 1)

    def describe(self) -> dict[str, JsonValue]:
        """Return the table and how to use it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "bits": self.bits,
            "temperature": self.temperature,
            "table": list(self.table),
            "decode": "float32(table)[codes] + row_max",
        }


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
