"""What an encoding is: an array of codes and a row maximum for each row of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue


@dataclass(frozen=True)
class Compression:
    """How a store's codes are compressed: settings of Zarr's ``blosc`` codec."""

    cname: Literal["lz4", "zstd"]
    shuffle: Literal["bitshuffle", "noshuffle"]
    level: int = 5


LZ4 = Compression("lz4", "bitshuffle")
"""Fast; finds bits that do not change."""
ZSTD = Compression("zstd", "noshuffle")
"""Codes frequent bytes in fewer bits, which suits few levels."""


@dataclass(frozen=True)
class Encoded:
    """A block of encoded logits, in main memory."""

    codes: npt.NDArray[Any]
    """``(n, width)`` of the encoding's dtype."""
    row_max: npt.NDArray[np.float32]
    """``(n,)``: each row's largest logit, or a value near it; decoded rows have it as their largest."""


class Encoding(Protocol):
    """Turns float32 logits ``(n, classes)`` into codes and back. A decoded row's largest logit is its ``row_max``."""

    @property
    def name(self) -> str:
        """The name in flags and manifests; ``get`` returns an equal encoding for it, but for its calibration."""

    @property
    def dtype(self) -> str:
        """NumPy name of the codes' dtype."""

    @property
    def compression(self) -> Compression:
        """How a store compresses the codes."""

    @property
    def max_temperature(self) -> float | None:
        """The highest temperature that the codes are good for; ``None`` where any is."""

    @property
    def full(self) -> bool:
        """Whether there is a code for every class."""

    def width(self, classes: int) -> int:
        """Return the number of codes per sample; raises ``ParamsError`` where there are too few classes."""

    def calibrate(self, logits: torch.Tensor) -> Encoding:
        """Fit what can be fitted to a pilot of finite float32 logits ``(n, classes)``."""

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``, on any device."""

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode codes ``(n, width)`` and row maxima ``(n,)`` to float32 ``(n, classes)`` on their device."""

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows of codes ``(n, width)`` ``encode`` never writes, bool ``(n,)``; the rest can be decoded."""

    def describe(self) -> dict[str, JsonValue]:
        """Return all that a stranger needs to decode with NumPy, as plain JSON values."""


def shift(logits: torch.Tensor, *, lowest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 ``(n, classes)`` minus each row's maximum, at least ``lowest``, and the maxima ``(n,)``."""
    row_max = logits.amax(dim=1)
    return (logits - row_max[:, None]).clamp_(min=lowest), row_max
