r"""``klt:STEP``: transform coding, for teachers whose logits are correlated between classes.

A row's mean is removed, and the rest is rotated by the eigenvectors of the pilot's second moments (the Karhunen-Loève
transform, ordered by falling variance). Each coefficient is rounded to a multiple of the step, and a chunk holds all
values of the first coefficient, then those of the second, and so on, so that the compressor sees like values together.

Rounding each coefficient to the nearest multiple gives all classes an equal error. The KL is about

.. math:: \frac{1}{2 T^2} \sum_c p_c (1 - p_c)\, e_c^2,

so the errors of the few likely classes count most. The encoder therefore moves some coefficients to their other
neighbor, one after the other, as long as that sum falls: those that were nearly halfway cost little, and a few dozen
are enough to cancel the errors of the likely classes. The decoder does not change.

A code ``q`` of a coefficient with deviation ``s`` (in steps, on the pilot) takes about ``q^2 / (2 s^2)`` nats. The
encoder adds ``0.05 q^2 / s^2`` to the squared error, so that it rounds to the shorter code where little is lost.

Codes are equal on every device and in every batch: logits are rounded to multiples of 2^-10, the basis to multiples of
2^-11, and all sums are of whole numbers below 2^53, exact in float64 in any order.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, Compression, Encoded, shift
from kdpipe.errors import CorruptStoreError, ParamsError
from kdpipe.registry import Range

MOST_CLASSES = 2_048
"""The basis grows with the square of the classes: 11 MB in the manifest for this many."""

_GRID = 1 << 10
"""Logits are rounded to multiples of 1 / _GRID."""
_UNIT = 1 << 11
"""The basis is rounded to multiples of 1 / _UNIT: products with codes are then exact in float32 for usual rows."""
_LOWEST = -1024.0
"""Lower bound of a logit minus its row's maximum."""
_MOST = 2**15 - 1
"""Largest magnitude of a coefficient's code."""
_NEGLIGIBLE = 0.02
"""Coefficients with a smaller deviation on the pilot, in steps, are left out: none of them would be rounded to 1."""
_ENOUGH = 2
"""Rows of the pilot for each class, from which on a direction without variance is one, and not one of too few rows."""

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
_ROWS = {"cpu": 64, "cuda": 1024}
"""Rows that are encoded at once: few enough for a processor's cache, many for a GPU."""
_DECODED_ROWS = 4_096
"""Rows that are unpacked at once, so that a whole plane needs little memory beside its logits."""
_BINS_PER_UNIT = 16
_PROBABILITY = 1 << 16
_LARGEST_ERROR = float(2 << 21)
"""Rows with an error of more than 2 before any move are left as they are; their sums might be inexact."""

_DECODE = (
    "q = codes[:, :-1]; q = where(q % 2, -(q + 1) // 2, q // 2); "
    "basis = int16 little-endian rows of base64 table; if empty, 2048 * identity; "
    "logits = (q[:, :len(basis)] @ basis) * float32(step / 2048); logits = logits - max(logits) + row_max"
)


def _fits_names(value: float) -> bool:
    return 0.01 <= value <= 4 and float(f"{value:.4g}") == value


Step = Annotated[float, Range("0.01 to 4 in at most four digits", _fits_names)]
"""Distance of neighboring values of a coefficient, in units of a logit."""


@dataclass(frozen=True)
class KLT:
    """``codes = [zigzag(q), 1]``; ``logits = step * (q @ basis)``, shifted so that the largest is ``row_max``.

    ``q`` are whole multiples of the step, each less than one step from the row's coefficient unless that exceeds 32,767
    steps. Zigzag maps 0, -1, 1, -2, ... to 0, 1, 2, 3, ...; the 1 at a row's end tells it from a hole.
    """

    step: float
    """0.01 to 4; rounded to a multiple of 2^-10."""
    basis: bytes = b""
    """Little-endian int16 ``(vectors, classes)``, times 2048; empty for the identity."""
    classes: int | None = None
    """Columns of the basis; ``None`` before calibration."""
    deviations: tuple[int, ...] = ()
    """The pilot's deviation of each coefficient, times 1024; for the encoder. Empty: the length of codes is ignored."""

    @property
    def name(self) -> str:
        """Such as ``klt0.4``."""
        return f"klt{self.step:g}"

    @property
    def dtype(self) -> str:
        """Two bytes; the high ones of most coefficients are zero and compress to nothing."""
        return "uint16"

    @property
    def compression(self) -> Compression:
        """Zstd over the bytes of one coefficient after the other."""
        return Compression("zstd", "shuffle", level=8, block=2**16, transposed=True)

    @property
    def max_temperature(self) -> None:
        """``None``: any temperature."""
        return None

    @property
    def full(self) -> bool:
        """True: every class has a value."""
        return True

    @property
    def _quantum(self) -> int:
        """The step as a multiple of the grid."""
        return max(1, round(self.step * _GRID))

    def width(self, classes: int) -> int:
        """Return the number of classes and one; raises ``ParamsError`` for other classes than the basis has."""
        if not 2 <= classes <= MOST_CLASSES:
            raise ParamsError(f"klt serves 2 to {MOST_CLASSES:,} classes, found {classes:,}. Use tailp.")
        if self.classes not in (None, classes):
            raise ParamsError(
                f"the basis of encoding '{self.name}' is for {self.classes:,} classes, found {classes:,}."
            )
        return classes + 1

    def calibrate(self, logits: torch.Tensor) -> KLT:
        """Return the encoding with the basis of a pilot's second moments, computed from whole numbers."""
        self.width(logits.shape[1])
        values = _centered(logits.detach().cpu())
        moments = values.mT @ values
        variances, vectors = _eigen(moments.numpy().tobytes(), logits.shape[1])
        deviations = np.sqrt(np.maximum(variances, 0) / len(logits))
        enough = len(logits) >= _ENOUGH * logits.shape[1]
        kept = int((deviations > _NEGLIGIBLE * self._quantum).sum()) if enough else logits.shape[1]
        basis = vectors[: max(1, kept)]
        spread = tuple(np.rint(deviations[: len(basis)]).astype(int).tolist()) if enough else ()
        return replace(self, basis=basis.tobytes(), classes=logits.shape[1], deviations=spread)

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``."""
        codes = np.zeros((len(logits), self.width(logits.shape[1])), np.uint16)
        codes[:, -1] = 1
        rows = _ROWS.get(logits.device.type, 64)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            values = self._quantized(_centered(logits[here])).cpu().numpy().astype(np.int64)
            codes[here, : values.shape[1]] = np.where(values < 0, -2 * values - 1, 2 * values)
        limit = torch.finfo(torch.bfloat16).max
        near = logits.amax(dim=1).clamp(-limit, limit).to(torch.bfloat16).to(torch.float32)
        return Encoded(codes, near.cpu().numpy())

    def _quantized(self, values: torch.Tensor) -> torch.Tensor:
        """Return the codes of centered logits ``(n, classes)``, float64 ``(n, vectors)``."""
        basis = self._basis(values.shape[1], values.device, torch.float64)
        unit = float(self._quantum * _UNIT)
        exact = values @ basis.mT
        lengths = _lengths(self.deviations, self._quantum, str(values.device))
        nearest = exact / unit
        codes = (nearest / (1 + lengths)).round_().clamp_(nearest.floor(), nearest.ceil_())
        codes.clamp_(1 - _MOST, _MOST - 1)
        errors = (codes @ basis).mul_(self._quantum).sub_(values * _UNIT)
        movable = errors.abs().amax(dim=1) <= _LARGEST_ERROR
        off, weights = codes * unit - exact, _weights(values)
        return _moved(codes, off, errors, weights, basis, lengths, quantum=self._quantum, movable=movable)

    def _basis(self, classes: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return _tensor(self.basis, classes, str(device), dtype)

    def decode(self, codes: torch.Tensor, row_max: torch.Tensor, classes: int) -> torch.Tensor:
        """Decode to float32 ``(n, classes)`` with one product of matrices for a batch."""
        basis = self._basis(classes, codes.device, torch.float32)
        logits = torch.empty(len(codes), classes, device=codes.device)
        for start in range(0, len(codes), _DECODED_ROWS):
            here = slice(start, start + _DECODED_ROWS)
            packed = codes[here, : len(basis)].to(torch.int32)
            values = ((packed >> 1) ^ -(packed & 1)).to(torch.float32)
            torch.mm(values, basis, out=logits[here])
        logits.mul_(self._quantum / _GRID / _UNIT)
        return logits.sub_(logits.amax(dim=1, keepdim=True)).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows do not end with 1, or have a code without a vector or beyond the largest."""
        values = codes.cpu().numpy()
        vectors = len(self.basis) // (2 * classes) if self.basis else classes
        bad = (values[:, classes] != 1) | values[:, vectors:classes].any(axis=1)
        return torch.from_numpy(bad | (values[:, :vectors].max(axis=1) > 2 * _MOST))

    def describe(self) -> dict[str, JsonValue]:
        """Return the step, the basis and the formula."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "step": self._quantum / _GRID,
            "table": [base64.b64encode(row).decode() for row in self._rows()],
            **({"deviations": list(self.deviations)} if self.deviations else {}),
            "decode": _DECODE + ("; deviations are for the encoder" if self.deviations else ""),
        }

    def _rows(self) -> list[bytes]:
        size = 2 * (self.classes or 1)
        return [self.basis[start : start + size] for start in range(0, len(self.basis), size)]

    def restored(self, description: Mapping[str, Any]) -> KLT:
        """Return the encoding with the basis of a description.

        Raises:
            CorruptStoreError: it is no list of vectors of equal length, or has a number beyond 2048; or there are
                deviations, but not a whole number for each vector.
        """
        table = description.get("table")
        if table == []:
            return self
        try:
            rows = [base64.b64decode(row, validate=True) for row in table] if isinstance(table, list) else []
        except (TypeError, ValueError, binascii.Error):
            rows = []
        classes = len(rows[0]) // 2 if rows else 0
        if not 2 <= classes <= MOST_CLASSES or len(rows) > classes or any(len(row) != 2 * classes for row in rows):
            raise CorruptStoreError(f"the table of encoding '{self.name}' is no list of vectors.")
        basis = b"".join(rows)
        if np.abs(np.frombuffer(basis, "<i2").astype(np.int32)).max() > _UNIT:
            raise CorruptStoreError(f"the table of encoding '{self.name}' has a number beyond {_UNIT}.")
        spread = description.get("deviations", [])
        if not isinstance(spread, list) or not all(type(each) is int and 0 <= each < 2**31 for each in spread):
            raise CorruptStoreError(f"the deviations of encoding '{self.name}' are no list of whole numbers.")
        if len(spread) not in (0, len(rows)):
            raise CorruptStoreError(f"encoding '{self.name}' has {len(rows)} vectors, but {len(spread)} deviations.")
        return replace(self, basis=basis, classes=classes, deviations=tuple(spread))


@ENCODINGS.register("klt")
def klt(step: Step) -> KLT:
    """Multiples of a step along the directions in which the teacher's logits vary; serves any temperature."""
    return KLT(step)


def _centered(logits: torch.Tensor) -> torch.Tensor:
    """Return logits minus their row's mean, as whole multiples of the grid, float64 ``(n, classes)``."""
    values = shift(logits, lowest=_LOWEST)[0].double().mul_(_GRID).round_()
    return values.sub_((values.sum(dim=1, keepdim=True) / values.shape[1]).round_())


@lru_cache(maxsize=2)
def _eigen(moments: bytes, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the variances, falling, and int16 vectors ``(classes, classes)``; one thread, so that sums repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.frombuffer(bytearray(moments), dtype=torch.float64).view(classes, classes)
        variances, vectors = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    vectors = vectors.flip(1).mT.contiguous()
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    vectors = vectors * vectors.gather(1, largest).sign()
    return variances.flip(0).numpy(), vectors.mul_(_UNIT).round_().numpy().astype("<i2")


@lru_cache(maxsize=8)
def _tensor(basis: bytes, classes: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    if not basis:
        return torch.eye(classes, dtype=dtype, device=device).mul_(_UNIT)
    values = np.frombuffer(basis, "<i2").reshape(-1, classes)
    return torch.from_numpy(values.astype(np.float64)).to(device=device, dtype=dtype)


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
    below = values.amax(dim=1, keepdim=True).sub(values).div_(_GRID // _BINS_PER_UNIT).floor_().long()
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

    ``off`` and ``errors`` are those of the coefficients and of the classes, in units of 1 / (_GRID * _UNIT). With
    weights ``w`` of the likely classes, ``r`` of each other one and ``m_k`` of the code's square, a move ``s`` of code
    ``k`` changes the sum by

        quantum * (2 s (r (off_k + m_k q_k unit) _UNIT + sum (w - r) e_c B_kc)
                   + quantum (r (1 + m_k) _UNIT^2 + sum (w - r) B_kc^2)),    unit = quantum * _UNIT.
    """
    likely, places = _largest(weights, _LIKELY), _largest(off.abs(), _MOVABLE)
    values = weights.gather(1, likely)
    others = max(1, weights.shape[1] - likely.shape[1])
    rest = ((weights.sum(dim=1) - values.sum(dim=1)) / others).floor_().clamp_(min=1)[:, None]
    extra = values - rest
    errors = errors.gather(1, likely)
    columns = basis.mT[likely[:, :, None], places[:, None, :]]
    lengths = lengths.expand_as(off).gather(1, places)
    unit, rows = float(quantum * _UNIT), torch.arange(len(codes), device=codes.device)
    longer, off = codes.gather(1, places).mul_(lengths).mul_(unit), off.gather(1, places)
    curvature = torch.einsum("nm,nmk->nk", extra, columns.square()).add_(rest * float(_UNIT**2) * (1 + lengths))
    curvature.mul_(quantum)
    for _ in range(_MOVES):
        slope = torch.einsum("nm,nmk->nk", extra * errors, columns).add_((off + longer) * rest * float(_UNIT))
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
