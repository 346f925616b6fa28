r"""``tailp:BITS,TEMPERATURE``: a byte per class, linear in the tempered probability, and one for the row's tail.

With :math:`d = z - z_{max}`, the temperature :math:`T` and :math:`L = 2^{bits}` levels, the codes are those of
``sqrtp`` at :math:`T_0 = T / 2`,

.. math:: q = \mathrm{round}((L - 1)\, e^{d / T}),

but the classes :math:`R` of level 0 share a value that each row stores. It keeps their mass at temperature T,

.. math:: v = T \log \frac{1}{|R|} \sum_{c \in R} e^{d_c / T},

as a multiple of -T/8. Few levels then suffice, and few levels compress well. The row's maximum, which no distillation
loss depends on, is rounded to bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, ZSTD, Compression, Encoded, Temperature, in_bfloat16, shift
from kdpipe.encoding.kinds.sqrtp import Bits, SqrtP

_STEPS = 8
"""Steps of the tail's value per unit of T."""

_DECODE = (
    "levels = codes[:, :-1]; tail = float32(-tail_step) * float32(codes[:, -1:]); "
    "logits = where(levels == 0, tail, float32(table)[levels]) + row_max"
)


@dataclass(frozen=True)
class TailP:
    """``codes = [level of each class, -8 / T * value of the row's level 0]`` in bytes.

    A logit above level 0 and its decoded value lie in the same level; see ``SqrtP``. The mass of level 0 at
    temperature T is that of the logits within a factor of ``exp(1/16)`` as long as its value is above ``-32 * T``.
    """

    levels: SqrtP
    """The levels, at T0 = T / 2; the table's value of level 0 is not used."""

    @classmethod
    def nominal(cls, bits: int, temperature: float) -> TailP:
        """Return the encoding before calibration."""
        return cls(SqrtP.nominal(bits, temperature / 2))

    @property
    def temperature(self) -> float:
        """The temperature T of the probabilities that are quantized."""
        return 2 * self.levels.temperature

    @property
    def name(self) -> str:
        """Such as ``tailp6@8``."""
        return f"tailp{self.levels.bits}@{self.temperature:g}"

    @property
    def dtype(self) -> str:
        """One byte for any number of bits."""
        return "uint8"

    @property
    def compression(self) -> Compression:
        """Zstd without a shuffle."""
        return ZSTD

    @property
    def max_temperature(self) -> float:
        """2 T: there, as measured, a tail with the right mass lowers the KL by a quarter at most."""
        return 2 * self.temperature

    @property
    def full(self) -> bool:
        """True: there is a code for every class."""
        return True

    def width(self, classes: int) -> int:
        """Return the number of classes plus one for the tail."""
        return classes + 1

    def calibrate(self, logits: torch.Tensor) -> TailP:
        """Fit the levels' values to a pilot of logits; see ``SqrtP.calibrate``."""
        return TailP(self.levels.calibrate(logits))

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``."""
        shifted, row_max = shift(logits, lowest=-math.inf)
        return Encoded(self._codes(shifted).cpu().numpy(), in_bfloat16(row_max))

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode to float32 ``(n, classes)``."""
        levels = codes[:, :classes]
        logits = self.levels.decode(levels, torch.zeros_like(row_max), classes)
        tail = codes[:, classes:].to(torch.float32).mul_(-self.temperature / _STEPS)
        return torch.where(levels == 0, tail, logits).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows have invalid levels, a tail without a class in it, or the reverse."""
        levels, tail = codes[:, :classes], codes[:, classes]
        return self.levels.invalid(levels, classes) | ((levels.amin(dim=1) == 0) != (tail > 0))

    def describe(self) -> dict[str, JsonValue]:
        """Return the table, the tail's step and the formula."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "bits": self.levels.bits,
            "temperature": self.temperature,
            "table": list(self.levels.table),
            "tail_step": self.temperature / _STEPS,
            "decode": _DECODE,
        }

    def restored(self, description: Mapping[str, Any]) -> TailP:
        """Return the encoding with the table of a description; see ``SqrtP.restored``."""
        return TailP(self.levels.restored(description))

    def _codes(self, shifted: torch.Tensor) -> torch.Tensor:
        levels = self.levels.quantize(shifted)
        others = levels == 0
        mass = shifted.double().div_(self.temperature).masked_fill_(~others, -math.inf).exp_().sum(dim=1)
        count = others.sum(dim=1)
        tail = (-_STEPS * (mass / count).log()).round_().clamp_(max=255).masked_fill_(count == 0, 0)
        return torch.cat([levels, tail.to(torch.uint8)[:, None]], dim=1)


@ENCODINGS.register("tailp")
def tailp(bits: Bits, temperature: Temperature) -> TailP:
    """A byte per class, uniform in the probability at a temperature, and one for the tail; serves up to twice it."""
    return TailP.nominal(bits, temperature)
