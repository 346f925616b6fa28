"""One split of an open store: whole planes are decoded into memory, and rows are gathered from them.

Planes take at most ``memory_limit`` bytes: two of them, the one in use and the one being prefetched. Ranges and single
rows of larger planes can still be read, and ``blocks`` trains on them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.encoding.base import Encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError
from kdpipe.store import arrays, claims, machine, manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.partial import Absent, Supply, place_of
from kdpipe.store.pieces import row_numbers
from kdpipe.store.plan import encoding_of
from kdpipe.store.planes import Plane, PlaneReader
from kdpipe.store.sections import PENULTIMATE
from kdpipe.store.segments import populations, read_segments

MEMORY_LIMIT = 8 * 1024**3
"""Default of ``open_store``: 8 GiB, enough for two planes of 1.28 million samples and 1,000 classes in fp16."""
_PLANES_KEPT = 2


def open_store(
    path: str | Path,
    split: str = "train",
    *,
    memory_limit: int = MEMORY_LIMIT,
    beside: Sequence[str] = (),
    supply: Supply | None = None,
) -> LogitStore:
    """Open one split of a sealed store; names and sizes of its files are compared with the manifest first.

    Args:
        path: the store's directory, ``NAME.zarr``.
        split: ``train`` or ``test``.
        memory_limit: bytes for planes in memory, of which there are two at most. Each thread has a buffer besides.
        beside: signals, such as ``features:layer3``, that planes hold beside the logits, for training.
        supply: fetches files that are not here when they are needed.

    Raises:
        StoreNotFoundError: there is no store at ``path``.
        UnsealedStoreError: the store is still being built, or its build was interrupted.
        CorruptStoreError: files are missing, extra or of another size, or metadata is damaged.
        StaleStoreError: another process changed the store meanwhile.
        StoreError: there is no such split or signal, or the split claims more memory than the limit.
    """
    store = Path(path)
    found = manifest.read(store)
    try:
        absent = claims.check_store(store, found, split, supply=supply)
        return LogitStore(store, found, split, memory_limit=memory_limit, beside=beside, absent=absent)
    except (CorruptStoreError, OSError):
        if is_still(store, found):
            raise
        raise StaleStoreError(f"{store} was changed by another process while it was opened. Try again.") from None


def is_still(store: Path, found: Manifest) -> bool:
    """Return whether a store has the manifest that was read before."""
    try:
        return manifest.read(store) == found
    except StoreError:
        return False


class LogitStore:
    """One split of a sealed store."""

    def __init__(
        self,
        path: Path,
        found: Manifest,
        split: str,
        *,
        memory_limit: int,
        beside: Sequence[str] = (),
        absent: Absent | None = None,
    ) -> None:
        """Open a split of a checked store; use ``open_store``."""
        self.path = path
        self.manifest = found
        self.split = split
        self.memory_limit = memory_limit
        """Bytes for planes in memory."""
        self._encoding = encoding_of(path, found)
        if self._encoding.name != found.fingerprint.encoding:
            raise CorruptStoreError(
                f"{path}: its description is of encoding '{self._encoding.name}', its fingerprint names "
                f"'{found.fingerprint.encoding}'."
            )
        self.beside = tuple(dict.fromkeys(beside))
        """Signals that planes hold beside the logits."""
        for name in self.beside:
            self._check_signal(name)
        self.absent = absent
        """The files that are not here; ``None`` where all are."""
        self._planes: OrderedDict[int, Plane] = OrderedDict()
        groups = found.segments(split)
        self._reader = PlaneReader(
            path, found, dict.fromkeys(groups), self._encoding, beside=self.beside, absent=absent
        )
        specs = {
            name: arrays.specs(
                found.splits[name], encoding=self._encoding, classes=self.num_classes, signals=found.kept
            )
            for name in groups
        }
        claims.check_arrays(path, found, split, specs, memory_limit=memory_limit, chunk=self._reader.chunk_bytes)
        self.segments = read_segments(path, found, specs)
        """The samples that were cached together, the oldest segment first."""
        if sum(len(each.live) for each in self.segments) != found.samples(split):
            raise CorruptStoreError(f"{path}: the segments of '{split}' replace other rows than its manifest says.")
        if len(groups) > 1:
            live = {each.name: None if each.is_whole else each.live for each in self.segments}
            self._reader = PlaneReader(path, found, live, self._encoding, beside=self.beside, absent=absent)
        self.sample_ids: npt.NDArray[np.uint8] = self._joined("sample_ids")
        """``(n, 16)`` uint8."""
        self.labels: npt.NDArray[np.int32] = self._joined("labels")
        """``(n,)`` int32 hard labels at the time of the build, -1 for none."""
        self.content_digests: npt.NDArray[np.uint8] = self._joined("content_digests")
        """``(n, 16)`` uint8: BLAKE3-128 of each sample's file or pixels."""
        self.probe_rows, self.probe_hashes = self._probes()

    def _joined(self, name: str) -> npt.NDArray[Any]:
        """Return an array with an entry for each sample, of the rows that count in all segments."""
        parts: list[npt.NDArray[Any]] = [getattr(each, name) for each in self.segments]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([part[each.live] for part, each in zip(parts, self.segments, strict=True)])

    def _probes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return the rows whose rendered pixels were hashed, ``(p,)``, and the hashes, ``(num_views + 1, p)``."""
        rows, hashes, first = [], [], 0
        for each in self.segments:
            kept = each.live_probes
            rows.append(first + np.searchsorted(each.live, each.probe_rows[kept]))
            hashes.append(each.probe_hashes[:, kept])
            first += len(each.live)
        return np.concatenate(rows), np.concatenate(hashes, axis=1)

    @property
    def place(self) -> str:
        """The path, or the address that its files are fetched from, to open it by again."""
        address = None if self.absent is None else self.absent.address
        return str(self.path) if address is None else address

    def with_beside(self, signals: Sequence[str]) -> LogitStore:
        """Open the same split again, with planes that hold some signals beside the logits."""
        supply = None if self.absent is None else self.absent.supply
        return open_store(self.path, self.split, memory_limit=self.memory_limit, beside=signals, supply=supply)

    @property
    def populations(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """The ids ``(N, 16)`` among which each segment's mixing partners are; see ``segments.populations``."""
        return (self.sample_ids,) if len(self.segments) == 1 else populations(self.segments)

    @property
    def source_hashes(self) -> tuple[str, ...]:
        """64-bit hashes of the decoded source images of ``probe_rows``; none in stores of older versions."""
        recorded = self.manifest.rendering
        found: list[str] = []
        for each in self.segments:
            known = () if recorded is None else recorded.sources.get(each.name, ())
            if len(known) != len(each.probe_rows):
                return ()
            found += [mark for mark, kept in zip(known, each.live_probes, strict=True) if kept]
        return tuple(found)

    @property
    def num_samples(self) -> int:
        """Number of samples in the split."""
        return self._reader.rows

    @property
    def num_classes(self) -> int:
        """Number of classes, the length of a row of logits."""
        return len(self.manifest.classes)

    @property
    def num_views(self) -> int:
        """Number of augmented views, without the plain view 0."""
        return self.manifest.splits[self.segments[0].name].planes - 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.classes

    @property
    def encoding(self) -> Encoding:
        """Encoding of the logits; its ``max_temperature`` is the highest temperature that they serve."""
        return self._encoding

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals stored beside the logits, such as ``features:layer3``."""
        return tuple(self.manifest.kept)

    @property
    def digest(self) -> str:
        """The store's digest: equal for equal work."""
        assert self.manifest.digest is not None
        return self.manifest.digest

    @property
    def plane_bytes(self) -> int:
        """Bytes of a plane in memory, still encoded, including the signals ``beside`` the logits."""
        return self.num_samples * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a plane in memory; see ``plane_bytes``."""
        return self._reader.row_bytes

    @property
    def fits(self) -> bool:
        """Whether two planes fit the memory limit."""
        return _PLANES_KEPT * self.plane_bytes <= self.memory_limit

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk, the unit of decoding; the most of all segments."""
        return max(self.manifest.splits[each.name].chunk_rows for each in self.segments)

    def chunks_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of the chunk of each row, int64 ``(n,)``."""
        return self._reader.chunks_of(rows)

    def codes(self, view: int) -> Plane:
        """Read a view's codes into memory, in parallel over its chunks; the last two views stay in memory.

        Raises:
            StoreError: there is no such view, or a plane is larger than the memory limit.
            CorruptStoreError: a file differs from the manifest, or holds values that no encoder writes.
            StaleStoreError: another store has replaced this one since it was opened.
        """
        if view not in self._planes:
            self._check_view(view)
            self._check_memory(self.plane_bytes, f"a plane of '{self.split}'")
            allowed = min(_PLANES_KEPT, self.memory_limit // self.plane_bytes)
            while len(self._planes) >= allowed:
                self._planes.popitem(last=False)
            self._planes[view] = self._read(view)
        return self._planes[view]

    def _read(self, view: int) -> Plane:
        """Decode a view, or find it in the memory of another rank of this machine."""
        if machine.shares():
            return self._reader.shared(view, None, (self.digest, self.split))
        return self._reader.read(view, 0, self.num_samples)

    def expect(self, view: int) -> None:
        """Begin to fetch the files of a view that will be needed, where they are not here."""
        if self.absent is not None:
            places = {(each.name, view) for each in self.segments}
            self.absent.expect(name for name in self.manifest.files if place_of(name) in places)

    def rows(self, view: int, start: int, stop: int) -> Plane:
        """Read rows ``start`` to ``stop - 1`` of a view, which do not stay in memory; see ``codes`` for errors.

        Only the chunks that hold them are decoded. Each file is compared with its digest once.
        """
        self._check_view(view)
        if not 0 <= start <= stop <= self.num_samples:
            raise IndexError(f"rows {start} to {stop} do not lie in 0..{self.num_samples}")
        self._check_memory((stop - start) * self.row_bytes, f"{stop - start:,} rows of '{self.split}'")
        return self._reader.read(view, start, stop)

    def gather(self, view: int, rows: npt.NDArray[np.int64], *, shared: bool = False) -> Plane:
        """Read any rows of a view, in their order; otherwise like ``rows``. Processes of one machine may share them."""
        self._check_view(view)
        self._check_rows(rows)
        self._check_memory(len(rows) * self.row_bytes, f"{len(rows):,} rows of '{self.split}'")
        if shared and machine.possible():
            return self._reader.shared(view, rows, (self.digest, self.split))
        return self._reader.gather(view, rows)

    def plane(self, view: int) -> npt.NDArray[np.float32]:
        """Return all logits of a view as float32 ``(num_samples, num_classes)``; see ``codes`` for errors."""
        decoded = self.num_samples * self.num_classes * 4
        self._check_memory(self.plane_bytes + decoded, f"a decoded plane of '{self.split}'")
        plane = self.codes(view)
        logits: npt.NDArray[np.float32] = self._encoding.decode(plane.codes, plane.row_max, plane.classes).numpy()
        return logits

    def logits(self, rows: Any, view: int = 0) -> npt.NDArray[np.float32]:
        """Return the logits of some rows, 0 to ``num_samples - 1``, as float32 ``(len(rows), num_classes)``.

        If planes exceed the memory limit, each call decodes the chunks that it needs, which is slow for scattered
        rows. See ``codes`` for errors.
        """
        wanted = row_numbers(rows)
        self._check_rows(wanted)
        plane = (
            self.codes(view).logits(torch.from_numpy(wanted))
            if self.fits
            else self.gather(view, wanted).logits(slice(None))
        )
        gathered: npt.NDArray[np.float32] = plane.numpy()
        return gathered

    def signal(self, name: str, rows: Any, view: int = 0) -> npt.NDArray[np.float32]:
        """Return a signal of some rows, float32 ``(len(rows), channels)`` or ``(len(rows), H, W)``.

        Each call decodes the chunks that it needs. To train on signals, pass their names to ``open_store(beside=)``:
        planes then hold them.

        Raises:
            StoreError: the store has no such signal or view, or the rows exceed the memory limit.
            CorruptStoreError: as for ``codes``.
        """
        return self._signal(name, rows, view).astype(np.float32)

    def features(self, rows: Any, view: int = 0) -> npt.NDArray[np.float16]:
        """Return the teacher's penultimate features (input of the last layer), float16 ``(len(rows), dim)``.

        See ``signal`` for errors.
        """
        if PENULTIMATE not in self.signals:
            raise StoreError(
                f"{self.path} has no features. Make a store with: kdpipe cache-teacher --signals features:penultimate"
            )
        return self._signal(PENULTIMATE, rows, view)

    def _signal(self, name: str, rows: Any, view: int) -> npt.NDArray[np.float16]:
        self._check_signal(name)
        wanted = row_numbers(rows)
        self._check_view(view)
        self._check_rows(wanted)
        row_bytes = 4 * math.prod(self.manifest.kept[name])
        self._check_memory(row_bytes * len(wanted), f"{name} of {len(wanted):,} rows of '{self.split}'")
        return self._reader.signal(name, view, wanted)

    def faults(self, view: int) -> Iterator[str]:
        """Decode all of a view in the memory of one shard; yield one line for each damaged chunk or file."""
        self._check_view(view)
        return self._reader.faults(view)

    def _check_signal(self, name: str) -> None:
        if name not in self.signals:
            kept = f", only {', '.join(self.signals)}" if self.signals else ""
            raise StoreError(
                f"{self.path} has no {name}{kept}. Make a store with: kdpipe cache-teacher --signals {name}"
            )

    def _check_view(self, view: int) -> None:
        if not 0 <= view <= self.num_views:
            raise StoreError(f"{self.path} has views 0 to {self.num_views} of '{self.split}', not {view}.")

    def _check_rows(self, rows: npt.NDArray[np.int64]) -> None:
        if rows.size and np.maximum.reduce(rows.view(np.uint64)) >= self.num_samples:  # negative ones are large there
            raise IndexError(f"rows must lie in 0..{self.num_samples - 1}")

    def _check_memory(self, wanted: int, what: str) -> None:
        if wanted > self.memory_limit:
            raise StoreError(
                f"{self.path}: {what} takes {wanted:,} bytes of memory, the limit is {self.memory_limit:,}. Raise "
                "memory_limit (--memory-limit), or read fewer rows at a time with rows() or logits()."
            )
