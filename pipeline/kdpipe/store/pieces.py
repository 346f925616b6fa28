"""Rows of a split's segments, as pieces of the chunks that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdpipe.encoding.base import Encoding
from kdpipe.store import arrays
from kdpipe.store.manifest import Manifest
from kdpipe.store.sections import array_name

Rows = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """Rows ``source`` of a chunk, copied to the rows ``target`` of the result."""

    chunk: int
    source: slice | Rows
    target: slice | Rows


@dataclass(frozen=True)
class Array:
    """The cut of an array's plane: chunks in shards, or (``row_max``) files of one chunk."""

    name: str
    dtype: str
    row: tuple[int, ...]
    chunk_rows: int
    chunks_per_shard: int | None
    transposed: bool = False
    """Whether a chunk holds the columns of its rows one after the other."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, decoded."""
        return np.dtype(self.dtype).itemsize * math.prod(self.row)

    def path(self, split: str, view: int, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        return arrays.shard_path(split, self.name, view=view, shard=chunk // (self.chunks_per_shard or 1))

    def load(self, path: Path, piece: Piece, out: npt.NDArray[Any]) -> None:
        """Decode a chunk into ``out``: directly if the whole chunk is wanted in order, else through a buffer."""
        whole = piece.source == slice(0, self.chunk_rows) if isinstance(piece.source, slice) else False
        if self.transposed:
            into = np.empty((*self.row, self.chunk_rows), self.dtype)
        else:
            into = out[piece.target] if whole else np.empty((self.chunk_rows, *self.row), self.dtype)
        if self.chunks_per_shard is None:
            arrays.read_file(path, into)
        else:
            arrays.read_chunk(path, piece.chunk % self.chunks_per_shard, self.chunks_per_shard, into)
        if self.transposed:
            out[piece.target] = into.T[piece.source]
        elif not whole:
            out[piece.target] = into[piece.source]


@dataclass(frozen=True)
class Part:
    """The arrays of one segment, and the rows of it that are rows of the planes."""

    name: str
    samples: int
    labels: tuple[Array, Array]
    signals: Mapping[str, Array]
    live: Rows | None
    """Rows of the segment, in order; ``None`` for all of them."""

    @classmethod
    def of(cls, found: Manifest, name: str, encoding: Encoding, *, live: Rows | None) -> Part:
        """Return the arrays of a segment by its group ``name``."""
        cut, classes = found.splits[name], len(found.classes)
        per_shard = cut.shard_rows // cut.chunk_rows
        labels = (
            Array(
                "codes",
                encoding.dtype,
                (encoding.width(classes),),
                cut.chunk_rows,
                per_shard,
                encoding.compression.transposed,
            ),
            Array("row_max", "float32", (), cut.shard_rows, None),
        )
        signals = {
            signal: Array(array_name(signal), "float16", (math.prod(shape),), cut.chunk_rows, per_shard)
            for signal, shape in found.kept.items()
        }
        return cls(name, cut.samples, labels, signals, live)

    @property
    def rows(self) -> int:
        """Number of rows of the planes."""
        return self.samples if self.live is None else len(self.live)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All arrays."""
        return (*self.labels, *self.signals.values())

    def in_planes(self, beside: Sequence[str]) -> tuple[Array, ...]:
        """Return the arrays that planes hold, with the signals ``beside`` the logits."""
        return (*self.labels, *(self.signals[name] for name in beside))


class Span(NamedTuple):
    """Rows of one segment, and where they go in the result: from the row ``to`` on, or to the rows ``at``."""

    part: Part
    rows: slice | Rows
    to: int = 0
    at: Rows | None = None

    def pieces(self, array: Array) -> list[Piece]:
        """Return the pieces of the chunks of one of the segment's arrays."""
        if isinstance(self.rows, slice):
            return _consecutive(self.rows.start, self.rows.stop, array, to=self.to)
        return _scattered(self.rows, array, to=self.to if self.at is None else self.at)


def _consecutive(start: int, stop: int, array: Array, *, to: int) -> list[Piece]:
    size = array.chunk_rows
    pieces = []
    for chunk in range(start // size, -(-stop // size) if start < stop else 0):
        first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
        source, target = slice(first - chunk * size, last - chunk * size), slice(first - start + to, last - start + to)
        pieces.append(Piece(chunk, source, target))
    return pieces


def _scattered(rows: Rows, array: Array, *, to: int | Rows) -> list[Piece]:
    chunk = rows // array.chunk_rows
    order = np.argsort(chunk, kind="stable")
    groups: Iterable[Rows] = np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1)
    return [
        Piece(int(chunk[at[0]]), rows[at] % array.chunk_rows, at + to if isinstance(to, int) else to[at])
        for at in groups
        if len(at)
    ]


def row_numbers(rows: Any) -> Rows:
    """Return row numbers, of any sequence or array of integers, as int64 ``(n,)``; raises ``TypeError`` for others."""
    numbers = np.asarray(rows).reshape(-1)
    if numbers.dtype == np.int64:
        return np.ascontiguousarray(numbers)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(f"rows must be integers, found {numbers.dtype}")
    return np.ascontiguousarray(numbers, dtype=np.int64)
