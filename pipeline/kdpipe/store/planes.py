"""Planes of a split in memory: decoded in parallel over their chunks, whole or in part."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch

from kdpipe.encoding.base import Encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError, StoreNotFoundError
from kdpipe.store import arrays, manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.sections import array_name

Rows = npt.NDArray[np.int64]

_MOST_THREADS = 16
"""Each thread takes the memory of two chunks."""
_SPAN_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class Plane:
    """Rows of one view, still encoded, in main memory; gathered and decoded on demand."""

    codes: torch.Tensor
    """``(n, width)`` of the encoding's dtype."""
    row_max: torch.Tensor
    """``(n,)`` float32."""
    encoding: Encoding
    classes: int
    """Number of classes, the length of a row of logits."""
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Signals beside the logits, float16 ``(n, channels)`` or ``(n, H, W)``, by name."""

    def take(self, rows: torch.Tensor | slice) -> Plane:
        """Return some rows, still encoded; ``rows`` is an int64 tensor on the CPU or a slice."""
        beside = {name: _taken(kept, rows) for name, kept in self.beside.items()}
        return Plane(_taken(self.codes, rows), _taken(self.row_max, rows), self.encoding, self.classes, beside)

    @classmethod
    def joined(cls, parts: Sequence[Plane]) -> Plane:
        """Return the rows of several planes of one store, one after the other."""
        first = parts[0]
        if len(parts) == 1:
            return first
        beside = {name: torch.cat([part.beside[name] for part in parts]) for name in first.beside}
        codes, row_max = torch.cat([part.codes for part in parts]), torch.cat([part.row_max for part in parts])
        return cls(codes, row_max, first.encoding, first.classes, beside)

    def logits(self, rows: torch.Tensor | slice, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return float32 ``(len(rows), classes)`` on ``device``; ``rows`` are as for ``take``."""
        codes, row_max = _taken(self.codes, rows), _taken(self.row_max, rows)
        return self.encoding.decode(codes.to(device), row_max.to(device), self.classes)

    def signals(self, rows: torch.Tensor | slice, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return the signals beside the logits, float32 ``(len(rows), *shape)`` on ``device``, by name."""
        return {name: _taken(kept, rows).to(device).float() for name, kept in self.beside.items()}


def _taken(kept: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    if isinstance(rows, slice):
        return kept[rows]
    # NumPy's take gathers rows several times as fast as torch's indexing, and faster than NumPy's own indexing.
    return torch.from_numpy(kept.numpy().take(rows.numpy(), axis=0))


class _Piece(NamedTuple):
    """Rows ``source`` of a chunk, copied to the rows ``target`` of the result."""

    chunk: int
    source: slice | Rows
    target: slice | Rows


@dataclass(frozen=True)
class _Array:
    """The cut of an array's plane: chunks in shards, or (``row_max``) files of one chunk."""

    name: str
    dtype: str
    row: tuple[int, ...]
    chunk_rows: int
    chunks_per_shard: int | None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, decoded."""
        return np.dtype(self.dtype).itemsize * math.prod(self.row)

    def path(self, split: str, view: int, chunk: int) -> str:
        """Return the file that holds a chunk, relative to the store."""
        return arrays.shard_path(split, self.name, view=view, shard=chunk // (self.chunks_per_shard or 1))

    def load(self, path: Path, piece: _Piece, out: npt.NDArray[Any]) -> None:
        """Decode a chunk into ``out``: directly if the whole chunk is wanted in order, else through a buffer."""
        whole = piece.source == slice(0, self.chunk_rows) if isinstance(piece.source, slice) else False
        into = out[piece.target] if whole else np.empty((self.chunk_rows, *self.row), self.dtype)
        if self.chunks_per_shard is None:
            arrays.read_file(path, into)
        else:
            arrays.read_chunk(path, piece.chunk % self.chunks_per_shard, self.chunks_per_shard, into)
        if not whole:
            out[piece.target] = into[piece.source]


class _Job(NamedTuple):
    """A piece of an array, the array that receives it, and its file, relative to the store."""

    array: _Array
    piece: _Piece
    out: npt.NDArray[Any]
    file: str


class PlaneReader:
    """Decodes the planes of one split; each file is compared with its digest on its first use."""

    def __init__(
        self, store: Path, found: Manifest, split: str, encoding: Encoding, *, beside: Sequence[str] = ()
    ) -> None:
        """Prepare to read a store whose metadata was checked; planes hold the signals ``beside`` the logits."""
        cut = found.splits[split]
        self._store, self._split, self._samples = store, split, cut.samples
        self._found = found
        self._encoding = encoding
        self._classes = len(found.classes)
        per_shard = cut.shard_rows // cut.chunk_rows
        self._labels = (
            _Array("codes", encoding.dtype, (encoding.width(self._classes),), cut.chunk_rows, per_shard),
            _Array("row_max", "float32", (), cut.shard_rows, None),
        )
        self._signals = {
            name: _Array(array_name(name), "float16", (math.prod(shape),), cut.chunk_rows, per_shard)
            for name, shape in found.kept.items()
        }
        self._beside = tuple(beside)
        self.row_bytes = sum(array.row_bytes for array in self._in_planes)
        """Bytes of a row of a plane in memory: codes, row maximum and the signals beside them."""
        self._trusted: set[tuple[str, int, int]] = set()
        """Files with the right digest, by name, inode and time of change."""
        # Blosc's own threads would compete with the pool's.
        numcodecs.blosc.use_threads = False

    @property
    def _in_planes(self) -> tuple[_Array, ...]:
        return (*self._labels, *(self._signals[name] for name in self._beside))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk, decoded."""
        largest: int = max(array.chunk_rows * array.row_bytes for array in (*self._labels, *self._signals.values()))
        return largest

    def read(self, view: int, start: int, stop: int) -> Plane:
        """Decode rows ``start`` to ``stop - 1`` of a view.

        Raises:
            CorruptStoreError: a file differs from its digest, a chunk from its checksum, or values are invalid.
            StaleStoreError: another store has replaced this one since it was opened.
        """
        return self._plane(view, stop - start, lambda array: _consecutive(start, stop, array))

    def gather(self, view: int, rows: Rows) -> Plane:
        """Decode the chunks that hold ``rows`` and return the rows in their order; see ``read`` for errors."""
        return self._plane(view, len(rows), lambda array: _scattered(rows, array))

    def signal(self, name: str, view: int, rows: Rows) -> npt.NDArray[np.float16]:
        """Return a signal of ``rows`` in their order, float16 ``(n, *shape)``; see ``read`` for errors."""
        array = self._signals[name]
        out = np.empty((len(rows), *array.row), np.float16)
        self._fill_or_raise(view, self._jobs(view, array, _scattered(rows, array), out))
        return out.reshape(len(rows), *self._found.kept[name])

    def faults(self, view: int) -> Iterator[str]:
        """Decode all of a view, about 128 MiB at a time; yield one line for each damaged chunk or file."""
        for array in (*self._labels, *self._signals.values()):
            span = array.chunk_rows * max(1, _SPAN_BYTES // (array.chunk_rows * array.row_bytes))
            for start in range(0, self._samples, span):
                stop = min(start + span, self._samples)
                out = np.empty((stop - start, *array.row), array.dtype)
                yield from self._fill(view, self._jobs(view, array, _consecutive(start, stop, array), out))

    def _plane(self, view: int, rows: int, cut: Callable[[_Array], list[_Piece]]) -> Plane:
        outs = [np.empty((rows, *array.row), array.dtype) for array in self._in_planes]
        jobs = [self._jobs(view, array, cut(array), out) for array, out in zip(self._in_planes, outs, strict=True)]
        self._fill_or_raise(view, list(chain(*jobs)))
        codes, row_max, *signals = map(torch.from_numpy, outs)
        kept = self._found.kept
        beside = {name: flat.view(rows, *kept[name]) for name, flat in zip(self._beside, signals, strict=True)}
        return Plane(codes, row_max, self._encoding, self._classes, beside)

    def _fill_or_raise(self, view: int, jobs: list[_Job]) -> None:
        for fault in self._fill(view, jobs):
            self._refuse_replaced()
            raise CorruptStoreError(f"{self._store}: {fault}. Run: kdpipe verify {shlex.quote(str(self._store))}")

    def _refuse_replaced(self) -> None:
        """Raise ``StaleStoreError`` if another store is at the path: its files differ without being damaged."""
        try:
            now = manifest.read(self._store)
        except StoreNotFoundError:
            raise StaleStoreError(
                f"{self._store} was removed or replaced since it was opened. Open it again."
            ) from None
        except StoreError:
            return
        if now != self._found:
            raise StaleStoreError(f"{self._store} was replaced by another store since it was opened. Open it again.")

    def _jobs(self, view: int, array: _Array, pieces: list[_Piece], out: npt.NDArray[Any]) -> list[_Job]:
        return [_Job(array, piece, out, array.path(self._split, view, piece.chunk)) for piece in pieces]

    def _fill(self, view: int, jobs: list[_Job]) -> Iterator[str]:
        """Decode in parallel; yield one line for each fault of a chunk, or else of its file."""
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), thread_name_prefix="kdpipe-decode")
        try:
            decoded = [pool.submit(self._decode, job) for job in jobs]
            stamps = {file: self._stamp(file) for file in sorted({job.file for job in jobs})}
            digested = {
                file: pool.submit(self._differs, file) for file, stamp in stamps.items() if stamp not in self._trusted
            }
            for job, done in zip(jobs, decoded, strict=True):
                fault = done.result()
                if fault is not None:
                    digested.pop(job.file, None)
                    yield f"{self._place(job, view)}: {fault}"
            for file, differs in digested.items():
                if differs.result():
                    yield f"{file} does not match its digest"
                else:
                    self._trusted.add(stamps[file])
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, job: _Job) -> str | None:
        """Decode a chunk and check its values; return its fault, if it has one."""
        try:
            job.array.load(self._store / job.file, job.piece, job.out)
        except (ValueError, RuntimeError, OSError) as error:
            return f"damaged ({error})"
        return self._invalid(job)

    def _stamp(self, file: str) -> tuple[str, int, int]:
        try:
            status = (self._store / file).stat()
        except OSError:
            return file, -1, -1
        return file, status.st_ino, status.st_ctime_ns

    def _differs(self, file: str) -> bool:
        try:
            listed = self._found.files.get(file)
            return listed is None or manifest.digest_file(self._store / file) != listed.digest
        except OSError:
            return True

    def _invalid(self, job: _Job) -> str | None:
        """Return a line with the number of rows that no encoder writes, or ``None`` if there are none."""
        values = job.out[job.piece.target]
        if job.array.name == "codes":
            bad = self._encoding.invalid(torch.from_numpy(values), self._classes).numpy()
        else:
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        count = int(bad.sum())
        return f"no valid values in {count} row{'s' if count > 1 else ''}" if count else None

    def _place(self, job: _Job, view: int) -> str:
        first = job.piece.chunk * job.array.chunk_rows
        last = min(first + job.array.chunk_rows, self._samples) - 1
        return f"{job.array.name} of view {view} of '{self._split}', rows {first} to {last}"


def _consecutive(start: int, stop: int, array: _Array) -> list[_Piece]:
    size = array.chunk_rows
    pieces = []
    for chunk in range(start // size, -(-stop // size) if start < stop else 0):
        first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
        source, target = slice(first - chunk * size, last - chunk * size), slice(first - start, last - start)
        pieces.append(_Piece(chunk, source, target))
    return pieces


def _scattered(rows: Rows, array: _Array) -> list[_Piece]:
    chunk = rows // array.chunk_rows
    order = np.argsort(chunk, kind="stable")
    groups: Iterable[Rows] = np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1)
    return [_Piece(int(chunk[at[0]]), rows[at] % array.chunk_rows, at) for at in groups if len(at)]
