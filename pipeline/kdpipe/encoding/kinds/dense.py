"""Dense encodings ``fp32``, ``fp16`` and ``fp16r:BITS``: every logit, minus its row's maximum, as a float.

The maximum is subtracted in float32 before the cast. Likely classes then lie near zero, where floats are dense: at
temperature 1, the KL of a float16 store is about 18 times lower than that of a plain cast. ``fp16r`` rounds the
mantissa to fewer bits; the zeros in place of the others compress to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, LZ4, Compression, Encoded, shift
from kdpipe.registry import between

_FLOAT32_MANTISSA = 23
_LOWEST = 0xFBFF
"""Bit pattern of the lowest finite float16; those of minus infinity and of negative NaN are larger."""
_GRAIN = 32_768
"""Elements of the largest tensor on which torch's operators use one thread."""
_BATCH = 2**20
"""Elements of a batch that one thread decodes: waiting for other threads may cost more than the arithmetic."""


@dataclass(frozen=True)
class Dense:
    """``codes = round(logits - row_max)``; ``logits = codes + row_max``.

    The error of a code is at most half a step of its float: ``|logit - row_max| * 2^-(bits + 1)`` with ``bits``
    of mantissa, and 2^-25 more below 2^-14, where float16 has fewer. Values below the float's range become its lowest.
    """

    dtype: str
    """``float32`` or ``float16``."""
    mantissa: int | None = None
    """Bits of mantissa kept in float16, 1 to 9; ``None`` for all 10."""

    @property
    def name(self) -> str:
        """``fp32``, ``fp16`` or ``fp16r7``."""
        return f"fp{self.dtype.removeprefix('float')}" + ("" if self.mantissa is None else f"r{self.mantissa}")

    @property
    def compression(self) -> Compression:
        """LZ4 with bitshuffle."""
        return LZ4

    @property
    def max_temperature(self) -> None:
        """``None``: any temperature."""
        return None

    @property
    def full(self) -> bool:
        """True: there is a code for every class."""
        return True

    def width(self, classes: int) -> int:
        """Return the number of classes."""
        return classes

    def calibrate(self, logits: torch.Tensor) -> Dense:  # noqa: ARG002
        """Return the encoding itself; nothing is fitted."""
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
        if codes.dtype is torch.float16 and _for_one_thread(codes):
            return _decoded_in_pieces(codes, row_max[:, None])
        logits, row_max = codes.float(), row_max.unsqueeze(1)
        return logits + row_max if logits is codes else logits.add_(row_max)

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:  # noqa: ARG002
        """Return which rows are not finite or have a largest code other than zero."""
        values = codes.cpu().numpy()
        if self.dtype == "float16":  # NumPy compares the bits as integers fifty times as fast
            return torch.from_numpy(
                (values.view(np.int16).max(axis=1) != 0) | (values.view(np.uint16).max(axis=1) > _LOWEST)
            )
        return torch.from_numpy(~((values.max(axis=1) == 0) & (values.min(axis=1) > -np.inf)))

    def describe(self) -> dict[str, JsonValue]:
        """Return the formula and the dtype."""
        return {"name": self.name, "dtype": self.dtype, "decode": "float32(codes) + row_max"}

    def restored(self, description: Mapping[str, Any]) -> Dense:  # noqa: ARG002
        """Return the encoding itself."""
        return self


@ENCODINGS.register("fp32")
def fp32() -> Dense:
    """Float32."""
    return Dense("float32")


@ENCODINGS.register("fp16")
def fp16() -> Dense:
    """Float16."""
    return Dense("float16")


@ENCODINGS.register("fp16r")
def fp16r(bits: Annotated[int, between(1, 9)]) -> Dense:
    """Float16 with the mantissa rounded to fewer bits; the zeros compress away."""
    return Dense("float16", mantissa=bits)


def _for_one_thread(codes: torch.Tensor) -> bool:
    """Return whether torch would divide the work on a batch among threads."""
    return torch.get_num_threads() > 1 and codes.device.type == "cpu" and _GRAIN < codes.numel() <= _BATCH


def _decoded_in_pieces(codes: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
    """Return ``codes + row_max`` in float32, computed in this thread alone; ``row_max`` is ``(n, 1)``."""
    logits = torch.empty(codes.shape, dtype=torch.float32)
    rows = max(1, _GRAIN // codes.shape[1])
    for start in range(0, len(codes), rows):
        here = slice(start, start + rows)
        logits[here].copy_(codes[here]).add_(row_max[here])
    return logits


def _round_mantissa(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Round float32 to ``bits`` of mantissa, ties to even, in integer arithmetic on its bits."""
    dropped = _FLOAT32_MANTISSA - bits
    words = values.view(torch.int32)
    odd = (words >> dropped) & 1
    return ((words + ((1 << (dropped - 1)) - 1) + odd) & -(1 << dropped)).view(torch.float32)
