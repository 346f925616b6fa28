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

    def tensors(self, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and row maxima on a device, as ``Encoding.decode`` takes them; those on a CPU share memory."""
        import torch

        return torch.from_numpy(self.codes).to(device), torch.from_numpy(self.row_max).to(device)


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


_IN_WORDS = {4: "four", 6: "six"}


def in_digits(low: float, high: float, *, digits: int) -> Range:
    """Return the range of numbers that names can hold: those that read back from a few digits without an exponent."""

    def fits(value: float) -> bool:
        text = f"{value:.{digits}g}"
        return low <= value <= high and float(text) == value and "e" not in text

    return Range(f"{low:g} to {high:g} in at most {_IN_WORDS[digits]} digits", fits)


Temperature = Annotated[float, in_digits(0.01, 1000, digits=6)]
"""The temperature that an encoding is made for."""

GRID = 1 << 10
"""``centered`` rounds logits to multiples of 1 / GRID."""
_LOWEST = -1024.0
"""Lower bound of a logit minus its row's maximum, for ``centered``."""


def shift(logits: torch.Tensor, *, lowest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 ``(n, classes)`` minus each row's maximum, at least ``lowest``, and the maxima ``(n,)``."""
    row_max = logits.amax(dim=1)
    return (logits - row_max[:, None]).clamp_(min=lowest), row_max


def centered(logits: torch.Tensor) -> torch.Tensor:
    """Return logits minus their row's mean, as whole multiples of the grid, float64 ``(n, classes)``.

    Sums of whole numbers are exact, so that codes made from them are equal on every device.
    """
    values = shift(logits, lowest=_LOWEST)[0].double().mul_(GRID).round_()
    return values.sub_((values.sum(dim=1, keepdim=True) / values.shape[1]).round_())


def in_bfloat16(row_max: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return row maxima ``(n,)`` rounded to bfloat16, for encodings whose decoded rows are right up to a constant.

    No distillation loss depends on it, and half of the bytes compress to nothing.
    """
    import torch

    limit = torch.finfo(torch.bfloat16).max
    rounded: npt.NDArray[np.float32] = row_max.clamp(-limit, limit).to(torch.bfloat16).to(torch.float32).cpu().numpy()
    return rounded
