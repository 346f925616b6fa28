"""The interface of an encoding: an array of codes and a row maximum for each row of logits.

A kind of encoding is one file in ``kdpipe/encoding/kinds``. It registers a function that returns the encoding before
calibration; the function's parameters are those of the name:

    @ENCODINGS.register("topk", source="FKD, Shen and Xing 2022")
    def topk(k: Annotated[int, between(1, 65_535)]) -> TopK:
        \"\"\"The k largest logits and the mean of the rest.\"\"\"
        return TopK(k)

``kdpipe.testing.encodings`` has the tests that each encoding must pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from kdpipe.registry import Range, Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compression:
    """Settings of Zarr's ``blosc`` codec for the codes of a store, and the order of a chunk's codes."""

    cname: Literal["lz4", "zstd"]
    shuffle: Literal["bitshuffle", "shuffle", "noshuffle"]
    level: int = 5
    block: int = 0
    """Bytes that are compressed on their own, each with its own table of frequent bytes; 0 for Blosc's choice."""
    transposed: bool = False
    """Whether a chunk holds all rows of one code, then those of the next: Zarr's codec ``transpose`` comes before."""


LZ4 = Compression("lz4", "bitshuffle")
"""Fast; compresses bits that rarely change."""
ZSTD = Compression("zstd", "noshuffle")
"""Writes frequent bytes in fewer bits, which suits few levels."""


@dataclass(frozen=True)
class Encoded:
    """A block of encoded logits, in main memory."""

    codes: npt.NDArray[Any]
    """``(n, width)`` of the encoding's dtype."""
    row_max: npt.NDArray[np.float32]
    """``(n,)``: each row's largest logit or a value near it; the largest value of the decoded row equals it."""


class Encoding(Protocol):
    """Converts float32 logits ``(n, classes)`` to codes and back. A decoded row's largest logit is its ``row_max``."""

    @property
    def name(self) -> str:
        """Canonical name, as manifests record it: the registered name, then the values joined with ``@``."""

    @property
    def dtype(self) -> str:
        """NumPy name of the codes' dtype."""

    @property
    def compression(self) -> Compression:
        """Compression of the codes in a store."""

    @property
    def max_temperature(self) -> float | None:
        """The highest temperature that the codes serve; ``None`` for any."""

    @property
    def full(self) -> bool:
        """Whether there is a code for every class."""

    def width(self, classes: int) -> int:
        """Return the number of codes per sample; raises ``ParamsError`` for too few classes."""

    def calibrate(self, logits: torch.Tensor) -> Encoding:
        """Return the encoding fitted to a pilot of finite float32 logits ``(n, classes)``."""

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``, on any device."""

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode codes ``(n, width)`` and row maxima ``(n,)`` to float32 ``(n, classes)`` on their device."""

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows of codes ``(n, width)`` ``encode`` never writes, bool ``(n,)``; the rest can be decoded."""

    def describe(self) -> dict[str, JsonValue]:
        """Return everything needed to decode with NumPy, as plain JSON values; ``name`` is one of them."""

    def restored(self, description: Mapping[str, Any]) -> Encoding:
        """Return the encoding with the calibration of a description.

        Raises:
            CorruptStoreError: the calibration is malformed.
        """


ENCODINGS: Registry[Encoding] = Registry("encoding")
"""Every encoding before calibration, once ``kdpipe.encoding.registry`` is imported."""


def _fits_names(value: float) -> bool:
    """Return whether a temperature is in the range of names and reads back from six digits without an exponent."""
    return 0.01 <= value <= 1000 and float(f"{value:g}") == value and "e" not in f"{value:g}"


Temperature = Annotated[float, Range("0.01 to 1000 in at most six digits", _fits_names)]
"""The temperature that an encoding is made for."""


def shift(logits: torch.Tensor, *, lowest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 ``(n, classes)`` minus each row's maximum, at least ``lowest``, and the maxima ``(n,)``."""
    row_max = logits.amax(dim=1)
    return (logits - row_max[:, None]).clamp_(min=lowest), row_max
