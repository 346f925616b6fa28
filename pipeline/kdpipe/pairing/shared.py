"""Soft targets for data-loading workers, decoded by one process into memory that all of them share.

A plane per worker would take too much memory, and a persistent worker must follow to the next view. So workers only
gather: their parent decodes a view into shared memory and then switches to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import StaleStoreError, StoreError
from kdpipe.store.partial import Supply
from kdpipe.store.planes import Plane
from kdpipe.store.reader import LogitStore, open_store


@dataclass(frozen=True, eq=False)
class Origin:
    """The place of some rows of a sealed store, which is opened again for each view."""

    path: Path
    split: str
    digest: str
    memory_limit: int
    """Bytes for all views in memory."""
    rows: npt.NDArray[np.int64]
    """The store's row of each sample, ``(n,)``."""
    supply: Supply | None = None
    """Fetches files of the store that are not here."""

    @classmethod
    def of(cls, store: LogitStore, rows: npt.NDArray[np.int64]) -> Origin:
        """Return the place of ``rows`` of an open store."""
        supply = None if store.absent is None else store.absent.supply
        return cls(store.path.absolute(), store.split, store.digest, store.memory_limit, rows, supply)

    def read(self, view: int) -> Plane:
        """Decode the rows of a view; raises a ``StoreError`` as ``open`` and ``LogitStore.gather`` do."""
        return self.open().gather(view, self.rows)

    def open(self) -> LogitStore:
        """Open the store again.

        Raises:
            StaleStoreError: another store is at the path now.
            StoreError: there is no intact store; see ``open_store``.
        """
        store = open_store(self.path, self.split, memory_limit=self.memory_limit, supply=self.supply)
        if store.digest != self.digest:
            raise StaleStoreError(
                f"{self.path} has been made anew: its digest is {store.digest}, and was {self.digest} when the dataset "
                "was attached. Attach the dataset again."
            )
        return store


class SharedTargets:
    """The soft targets of ``n`` samples, one view at a time.

    With two slots, ``switch`` fills the idle one and then makes it current, so a worker always gathers from a single
    view. Pickled for a spawned process, the memory is shared; any other copy decodes its own.
    """

    def __init__(self, origin: Origin, *, view: int, slots: int) -> None:
        """Decode ``view`` into the first of ``slots``; see ``Origin.read`` for errors.

        Raises:
            StoreError: the slots exceed the memory limit, or there is too little shared memory.
        """
        self._origin = origin
        plane = origin.read(view)
        needed = slots * (plane.codes.nbytes + plane.row_max.nbytes)
        if needed > origin.memory_limit:
            raise StoreError(
                f"{origin.path}: {slots} views of {len(origin.rows):,} samples take {needed:,} bytes of memory, the "
                f"limit is {origin.memory_limit:,}. Open the store with a higher memory_limit, or attach fewer samples."
            )
        try:
            self._slots = tuple(_shared_like(plane) for _ in range(slots))
        except RuntimeError as error:
            raise StoreError(
                f"{origin.path}: no shared memory for {slots} views of {len(origin.rows)} samples ({error}). "
                "Enlarge /dev/shm (in Docker: --shm-size or --ipc=host)."
            ) from error
        self._held = share(torch.full((slots,), -1))
        self._current = share(torch.zeros((), dtype=torch.int64))
        self._fill(0, view, plane)

    @property
    def view(self) -> int:
        """The current view."""
        return int(self._held[self._current])

    def start(self, epoch: int, view: int) -> None:  # noqa: ARG002 (any order will do)
        """Begin an epoch; see ``switch``."""
        self.switch(view)

    def switch(self, view: int) -> None:
        """Decode ``view`` unless a slot holds it, and make it current in all processes that share the memory.

        See ``Origin.read`` for errors.
        """
        if view == self.view:
            return
        slot = (int(self._current) + 1) % len(self._slots)
        if int(self._held[slot]) != view:
            self._fill(slot, view, self._origin.read(view))
        self._current.fill_(slot)

    def take(self, indices: list[int]) -> tuple[int, torch.Tensor]:
        """Return the current view and its logits of some samples, float32 ``(len(indices), classes)``."""
        slot = int(self._current)
        return int(self._held[slot]), self._slots[slot].logits(torch.tensor(indices, dtype=torch.int64))

    def _fill(self, slot: int, view: int, plane: Plane) -> None:
        self._slots[slot].codes.copy_(plane.codes)
        self._slots[slot].row_max.copy_(plane.row_max)
        self._held[slot] = view

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Share the memory with a spawned process; any other copy reads the store."""
        if get_spawning_popen() is None:
            return partial(SharedTargets, view=self.view, slots=len(self._slots)), (self._origin,)
        return super().__reduce_ex__(protocol)


def _shared_like(plane: Plane) -> Plane:
    return Plane(
        codes=share(torch.empty_like(plane.codes)),
        row_max=share(torch.empty_like(plane.row_max)),
        encoding=plane.encoding,
        classes=plane.classes,
    )


def share(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in memory that processes share."""
    shared: torch.Tensor = tensor.share_memory_()
    return shared
