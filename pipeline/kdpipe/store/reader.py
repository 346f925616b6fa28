"""Reading a store: opened once and checked, decoded a whole plane at a time, gathered from memory."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr

from kdpipe import encoding
from kdpipe.encoding import Encoding
from kdpipe.errors import CorruptStoreError, StaleStoreError, StoreError, UnsealedStoreError, did_you_mean
from kdpipe.store import arrays, manifest
from kdpipe.store.layout import Layout
from kdpipe.store.manifest import Manifest

_PLANES_KEPT = 2
"""Planes held in memory: the one in use and the one being prefetched."""


@dataclass(frozen=True)
class Plane:
    """All samples of one view, still encoded, in main memory; rows are gathered and decoded on demand."""

    codes: torch.Tensor
    """``(n, width)`` of the encoding's dtype."""
    row_max: torch.Tensor
    """``(n,)`` float32."""
    encoding: Encoding
    classes: int
    """Number of classes, the length of a row of logits."""

    def logits(self, rows: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return float32 ``(len(rows), classes)`` on ``device`` for int64 ``rows``."""
        return self.encoding.decode(self.codes[rows].to(device), self.row_max[rows].to(device), self.classes)


class LogitStore:
    """One split of a sealed store."""

    def __init__(self, path: Path, found: Manifest, split: str) -> None:
        """Open a split; use ``open_store``, which checks the store first."""
        self.path = path
        self.manifest = found
        self.split = split
        self._encoding = encoding.from_description(found.encoding)
        if self._encoding.name != found.fingerprint.encoding:
            raise CorruptStoreError(f"{path}: its description is of encoding '{self._encoding.name}'.")
        self._planes: OrderedDict[int, Plane] = OrderedDict()
        self._check_arrays()
        self._root = arrays.open_root(path)
        self.labels: npt.NDArray[np.int32] = self._small("labels")
        """``(n,)`` int32 hard labels as they were when the store was made, -1 where there is none."""
        self.sample_ids: npt.NDArray[np.uint8] = self._small("sample_id")
        """``(n, 16)`` uint8."""
        self.content_digests: npt.NDArray[np.uint8] = self._small("content_digest")
        """``(n, 16)`` uint8: BLAKE3-128 of each sample's file or pixels."""
        self.probe_rows: npt.NDArray[np.int64] = self._small("probe_row")
        """``(p,)`` int64: the samples whose rendered pixels were hashed."""
        self.probe_hashes: npt.NDArray[np.uint64] = self._small("probe_hash")
        """``(num_views, p)`` uint64."""

    @property
    def num_samples(self) -> int:
        """Number of samples in this split."""
        return self.manifest.splits[self.split].samples

    @property
    def num_classes(self) -> int:
        """Number of classes, the length of a row of logits."""
        return len(self.manifest.classes)

    @property
    def num_views(self) -> int:
        """Number of augmented views; the plain view 0 is there besides."""
        return self.manifest.splits[self.split].planes - 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.manifest.classes

    @property
    def encoding(self) -> Encoding:
        """How the logits are kept, and so what they are good for."""
        return self._encoding

    @property
    def digest(self) -> str:
        """The store's digest: equal for equal work."""
        assert self.manifest.digest is not None
        return self.manifest.digest

    def codes(self, view: int) -> Plane:
        """Read a view's codes into memory, in parallel over its chunks; the last two views read are kept.

        Raises:
            StoreError: there is no such view.
            CorruptStoreError: a chunk fails its checksum or holds values that are not finite.
            StaleStoreError: the store was replaced by another since it was opened.
        """
        planes = self.num_views + 1
        if not 0 <= view < planes:
            raise StoreError(f"{self.path} has views 0 to {planes - 1} of '{self.split}', not {view}.")
        if view not in self._planes:
            plane = self._decode(view)
            while len(self._planes) >= _PLANES_KEPT:
                self._planes.popitem(last=False)
            self._planes[view] = plane
        return self._planes[view]

    def plane(self, view: int) -> npt.NDArray[np.float32]:
        """Return all logits of a view as float32 ``(num_samples, num_classes)``; see ``codes`` for errors."""
        plane = self.codes(view)
        logits: npt.NDArray[np.float32] = self._encoding.decode(plane.codes, plane.row_max, plane.classes).numpy()
        return logits

    def logits(self, indices: Any, view: int = 0) -> npt.NDArray[np.float32]:
        """Return the logits of some samples as float32 ``(len(indices), num_classes)``.

        ``indices`` are positions in the store, 0 to ``num_samples - 1``; see ``codes`` for errors.
        """
        rows = np.asarray(indices).reshape(-1)
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(f"positions must be integers, got {rows.dtype}")
        rows = rows.astype(np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.num_samples):
            raise IndexError(f"positions must lie in 0..{self.num_samples - 1}")
        gathered: npt.NDArray[np.float32] = self.codes(view).logits(torch.from_numpy(rows)).numpy()
        return gathered

    def _decode(self, view: int) -> Plane:
        codes, row_max = self._read("codes", view), self._read("row_max", view)
        if manifest.read(self.path).fingerprint != self.manifest.fingerprint:
            raise StaleStoreError(f"{self.path} was replaced by another store since it was opened. Open it again.")
        bad = ~np.isfinite(row_max) | self._encoding.invalid(torch.from_numpy(codes), self.num_classes).numpy()
        if bad.any():
            raise CorruptStoreError(
                f"{self.path}: view {view} of '{self.split}' has no valid values in row {int(bad.argmax())} "
                f"({int(bad.sum())} rows in all). Run: kdpipe verify {self.path}"
            )
        return Plane(torch.from_numpy(codes), torch.from_numpy(row_max), self._encoding, self.num_classes)

    def _read(self, name: str, view: int) -> npt.NDArray[Any]:
        try:
            return np.ascontiguousarray(self._array(name)[view])
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise CorruptStoreError(
                f"{self.path}: {name} of view {view} of '{self.split}', {self._damaged_rows(name, view)}: damaged "
                f"({error}). Run: kdpipe verify {self.path}"
            ) from error

    def _damaged_rows(self, name: str, view: int) -> str:
        cut = self.manifest.splits[self.split]
        for start, stop in Layout(cut.chunk_rows, cut.shard_rows).shards(cut.samples):
            try:
                self._array(name)[view, start:stop]
            except (ValueError, RuntimeError, KeyError, OSError):
                return f"rows {start} to {stop - 1}"
        return "all rows"

    def _small(self, name: str) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._array(name)[...])
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise CorruptStoreError(f"{self.path}: {self.split}/{name} is damaged ({error}).") from error

    def _array(self, name: str) -> zarr.Array[Any]:
        return arrays.member(self._root, self.split, name)

    def _check_arrays(self) -> None:
        expected = arrays.specs(
            self.manifest.splits[self.split],
            width=self._encoding.width(self.num_classes),
            dtype=self._encoding.dtype,
            features=self.manifest.features,
        )
        fault = arrays.check(self.path, self.split, expected)
        if fault is not None:
            raise CorruptStoreError(f"{self.path}: {fault}.")


def open_store(path: str | Path, split: str = "train") -> LogitStore:
    """Open one split of a sealed store, after comparing its files' names and sizes with the manifest.

    Raises:
        StoreNotFoundError: there is no store at ``path``.
        UnsealedStoreError: it is still being built, or its build was interrupted.
        CorruptStoreError: files are missing, extra or of another size, or metadata is damaged.
        StoreError: there is no such split.
    """
    store = Path(path)
    found = manifest.read(store)
    if found.state != "sealed":
        raise UnsealedStoreError(
            f"{store} is not sealed: its build is still running or was interrupted. Run the same "
            "kdpipe cache-teacher command again to finish it."
        )
    faults = missing_or_resized(store, found)
    if faults:
        more = f" ({len(faults)} faults in all)" if len(faults) > 1 else ""
        raise CorruptStoreError(f"{store}: {faults[0]}{more}. Run: kdpipe verify {store}")
    if split not in found.splits:
        hint = did_you_mean(split, found.splits)
        raise StoreError(f"{store} has no split '{split}', only {', '.join(found.splits)}{hint}")
    metadata_faults = [
        name
        for name, file in found.files.items()
        if name.endswith("zarr.json") and manifest.digest_file(store / name) != file.digest
    ]
    if metadata_faults:
        raise CorruptStoreError(f"{store}: {metadata_faults[0]} was changed. Run: kdpipe verify {store}")
    return LogitStore(store, found, split)


def missing_or_resized(store: Path, found: Manifest) -> list[str]:
    """Compare names and sizes of a sealed store's files with its manifest; one line for each fault."""
    present = file_sizes(store)
    present.pop("zarr.json", None)
    faults = [f"{name} is missing" for name in sorted(found.files.keys() - present.keys())]
    faults += [f"{name} does not belong to the store" for name in sorted(present.keys() - found.files.keys())]
    faults += [
        f"{name} has {present[name]} bytes, expected {file.size}"
        for name, file in sorted(found.files.items())
        if name in present and present[name] != file.size
    ]
    return faults


def file_sizes(store: Path) -> dict[str, int]:
    """Return the bytes of every file by its path in the store, without those that a writer takes away meanwhile."""
    sizes = {}
    for path in store.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                sizes[path.relative_to(store).as_posix()] = path.stat().st_size
    return sizes
