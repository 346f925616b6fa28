"""What an encoding is: an array of codes and a row maximum for each row of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Encoded:
    """A block of encoded logits, in main memory."""

    codes: npt.NDArray[Any]
    """``(n, width)`` of the encoding's dtype."""
    row_max: npt.NDArray[np.float32]
    """``(n,)``: each row's largest logit, subtracted before encoding."""


class Encoding(Protocol):
    """Turns float32 logits ``(n, classes)`` into codes and back."""

    @property
    def name(self) -> str:
        """The name in flags and manifests."""

    @property
    def dtype(self) -> str:
        """NumPy name of the codes' dtype."""

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``, on any device."""

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        """Decode codes ``(n, width)`` and row maxima ``(n,)`` to float32 ``(n, classes)`` on their device."""

    def describe(self) -> dict[str, Any]:
        """Return all that a stranger needs to decode, as plain JSON values."""
