"""Planes of a split in memory: decoded in parallel over their chunks, whole or in part."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from kdpipe.encoding.base import Encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError, StoreNotFoundError
from kdpipe.store import machine, manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.partial import Absent
from kdpipe.store.pieces import Array, Part, Piece, Rows, Span

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
        if device != "cpu":
            codes, row_max = codes.to(device), row_max.to(device)
        return self.encoding.decode(codes, row_max, self.classes)

    def signals(self, rows: torch.Tensor | slice, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Return the signals beside the logits, float32 ``(len(rows), *shape)`` on ``device``, by name."""
        return {name: _taken(kept, rows).to(device).float() for name, kept in self.beside.items()}


def _taken(kept: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    if isinstance(rows, slice):
        return kept[rows]
    # NumPy's take gathers rows several times as fast as torch's indexing, and faster than NumPy's own indexing.
    return torch.from_numpy(kept.numpy().take(rows.numpy(), axis=0))


class _Job(NamedTuple):
    """A piece of a segment's array, the array that receives it, and its file, relative to the store."""

    part: Part
    array: Array
    piece: Piece
    out: npt.NDArray[Any]
    file: str


class PlaneReader:
    """Decodes the planes of one split: the rows of its segments, one segment after the other.

    Each file is compared with its digest on its first use.
    """

    def __init__(
        self,
        store: Path,
        found: Manifest,
        live: Mapping[str, Rows | None],
        encoding: Encoding,
        *,
        beside: Sequence[str] = (),
        absent: Absent | None = None,
    ) -> None:
        """Prepare to read a store whose metadata was checked; planes hold the signals ``beside`` the logits.

        Files that are ``absent`` are fetched before they are decoded, or refused.

        ``live`` are the rows of each segment that are rows of a plane, by group; ``None`` for all of them.
        """
        self._store = store
        self._found = found
        self._absent = absent
        self._encoding = encoding
        self._classes = len(found.classes)
        self._parts = [Part.of(found, name, encoding, live=rows) for name, rows in live.items()]
        self._ends = np.cumsum([part.rows for part in self._parts])
        self._beside = tuple(beside)
        self.row_bytes = sum(array.row_bytes for array in self._parts[0].in_planes(self._beside))
        """Bytes of a row of a plane in memory: codes, row maximum and the signals beside them."""
        self._trusted: set[tuple[str, int, int]] = set()
        """Files with the right digest, by name, inode and time of change."""
        # Blosc's own threads would compete with the pool's.
        numcodecs.blosc.use_threads = False

    @property
    def rows(self) -> int:
        """Number of rows of a plane."""
        return int(self._ends[-1])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk, decoded."""
        largest: int = max(array.chunk_rows * array.row_bytes for part in self._parts for array in part.arrays)
        return largest

    def chunks_of(self, rows: Rows) -> Rows:
        """Return the chunk of each row, int64 ``(n,)``: numbers that differ between segments."""
        number = np.searchsorted(self._ends, rows, side="right")
        chunks, first = np.empty(len(rows), np.int64), 0
        for index, part in enumerate(self._parts):
            at, size = np.flatnonzero(number == index), part.labels[0].chunk_rows
            own = rows[at] - (int(self._ends[index]) - part.rows)
            chunks[at] = first + (own if part.live is None else part.live[own]) // size
            first += -(-part.samples // size)
        return chunks

    def read(self, view: int, start: int, stop: int) -> Plane:
        """Decode rows ``start`` to ``stop - 1`` of a view.

        Raises:
            CorruptStoreError: a file differs from its digest, a chunk from its checksum, or values are invalid.
            StaleStoreError: another store has replaced this one since it was opened.
        """
        return self._plane(view, stop - start, self._range(start, stop))

    def shared(self, view: int, rows: Rows | None, identity: Sequence[object]) -> Plane:
        """Return ``rows`` of a view, or all, that processes share; see ``machine.shared``, and ``read`` for errors."""
        number = self.rows if rows is None else len(rows)
        layout = [((number, *array.row), array.dtype) for array in self._in_planes]
        spans = self._range(0, number) if rows is None else self._spans(rows)
        which = "all" if rows is None else blake3(rows.tobytes()).hexdigest()
        identity = [*identity, view, which, *self._beside]
        return self._as_plane(machine.shared(identity, layout, lambda outs: self._decoded(view, spans, outs)))

    def gather(self, view: int, rows: Rows) -> Plane:
        """Decode the chunks that hold ``rows`` and return the rows in their order; see ``read`` for errors."""
        return self._plane(view, len(rows), self._spans(rows))

    def signal(self, name: str, view: int, rows: Rows) -> npt.NDArray[np.float16]:
        """Return a signal of ``rows`` in their order, float16 ``(n, *shape)``; see ``read`` for errors."""
        out = np.empty((len(rows), *self._parts[0].signals[name].row), np.float16)
        jobs = [self._jobs(view, span, span.part.signals[name], out) for span in self._spans(rows)]
        self._fill_or_raise(view, list(chain(*jobs)))
        return out.reshape(len(rows), *self._found.kept[name])

    def faults(self, view: int) -> Iterator[str]:
        """Decode all of a view, about 128 MiB at a time; yield one line for each damaged chunk or file.

        Rows with a newer one in a later segment are checked, too.
        """
        for part in self._parts:
            for array in part.arrays:
                step = array.chunk_rows * max(1, _SPAN_BYTES // (array.chunk_rows * array.row_bytes))
                for start in range(0, part.samples, step):
                    stop = min(start + step, part.samples)
                    out = np.empty((stop - start, *array.row), array.dtype)
                    yield from self._fill(view, self._jobs(view, Span(part, slice(start, stop)), array, out))

    def _range(self, start: int, stop: int) -> list[Span]:
        """Return the rows ``start`` to ``stop - 1`` of a plane, by segment."""
        spans = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            first, last = max(start, end - part.rows), min(stop, end)
            if first < last:
                own = slice(first - end + part.rows, last - end + part.rows)
                spans.append(Span(part, own if part.live is None else part.live[own], to=first - start))
        return spans

    def _spans(self, rows: Rows) -> list[Span]:
        """Return any rows of a plane, by segment."""
        if len(self._parts) == 1:
            (part,) = self._parts
            return [Span(part, rows if part.live is None else part.live[rows])]
        number = np.searchsorted(self._ends, rows, side="right")
        spans = []
        for index in np.unique(number).tolist():
            part, at = self._parts[index], np.flatnonzero(number == index)
            own = rows[at] - (int(self._ends[index]) - part.rows)
            spans.append(Span(part, own if part.live is None else part.live[own], at=at))
        return spans

    def _plane(self, view: int, rows: int, spans: list[Span]) -> Plane:
        outs = [np.empty((rows, *array.row), array.dtype) for array in self._in_planes]
        self._decoded(view, spans, outs)
        return self._as_plane(outs)

    @property
    def _in_planes(self) -> tuple[Array, ...]:
        return self._parts[0].in_planes(self._beside)

    def _decoded(self, view: int, spans: list[Span], outs: list[npt.NDArray[Any]]) -> None:
        """Decode rows of a view into the arrays of a plane."""
        jobs = [
            self._jobs(view, span, array, out)
            for span in spans
            for array, out in zip(span.part.in_planes(self._beside), outs, strict=True)
        ]
        self._fill_or_raise(view, list(chain(*jobs)))

    def _as_plane(self, outs: list[npt.NDArray[Any]]) -> Plane:
        codes, row_max, *signals = map(torch.from_numpy, outs)
        kept = self._found.kept
        beside = {name: flat.view(len(flat), *kept[name]) for name, flat in zip(self._beside, signals, strict=True)}
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

    def _jobs(self, view: int, span: Span, array: Array, out: npt.NDArray[Any]) -> list[_Job]:
        part = span.part
        return [_Job(part, array, piece, out, array.path(part.name, view, piece.chunk)) for piece in span.pieces(array)]

    def _fill(self, view: int, jobs: list[_Job]) -> Iterator[str]:
        """Decode in parallel; yield one line for each fault of a chunk, or else of its file."""
        if self._absent is not None:
            self._absent.require({job.file for job in jobs})
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
        last = min(first + job.array.chunk_rows, job.part.samples) - 1
        return f"{job.array.name} of view {view} of '{job.part.name}', rows {first} to {last}"
