"""The rounding of rotated logits: which neighboring multiples of a step lower a row's KL, and its bytes.

All sums are of whole numbers below 2^53, exact in float64 in any order, so that codes are equal on every device. Errors
are in units of 1 / (GRID * UNIT). See ``kdpipe.encoding.kinds.klt``.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import torch

from kdpipe.encoding.base import GRID

UNIT = 1 << 11
"""The basis is rounded to multiples of 1 / UNIT: products with codes are then exact in float32 for usual rows."""
MOST = 2**15 - 1
"""Largest magnitude of a coefficient's code."""

_WEIGHTED = 1.75
"""Temperature of the KL that the encoder lowers: it is largest near it, and with it falls that at 1 and at 4."""
_LIKELY = 64
"""Classes whose errors are weighed one by one; the others have their mean weight."""
_MOVES = 128
"""Most moves in a row."""
_MOVABLE = 256
"""Coefficients that may move: those that were nearest to halfway."""
_SHORTER = 0.05
"""Weight of the codes' length beside the squared error, both in steps."""
_STRONGEST = 4.0
"""Largest weight of a code's square, for coefficients that are nearly always 0."""
_WEIGHT = 256
"""These weights are rounded to multiples of 1 / _WEIGHT, so that sums stay exact."""
_BINS_PER_UNIT = 16
_PROBABILITY = 1 << 16
_LARGEST_ERROR = float(2 << 21)
"""Rows with an error of more than 2 before any move are left as they are; their sums might be inexact."""


def rounded(values: torch.Tensor, basis: torch.Tensor, *, quantum: int, deviations: tuple[int, ...]) -> torch.Tensor:
    """Return codes of centered logits ``(n, classes)``, multiples of 1 / GRID, as float64 ``(n, vectors)``.

    ``basis`` ``(vectors, classes)`` is in multiples of 1 / UNIT, the step ``quantum`` and the ``deviations`` of the
    coefficients in multiples of 1 / GRID; without deviations, the length of codes is ignored.
    """
    unit = float(quantum * UNIT)
    exact = values @ basis.mT
    lengths = _lengths(deviations, quantum, str(values.device))
    nearest = exact / unit
    codes = (nearest / (1 + lengths)).round_().clamp_(nearest.floor(), nearest.ceil_())
    codes.clamp_(1 - MOST, MOST - 1)
    errors = (codes @ basis).mul_(quantum).sub_(values * UNIT)
    movable = errors.abs().amax(dim=1) <= _LARGEST_ERROR
    off, weights = codes * unit - exact, _weights(values)
    return _moved(codes, off, errors, weights, basis, lengths, quantum=quantum, movable=movable)


@lru_cache(maxsize=8)
def _lengths(deviations: tuple[int, ...], quantum: int, device: str) -> torch.Tensor:
    """Return the weight of a code's square for each coefficient, float64 ``(vectors,)``, or a zero for all."""
    spread = np.maximum(np.array(deviations, dtype=np.float64), 1) / quantum
    weights = np.minimum(np.rint(_WEIGHT * _SHORTER / spread**2) / _WEIGHT, _STRONGEST)
    return torch.from_numpy(weights if deviations else np.zeros(1)).to(device)


@cache
def _exponentials() -> tuple[float, ...]:
    """Return 2^20 exp(-d / T) as whole numbers, for d in bins of 1/16 from 0 to the first that is 0."""
    bins = range(math.ceil(_BINS_PER_UNIT * _WEIGHTED * 21 * math.log(2)))
    return (*(float(round(2**20 * math.exp(-place / _BINS_PER_UNIT / _WEIGHTED))) for place in bins), 0.0)


def _weights(values: torch.Tensor) -> torch.Tensor:
    """Return whole multiples of p (1 - p) of centered logits ``(n, classes)``."""
    below = values.amax(dim=1, keepdim=True).sub(values).div_(GRID // _BINS_PER_UNIT).floor_().long()
    table = torch.tensor(_exponentials(), dtype=torch.float64, device=values.device)
    mass = table[below.clamp_(max=len(table) - 1)]
    share = (mass * _PROBABILITY).div_(mass.sum(dim=1, keepdim=True)).floor_()
    return share.mul(_PROBABILITY - share).div_(_PROBABILITY // 4).floor_()


def _largest(values: torch.Tensor, most: int) -> torch.Tensor:
    """Return the places of a row's largest values, the first ones of equal values, int64 ``(n, most or fewer)``."""
    size = values.shape[1]
    # One sorting key for both, since topk takes any of equal values.
    keys = values * size - torch.arange(size, dtype=values.dtype, device=values.device)
    return keys.topk(min(most, size), dim=1).indices


def _moved(
    codes: torch.Tensor,
    off: torch.Tensor,
    errors: torch.Tensor,
    weights: torch.Tensor,
    basis: torch.Tensor,
    lengths: torch.Tensor,
    *,
    quantum: int,
    movable: torch.Tensor,
) -> torch.Tensor:
    """Move codes by one, the best first, until none lowers the weighted square of the errors; changes ``codes``.

    ``off`` and ``errors`` are those of the coefficients and of the classes, in units of 1 / (GRID * UNIT). With
    weights ``w`` of the likely classes, ``r`` of each other one and ``m_k`` of the code's square, a move ``s`` of code
    ``k`` changes the sum by

        quantum * (2 s (r (off_k + m_k q_k unit) UNIT + sum (w - r) e_c B_kc)
                   + quantum (r (1 + m_k) UNIT^2 + sum (w - r) B_kc^2)),    unit = quantum * UNIT.
    """
    likely, places = _largest(weights, _LIKELY), _largest(off.abs(), _MOVABLE)
    values = weights.gather(1, likely)
    others = max(1, weights.shape[1] - likely.shape[1])
    rest = ((weights.sum(dim=1) - values.sum(dim=1)) / others).floor_().clamp_(min=1)[:, None]
    extra = values - rest
    errors = errors.gather(1, likely)
    columns = basis.mT[likely[:, :, None], places[:, None, :]]
    lengths = lengths.expand_as(off).gather(1, places)
    unit, rows = float(quantum * UNIT), torch.arange(len(codes), device=codes.device)
    longer, off = codes.gather(1, places).mul_(lengths).mul_(unit), off.gather(1, places)
    curvature = torch.einsum("nm,nmk->nk", extra, columns.square()).add_(rest * float(UNIT**2) * (1 + lengths))
    curvature.mul_(quantum)
    for _ in range(_MOVES):
        slope = torch.einsum("nm,nmk->nk", extra * errors, columns).add_((off + longer) * rest * float(UNIT))
        signs = torch.where(slope > 0, -1.0, 1.0).to(slope)
        change = curvature - 2 * slope.abs()
        change[(off + signs * unit).abs() > unit] = math.inf
        best, place = change.min(dim=1)
        going = (best < 0) & movable
        if not going.any():
            break
        moves = signs[rows, place] * going
        codes[rows, places[rows, place]] += moves
        off[rows, place] += moves * unit
        longer[rows, place] += moves * unit * lengths[rows, place]
        errors += columns[rows, :, place] * (moves * quantum)[:, None]
    return codes
