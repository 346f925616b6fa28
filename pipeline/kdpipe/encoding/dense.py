"""Dense encodings: every logit, minus its row's maximum, in a narrower float.

The maximum is subtracted in float32 before the cast. The classes that matter then lie near zero, where
floats are dense: the KL of a float16 store at temperature 1 falls about 18 times against a plain cast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdpipe.encoding.base import Encoded


@dataclass(frozen=True)
class Dense:
    """``codes = cast(logits - row_max)``; ``logits = codes + row_max``."""

    name: str
    dtype: str

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``; differences below the dtype's range become its minimum."""
        row_max = logits.amax(dim=1)
        target: torch.dtype = getattr(torch, self.dtype)
        shifted = (logits - row_max[:, None]).clamp_(min=torch.finfo(target).min)
        return Encoded(shifted.to(target).cpu().numpy(), row_max.cpu().numpy().astype(np.float32, copy=False))

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor) -> torch.Tensor:
        """Decode to float32 ``(n, classes)``."""
        return codes.to(torch.float32) + row_max[:, None]

    def describe(self) -> dict[str, Any]:
        """Return the formula and the dtype."""
        return {"name": self.name, "dtype": self.dtype, "decode": "float32(codes) + row_max"}
