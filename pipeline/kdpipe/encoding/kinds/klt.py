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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import JsonValue

from kdpipe.encoding.base import ENCODINGS, GRID, Compression, Encoded, centered, in_bfloat16, in_digits
from kdpipe.encoding.rounding import MOST, UNIT, rounded
from kdpipe.errors import CorruptStoreError, ParamsError

SQUARE = 2_048
"""Most classes with a vector for each; the basis grows with their square: 11 MB in the manifest for this many."""
MOST_CLASSES = 22_000
"""Beyond ``SQUARE``, the basis has the main directions only, as a head over a few hundred features needs no more."""
MOST_VECTORS = 1_000
"""Most of these directions: 58 MB in the manifest with 21,841 classes."""

_NEGLIGIBLE = 0.02
"""Coefficients with a smaller deviation on the pilot, in steps, are left out: none of them would be rounded to 1."""
_ENOUGH = 2
"""Rows of the pilot for each class, from which on a direction without variance is one, and not one of too few rows."""

_COLUMNS = 1_024
"""Classes whose products are summed at once."""
_ROWS = {"cpu": 64, "cuda": 1024}
"""Rows that are encoded at once: few enough for a processor's cache, many for a GPU."""
_DECODED_ROWS = 4_096
"""Rows that are unpacked at once, so that a whole plane needs little memory beside its logits."""
_DECODE = (
    "q = codes[:, :-1]; q = where(q % 2, -(q + 1) // 2, q // 2); "
    "basis = int16 little-endian rows of base64 table; if empty, 2048 * identity; "
    "logits = (q[:, :len(basis)] @ basis) * float32(step / 2048); logits = logits - max(logits) + row_max"
)


Step = Annotated[float, in_digits(0.01, 4, digits=4)]
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
        return max(1, round(self.step * GRID))

    def width(self, classes: int) -> int:
        """Return the number of classes, or of vectors for more than 2,048 classes, and one.

        Raises:
            ParamsError: the basis is for other classes, or there is none for more than 2,048.
        """
        if not 2 <= classes <= MOST_CLASSES:
            raise ParamsError(f"klt serves 2 to {MOST_CLASSES:,} classes, found {classes:,}. Use tailp.")
        if self.classes not in (None, classes):
            raise ParamsError(
                f"the basis of encoding '{self.name}' is for {self.classes:,} classes, found {classes:,}."
            )
        if classes > SQUARE and not self.basis:
            raise ParamsError(
                f"klt of more than {SQUARE:,} classes needs a pilot of logits, found {classes:,} classes."
            )
        return (classes if classes <= SQUARE else len(self.basis) // (2 * classes)) + 1

    def calibrate(self, logits: torch.Tensor) -> KLT:
        """Return the encoding with the basis of a pilot's second moments, computed from whole numbers."""
        if logits.shape[1] > SQUARE:
            return self._spanned(logits.detach().cpu())
        self.width(logits.shape[1])
        values = centered(logits.detach().cpu())
        moments = values.mT @ values
        variances, found = _eigen(moments.numpy().tobytes(), logits.shape[1])
        vectors = _upright(found)
        deviations = np.sqrt(np.maximum(variances, 0) / len(logits))
        enough = len(logits) >= _ENOUGH * logits.shape[1]
        kept = int((deviations > _NEGLIGIBLE * self._quantum).sum()) if enough else logits.shape[1]
        basis = vectors[: max(1, kept)]
        spread = tuple(np.rint(deviations[: len(basis)]).astype(int).tolist()) if enough else ()
        return replace(self, basis=basis.tobytes(), classes=logits.shape[1], deviations=spread)

    def _spanned(self, logits: torch.Tensor) -> KLT:
        """Return the encoding with the main directions of rows that are fewer than the classes.

        They are combinations of the rows: with the eigenvectors ``u`` of ``X X^T``, those of ``X^T X`` are ``X^T u``.
        """
        classes = logits.shape[1]
        if classes > MOST_CLASSES:
            self.width(classes)
        values = torch.cat([centered(part).to(torch.float32) for part in torch.split(logits, 256)])
        products = torch.zeros(len(values), len(values), dtype=torch.float64)
        for columns in torch.split(values, _COLUMNS, dim=1):
            products += columns.double() @ columns.double().mT
        variances, mixtures = _eigen(products.numpy().tobytes(), len(values))
        deviations = np.sqrt(np.maximum(variances, 0) / len(values))
        kept = int((deviations[:MOST_VECTORS] > _NEGLIGIBLE * self._quantum).sum())
        mixtures = mixtures[: max(1, kept)] / np.sqrt(np.maximum(variances[: max(1, kept)], 1))[:, None]
        parts = [torch.from_numpy(mixtures) @ columns.double() for columns in torch.split(values, _COLUMNS, dim=1)]
        basis = _upright(torch.cat(parts, dim=1).numpy())
        spread = tuple(np.rint(deviations[: len(basis)]).astype(int).tolist())
        return replace(self, basis=basis.tobytes(), classes=classes, deviations=spread)

    def encode(self, logits: torch.Tensor) -> Encoded:
        """Encode finite float32 ``(n, classes)``."""
        codes = np.zeros((len(logits), self.width(logits.shape[1])), np.uint16)
        codes[:, -1] = 1
        rows = _ROWS.get(logits.device.type, 64)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            values = centered(logits[here])
            basis = self._basis(logits.shape[1], values.device, torch.float64)
            found = rounded(values, basis, quantum=self._quantum, deviations=self.deviations)
            whole = found.cpu().numpy().astype(np.int64)
            codes[here, : whole.shape[1]] = np.where(whole < 0, -2 * whole - 1, 2 * whole)
        return Encoded(codes, in_bfloat16(logits.amax(dim=1)))

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
        logits.mul_(self._quantum / GRID / UNIT)
        return logits.sub_(logits.amax(dim=1, keepdim=True)).add_(row_max[:, None])

    def invalid(self, codes: torch.Tensor, classes: int) -> torch.Tensor:
        """Return which rows do not end with 1, or have a code without a vector or beyond the largest."""
        values = codes.cpu().numpy()
        vectors = len(self.basis) // (2 * classes) if self.basis else classes
        bad = (values[:, -1] != 1) | values[:, vectors:-1].any(axis=1)
        return torch.from_numpy(bad | (values[:, :vectors].max(axis=1) > 2 * MOST))

    def describe(self) -> dict[str, JsonValue]:
        """Return the step, the basis and the formula."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "step": self._quantum / GRID,
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
        most = classes if classes <= SQUARE else MOST_VECTORS
        if not 2 <= classes <= MOST_CLASSES or len(rows) > most or any(len(row) != 2 * classes for row in rows):
            raise CorruptStoreError(f"the table of encoding '{self.name}' is no list of vectors.")
        basis = b"".join(rows)
        if np.abs(np.frombuffer(basis, "<i2").astype(np.int32)).max() > UNIT:
            raise CorruptStoreError(f"the table of encoding '{self.name}' has a number beyond {UNIT}.")
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


@lru_cache(maxsize=2)
def _eigen(moments: bytes, size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the eigenvalues, falling, and float64 vectors ``(size, size)``; one thread, so that sums repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.frombuffer(bytearray(moments), dtype=torch.float64).view(size, size)
        variances, vectors = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    return variances.flip(0).numpy(), vectors.flip(1).mT.contiguous().numpy()


def _upright(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return vectors with a positive largest component, as multiples of 1 / UNIT in int16."""
    largest = np.abs(vectors).argmax(axis=1, keepdims=True)
    upright = vectors * np.sign(np.take_along_axis(vectors, largest, axis=1))
    rounded_vectors: np.ndarray[Any, Any] = np.rint(upright * UNIT).astype("<i2")
    return rounded_vectors


@lru_cache(maxsize=8)
def _tensor(basis: bytes, classes: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    if not basis:
        return torch.eye(classes, dtype=dtype, device=device).mul_(UNIT)
    values = np.frombuffer(basis, "<i2").reshape(-1, classes)
    return torch.from_numpy(values.astype(np.float64)).to(device=device, dtype=dtype)
