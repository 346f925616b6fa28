r"""``topk:K``: the ``k`` largest logits and the mean of the rest, for compatibility with such caches.

FKD (Shen and Xing 2022) and TinyViT (Wu et al. 2022) keep probabilities at temperature 1 and spread the remaining mass
evenly. Here probabilities are kept as logarithms relative to the largest,

.. math:: v_i = \log p_i - \log p_{max} = z_i - z_{max}, \qquad
          v_{rest} = \log \frac{1 - \sum_{i \le k} p_i}{C - k} - \log p_{max},

in float16. A softmax over the decoded row sums to one despite the rounding, and the rest is never negative. Above
temperature 1, an even spread is far from any real tail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, LZ4, Compression, Encoded, shift
from kdpipe.errors import ParamsError
from kdpipe.registry import between

_WORD = 65_536

_DECODE = (
    "k = number of values kept; words = codes as uint16 (n, width); wide = width == 3 * k + 1; "
    "index = int64(words[:, :k]); if wide: index += 65536 * int64(words[:, k:2*k]); "
    "value = float32(words[:, -k-1:] viewed as little-endian float16); "
    "logits = value[:, k:] repeated over the classes; logits[row, index] = value[:, :k]; logits + row_max"
)


@dataclass(frozen=True)
class TopK:
    """``codes = [index words, float16 of the k largest shifted logits, float16 of the rest's]`` in uint16 words.

    Values are in falling order, so the first is zero. An index takes one word up to 65,536 classes, else two: all low
    words, then all high words. Values have the error of float16; the row's maximum and its class are exact.
    """

    k: int

    @property
    def name(self) -> str:
        """Such as ``topk50``."""
        return f"topk{self.k}"

    @property
    def dtype(self) -> str:
        """Words of 16 bits."""
        return "uint16"

    @property
    def compression(self) -> Compression:
        """LZ4 with bitshuffle."""
        return LZ4

    @property
    def max_temperature(self) -> float:
        """1, the temperature at which the rest keeps its mass."""
        return 1.0

    @property
    def full(self) -> bool:
        """False: all but ``k`` logits are lost."""
        return False

    def width(self, classes: int) -> int:
        """Return ``2k + 1``, or ``3k + 1`` above 65,536 classes; raises ``ParamsError`` unless ``k < classes``."""
        if self.k >= classes:
            raise ParamsError(f"encoding '{self.name}' needs more than {self.k} classes, found {classes}. Use fp16.")
        return (3 if classes > _WORD else 2) * self.k + 1

    def calibrate(self, logits: torch.Tensor) -> TopK:  # noqa: ARG002
        """Return the encoding itself; nothing is fitted."""
        return self

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``; raises ``ParamsError`` unless ``k < classes``."""
        classes = logits.shape[1]
        wide = self.width(classes) > 2 * self.k + 1
        shifted, row_max = shift(logits, lowest=torch.finfo(torch.float16).min)
        values, index = shifted.topk(self.k, dim=1)
        others = shifted.scatter_(1, index, -math.inf)
        rest = others.logsumexp(dim=1, keepdim=True) - math.log(classes - self.k)
        # The rest of equal classes is zero, and words of zeros are a hole: minus zero tells the row from one.
        kept = torch.cat([values, -torch.minimum(rest, values[:, -1:]).abs()], dim=1).to(torch.float16)
        words = [index, index >> 16] if wide else [index]
        codes = torch.cat([*(word.to(torch.int16) for word in words), kept.view(torch.int16)], dim=1)
        return Encoded(codes.cpu().numpy().view(np.uint16), row_max.cpu().numpy())

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode to float32 ``(n, classes)``: the classes that were not kept share one value."""
        values, index = self._split(codes, classes)
        logits = values[:, self.k :].repeat(1, classes).scatter_(1, index, values[:, : self.k])
        return logits.add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows are holes, have an index out of range or twice, or values that do not fall from zero."""
        values, index = self._split(codes, classes)
        falling = (values[:, 1:] <= values[:, :-1]).all(dim=1) & (values[:, 0] == 0) & (values[:, -1] > -math.inf)
        ordered = index.sort(dim=1).values
        distinct = (ordered[:, 1:] > ordered[:, :-1]).all(dim=1)
        written = (codes.view(torch.int16) != 0).any(dim=1)
        return ~(written & falling & distinct & (ordered[:, -1] < classes))

    def describe(self) -> dict[str, JsonValue]:
        """Return ``k`` and the layout of the words."""
        return {"name": self.name, "dtype": self.dtype, "k": self.k, "decode": _DECODE}

    def restored(self, description: Mapping[str, Any]) -> TopK:  # noqa: ARG002
        """Return the encoding itself."""
        return self

    def _split(self, codes: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 values ``(n, k + 1)`` and int64 indices ``(n, k)``."""
        words = codes.view(torch.int16)
        index = words[:, : self.k].to(torch.int64) & 0xFFFF
        if self.width(classes) > 2 * self.k + 1:
            index += (words[:, self.k : 2 * self.k].to(torch.int64) & 0xFFFF) << 16
        return words[:, -self.k - 1 :].contiguous().view(torch.float16).to(torch.float32), index


@ENCODINGS.register("topk", source="FKD (Shen and Xing 2022), TinyViT (Wu et al. 2022)")
def topk(k: Annotated[int, between(1, 65_535)]) -> TopK:
    """The k largest logits and the mean of the rest, as in FKD and TinyViT; serves temperature 1."""
    return TopK(k)
