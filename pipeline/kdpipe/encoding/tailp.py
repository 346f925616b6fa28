r"""``tailp<bits>@T``: a byte per class, linear in the tempered probability, and one that gives each row its tail.

With :math:`d = z - z_{max}` and :math:`L = 2^{bits}` levels, the codes are those of ``sqrtp`` at :math:`T_0 = T / 2`,

.. math:: q = \mathrm{round}((L - 1)\, e^{d / T}),

but the classes :math:`R` of level 0 do not share one value for the whole store. Each row keeps the one that gives them
their mass at temperature T,

.. math:: v = T \log \frac{1}{|R|} \sum_{c \in R} e^{d_c / T},

as a multiple of -T/8. Few levels then go a long way, and few levels compress well. The row's maximum, which no loss of
distillation depends on, is kept in the precision of bfloat16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ZSTD, Compression, Encoded, shift
from kdpipe.encoding.sqrtp import SqrtP

_STEPS = 8
"""Steps of the tail's value per T."""

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
    """At T0 = T / 2; its value of level 0 is not used."""

    @classmethod
    def nominal(cls, bits: int, temperature: float) -> TailP:
        """Return the encoding before calibration."""
        return cls(SqrtP.nominal(bits, temperature / 2))

    @property
    def temperature(self) -> float:
        """T."""
        return 2 * self.levels.temperature

    @property
    def name(self) -> str:
        """``tailp<bits>@<T>``."""
        return f"tailp{self.levels.bits}@{self.temperature:g}"

    @property
    def dtype(self) -> str:
        """One byte, whatever the number of bits."""
        return "uint8"

    @property
    def compression(self) -> Compression:
        """The one that counts bytes."""
        return ZSTD

    @property
    def max_temperature(self) -> float:
        """2 T: there, a tail with the right mass would lower the KL by a quarter at most, as measured."""
        return 2 * self.temperature

    @property
    def full(self) -> bool:
        """Every class has its code."""
        return True

    def width(self, classes: int) -> int:
        """One code per class and one for the tail."""
        return classes + 1

    def calibrate(self, logits: torch.Tensor) -> TailP:
        """Fit the levels' values to a pilot of logits; see ``SqrtP.calibrate``."""
        return TailP(self.levels.calibrate(logits))

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``."""
        shifted, row_max = shift(logits, lowest=-math.inf)
        codes = self._codes(shifted)
        limit = torch.finfo(torch.bfloat16).max
        near = row_max.clamp(-limit, limit).to(torch.bfloat16).to(torch.float32)
        return Encoded(codes.cpu().numpy(), near.cpu().numpy())

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode to float32 ``(n, classes)``."""
        levels = codes[:, :classes]
        logits = self.levels.decode(levels, torch.zeros_like(row_max), classes)
        tail = codes[:, classes:].to(torch.float32).mul_(-self.temperature / _STEPS)
        return torch.where(levels == 0, tail, logits).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Rows whose levels are not those of ``sqrtp``, or that have a tail and no class in it, or the reverse."""
        levels, tail = codes[:, :classes], codes[:, classes]
        return self.levels.invalid(levels, classes) | ((levels.amin(dim=1) == 0) != (tail > 0))

    def describe(self) -> dict[str, JsonValue]:
        """Return the table, the step and how to use them."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "bits": self.levels.bits,
            "temperature": self.temperature,
            "table": list(self.levels.table),
            "tail_step": self.temperature / _STEPS,
            "decode": _DECODE,
        }

    def _codes(self, shifted: torch.Tensor) -> torch.Tensor:
        levels = self.levels.quantise(shifted)
        others = levels == 0
        mass = shifted.double().div_(self.temperature).masked_fill_(~others, -math.inf).exp_().sum(dim=1)
        count = others.sum(dim=1)
        tail = (-_STEPS * (mass / count).log()).round_().clamp_(max=255).masked_fill_(count == 0, 0)
        return torch.cat([levels, tail.to(torch.uint8)[:, None]], dim=1)
