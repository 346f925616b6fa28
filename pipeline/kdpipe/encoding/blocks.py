"""Encoding of many rows, and the loss of it, in blocks of rows: in little memory beyond logits and codes."""

from __future__ import annotations

import numpy as np
import torch

from kdpipe.encoding.base import Encoded, Encoding
from kdpipe.encoding.fidelity import Fidelity

_BLOCK_BYTES = 16 * 1024**2
_STEP = 64
"""A block's rows are a multiple of this, so that vector instructions cut it as they do the whole."""


def encode(encoding: Encoding, logits: torch.Tensor, *, temperatures: tuple[float, ...]) -> tuple[Encoded, Fidelity]:
    """Encode finite float32 ``(n, classes)`` and measure what is lost, as if all rows were encoded at once."""
    rows, classes = logits.shape
    codes = np.empty((rows, encoding.width(classes)), dtype=encoding.dtype)
    row_max = np.empty(rows, dtype=np.float32)
    lost = Fidelity.none(temperatures)
    size = max(1, _BLOCK_BYTES // (4 * classes * _STEP)) * _STEP
    for start in range(0, rows, size):
        here = slice(start, start + size)
        encoded = encoding.encode(logits[here])
        codes[here], row_max[here] = encoded.codes, encoded.row_max
        decoded = encoding.decode(*encoded.tensors(logits.device), classes)
        lost += Fidelity.of(logits[here], decoded, temperatures)
    return Encoded(codes, row_max), lost
