"""Shuffled training on planes that do not fit in memory: whole chunks in random order, samples shuffled in windows.

A window is as many randomly chosen chunks as half the memory limit holds. Its samples are shuffled fully, and the next
window is decoded meanwhile. ``docs/decisions.md`` compares this with a full shuffle.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import StoreError
from kdpipe.store.pieces import Rows
from kdpipe.store.planes import Plane
from kdpipe.store.reader import LogitStore
from kdpipe.views.philox import permutation

Indices = npt.NDArray[np.int64]
"""Samples of an epoch, as indices of its dataset."""

_BLOCK_STREAM, _SAMPLE_STREAM = 0xB10C_0000, 0x5A3F_0000


def windows(store: LogitStore, rows: Rows, *, data_seed: int, epoch: int) -> list[Indices]:
    """Return the windows of an epoch, each the indices of its samples in their order; together they are 0 to n - 1.

    Equal arguments, chunks and memory limit give equal windows on any machine.

    Args:
        store: its chunks and memory limit determine the windows.
        rows: the store's row of each index, int64 ``(n,)``; a row may occur several times.
        data_seed: seed of the order.
        epoch: number of the epoch, from 0; each has its own order.

    Raises:
        StoreError: half the memory limit does not hold one chunk.
    """
    chunk_bytes = store.chunk_rows * store.row_bytes
    held = store.memory_limit // 2 // chunk_bytes
    if not held:
        raise StoreError(
            f"{store.path}: two chunks of '{store.split}' take {2 * chunk_bytes:,} bytes of memory, the limit is "
            f"{store.memory_limit:,}. Raise memory_limit (--memory-limit)."
        )
    return draw(store.chunks_of(rows), held=held, data_seed=data_seed, epoch=epoch)


def draw(chunk: Indices, *, held: int, data_seed: int, epoch: int) -> list[Indices]:
    """Return windows of at most ``held`` chunks; ``chunk`` is the chunk of each index, int64 ``(n,)``."""
    chunks, chunk = np.unique(chunk, return_inverse=True)
    shuffled = permutation(len(chunks), seed=data_seed, stream=(_BLOCK_STREAM + epoch) % 2**32)
    window = np.empty(len(chunks), dtype=np.int64)
    for number, drawn in enumerate(np.array_split(shuffled, -(-len(chunks) // held))):
        window[drawn] = number
    order = permutation(len(chunk), seed=data_seed, stream=(_SAMPLE_STREAM + epoch) % 2**32)
    window_in_order = window[chunk[order]]
    order = order[np.argsort(window_in_order, kind="stable")]
    return np.split(order, np.cumsum(np.bincount(window_in_order))[:-1])


class _Window(NamedTuple):
    """The logits of a window: its sample ``i`` is the row ``places[i]`` of the plane."""

    plane: Plane
    places: torch.Tensor


class Pool:
    """The logits of an epoch's samples in the order of its windows, with at most two windows in memory."""

    def __init__(self, store: LogitStore, rows: Rows, parts: list[Indices], *, view: int) -> None:
        """Start to decode the first of the windows ``parts``; index ``i`` is the store's row ``rows[i]``.

        A row that occurs several times in a window is in memory once.
        """
        self._store, self._rows, self._parts, self._view = store, rows, parts, view
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-window")
        self._number, self._used = 0, 0
        self._current: _Window | None = None
        self._coming: Future[_Window] = self._submit(0)

    def logits(self, indices: Indices, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return float32 ``(len(indices), classes)``; see ``take``."""
        return self.take(indices).logits(slice(None), device)

    def take(self, indices: Indices) -> Plane:
        """Return the rows of ``indices``, still encoded; they must be the next ones of the windows.

        Raises:
            CorruptStoreError: a chunk of the window is damaged.
            ValueError: they are not the next ones.
        """
        found = []
        given = 0
        while given < len(indices):
            window, part = self._window(), self._parts[self._number]
            taken = min(len(indices) - given, len(part) - self._used)
            here = slice(self._used, self._used + taken)
            if not np.array_equal(part[here], indices[given : given + taken]):
                raise ValueError("samples must be taken in the order of the windows")
            found.append(window.plane.take(window.places[here]))
            given += taken
            self._used += taken
        return Plane.joined(found)

    def close(self) -> None:
        """Release the windows in memory and cancel decoding."""
        self._executor.shutdown(cancel_futures=True)
        self._current = None

    def _window(self) -> _Window:
        """Return the current window; if it is used up, free it, take the next one and start to decode the one after."""
        if self._current is not None and self._used == len(self._parts[self._number]):
            self._current, self._number, self._used = None, self._number + 1, 0
        if self._current is None:
            if self._number == len(self._parts):
                raise ValueError("all samples of the epoch were taken")
            self._current = self._coming.result()
            if self._number + 1 < len(self._parts):
                self._coming = self._submit(self._number + 1)
        return self._current

    def _submit(self, number: int) -> Future[_Window]:
        return self._executor.submit(self._read, self._parts[number])

    def _read(self, part: Indices) -> _Window:
        rows, places = np.unique(self._rows[part], return_inverse=True)
        return _Window(self._store.gather(self._view, rows), torch.from_numpy(places))
