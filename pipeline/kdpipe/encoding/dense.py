"""Dense encodings: every logit, minus its row's maximum, in a float of 16 or 32 bits.

The maximum is subtracted in float32 before the cast. The classes that matter then lie near zero, where
floats are dense: the KL of a float16 store at temperature 1 falls about 18 times against a plain cast.
``fp16r<bits>`` keeps fewer bits of the mantissa; the zeros in their place cost nothing once compressed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import LZ4, Compression, Encoded, shift

_FLOAT32_MANTISSA = 23
_LOWEST = 0xFBFF
"""Bits of the lowest finite float16; those of minus infinity and of NaN with a sign are larger."""


@dataclass(frozen=True)
class Dense:
    """``codes = round(logits - row_max)``; ``logits = codes + row_max``.

    The error of a code is at most half a step of its float: ``|logit - row_max| * 2^-(bits + 1)`` with ``bits``
    of mantissa, and 2^-25 more below 2^-14, where float16 has fewer. Below the float's range the lowest is kept.
    """

    dtype: str
    """``float32`` or ``float16``."""
    mantissa: int | None = None
    """Bits of mantissa that float16 keeps, 1 to 9; ``None`` for all."""

    @property
    def name(self) -> str:
        """``fp32``, ``fp16`` or ``fp16r<bits>``."""
        return f"fp{self.dtype.removeprefix('float')}" + ("" if self.mantissa is None else f"r{self.mantissa}")

    @property
    def compression(self) -> Compression:
        """The fast one."""
        return LZ4

    @property
    def max_temperature(self) -> None:
        """No limit."""
        return None

    @property
    def full(self) -> bool:
        """Every class has its code."""
        return True

    def width(self, classes: int) -> int:
        """One code per class."""
        return classes

    def calibrate(self, logits: torch.Tensor) -> Dense:  # noqa: ARG002
        """Return the encoding itself."""
        return self

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``; ties are rounded to even."""
        target: torch.dtype = getattr(torch, self.dtype)
        lowest = torch.finfo(target).min if self.mantissa is None else -(2 - 2.0**-self.mantissa) * 2**15
        shifted, row_max = shift(logits, lowest=lowest)
        if self.mantissa is not None:
            shifted = _round_mantissa(shifted, self.mantissa)
        return Encoded(shifted.to(target).cpu().numpy(), row_max.cpu().numpy())

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Decode to float32 ``(n, classes)``."""
        logits = codes.to(torch.float32)
        return logits + row_max[:, None] if logits is codes else logits.add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Rows whose largest code is not zero, or that are not finite."""
        values = codes.cpu().numpy()
        if self.dtype == "float16":  # their bits as integers, which NumPy compares fifty times as fast
            return torch.from_numpy(
                (values.view(np.int16).max(axis=1) != 0) | (values.view(np.uint16).max(axis=1) > _LOWEST)
            )
        return torch.from_numpy(~((values.max(axis=1) == 0) & (values.min(axis=1) > -np.inf)))

    def describe(self) -> dict[str, JsonValue]:
        """Return the formula and the dtype."""
        return {"name": self.name, "dtype": self.dtype, "decode": "float32(codes) + row_max"}


def _round_mantissa(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round float32 to ``bits`` of mantissa, ties to even, in integer arithmetic on its bits."""
    dropped = _FLOAT32_MANTISSA - bits
    words = values.view(torch.int32)
    odd = (words >> dropped) & 1
    return ((words + ((1 << (dropped - 1)) - 1) + odd) & -(1 << dropped)).view(torch.float32)
