"""Soft targets for data-loading workers from planes that do not fit in memory, or that ranks of a machine share.

Samples are taken in the order of the epoch's windows (``store.blocks``). Every process computes the same windows from
the number of the epoch, which all share, and maps the window that it needs: whichever process needs it first decodes it
for all processes of the machine. None waits for a window to be given back, so none can be waited for in vain.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import StoreError
from kdpipe.pairing.shared import Origin, share
from kdpipe.store.blocks import draw, windows
from kdpipe.store.planes import Plane
from kdpipe.store.reader import LogitStore

_KEPT = 2
"""Windows that a process keeps mapped: batches of two are prepared at a time."""


@dataclass
class _Epoch:
    """The windows of an epoch, as one process takes samples from them."""

    number: int
    parts: list[npt.NDArray[np.int64]]
    """The indices of each window, in their order."""
    window: npt.NDArray[np.int64]
    """The window of each index, ``(n,)``."""
    mapped: OrderedDict[int, tuple[npt.NDArray[np.int64], Plane]]
    """Windows by number: the rows of each, ascending, and their plane."""
    taken: int = 0
    """Samples that this process has taken since the epoch began."""
    mappings: int = 0
    """Windows that it has mapped for them."""


def _workers() -> int:
    """Return the number of processes that load the samples of this one's ``DataLoader``."""
    worker = torch.utils.data.get_worker_info()
    return 1 if worker is None else worker.num_workers


class WindowedTargets:
    """The soft targets of ``n`` samples, one window of one view at a time; see ``SharedTargets`` for its methods."""

    def __init__(self, origin: Origin, *, epoch: int, view: int, data_seed: int) -> None:
        """Serve ``view`` in the order of ``epoch``, which ``data_seed`` draws.

        Raises:
            StoreError: the memory limit does not hold two chunks.
        """
        self._origin, self._seed = origin, data_seed
        self._now = share(torch.tensor([epoch, view]))
        self._store: LogitStore | None = None
        self._epoch: _Epoch | None = None
        self._current()

    @property
    def view(self) -> int:
        """The current view."""
        return int(self._now[1])

    def start(self, epoch: int, view: int) -> None:
        """Begin an epoch, in all processes that share the number."""
        self._now.copy_(torch.tensor([epoch, view]))

    def order(self) -> npt.NDArray[np.int64]:
        """Return the indices of all samples in the order of the epoch's windows."""
        return np.concatenate(self._current().parts)

    def take(self, indices: list[int]) -> tuple[int, torch.Tensor]:
        """Return the current view and its logits of some samples, float32 ``(len(indices), classes)``.

        Raises:
            StoreError: samples are taken in another order than that of the windows; or as for ``Origin.open`` and
                ``LogitStore.gather``.
        """
        epoch, view = self._current(), self.view
        wanted = np.asarray(indices, dtype=np.int64)
        epoch.taken += len(wanted)
        number = epoch.window[wanted]
        found = torch.empty(len(wanted), self._opened.num_classes)
        for window in np.unique(number).tolist():
            here = np.flatnonzero(number == window)
            rows, plane = self._mapped(epoch, window, view)
            places = np.searchsorted(rows, self._origin.rows[wanted[here]])
            found[torch.from_numpy(here)] = plane.logits(torch.from_numpy(places))
        return view, found

    @property
    def _opened(self) -> LogitStore:
        if self._store is None:
            self._store = self._origin.open()
        return self._store

    def _current(self) -> _Epoch:
        number = int(self._now[0])
        if self._epoch is None or self._epoch.number != number:
            store, rows = self._opened, self._origin.rows
            if 2 * len(rows) * store.row_bytes <= store.memory_limit:
                parts = draw(np.zeros(len(rows), np.int64), held=1, data_seed=self._seed, epoch=number)
            else:
                parts = windows(store, rows, data_seed=self._seed, epoch=number)
            window = np.empty(len(rows), np.int64)
            for place, part in enumerate(parts):
                window[part] = place
            self._epoch = _Epoch(number, parts, window, OrderedDict())
        return self._epoch

    def _mapped(self, epoch: _Epoch, window: int, view: int) -> tuple[npt.NDArray[np.int64], Plane]:
        """Return the rows and the plane of a window, which replaces the one that was used the longest time ago."""
        if window in epoch.mapped:
            epoch.mapped.move_to_end(window)
            return epoch.mapped[window]
        epoch.mappings += 1
        if epoch.mappings > _KEPT + len(epoch.parts) * 2 * (1 + epoch.taken * _workers() / len(self._origin.rows)):
            raise StoreError(
                f"{self._origin.path}: its views exceed the memory limit of {self._origin.memory_limit:,} bytes, so "
                "samples must be loaded in the order of its windows: pass sampler=dataset.sampler() to the DataLoader "
                "in place of shuffle=True and call set_epoch, or open the store with a higher memory_limit."
            )
        while len(epoch.mapped) >= _KEPT:
            epoch.mapped.popitem(last=False)
        rows = np.unique(self._origin.rows[epoch.parts[window]])
        epoch.mapped[window] = rows, self._opened.gather(view, rows, shared=True)
        return epoch.mapped[window]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what a process opens for itself."""
        return {**self.__dict__, "_store": None, "_epoch": None}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Share the number of the epoch with a spawned process; any other copy has its own."""
        if get_spawning_popen() is None:
            epoch = int(self._now[0])
            made = partial(WindowedTargets, epoch=epoch, view=self.view, data_seed=self._seed)
            return made, (self._origin,)
        return super().__reduce_ex__(protocol)
