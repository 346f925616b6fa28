"""Samples of a dataset that are recognized in a store: by id, else by content, else by pixels.

The content digest is that of a file's bytes, the pixel digest that of its decoded image. Images that were saved again
without loss, in a container or as arrays, have the same pixels and other content. Their pixels are decoded only where
neither id nor content tells which they are, and where the store has pixel digests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.progress import Progress, silent
from kdpipe.store.reader import LogitStore
from kdpipe.store.segments import Samples, pixel_digests

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
DigestsOf = Callable[[Indices], Ids]
"""Returns digests of samples by their indices, ``(k, 16)``; zeros where they are unknown."""


def recognized(
    store: LogitStore | Samples,
    ids: Ids,
    *,
    content_of: DigestsOf,
    pixels_of: DigestsOf,
    doubted: Bools | None = None,
) -> Ids:
    """Return ``ids`` ``(n, 16)`` with the store's ids in place of those that it lacks and whose image it has.

    A row of the store whose own sample is there is given to no other. Of several samples with the same image, each gets
    a row of its own, in order. ``doubted``, ``(n,)``, are samples whose id the store has with another image, as where
    numbered files were numbered anew: those keep their ids unless their image is that of another row.
    """
    rows = find_ids(ids, store.sample_ids)
    doubted = np.zeros(len(ids), dtype=bool) if doubted is None else doubted
    wanted = np.flatnonzero((rows < 0) | doubted)
    if not wanted.size:
        return ids
    taken = np.zeros(store.num_samples, dtype=bool)
    taken[rows[(rows >= 0) & ~doubted]] = True
    contents, pixels = content_of(wanted), _Pixels(store, wanted, pixels_of)
    while True:
        free = np.flatnonzero(~taken)
        found = _paired(contents, store.content_digests, free)
        rest = np.flatnonzero(found < 0)
        found[rest] = pixels.paired(rest, np.setdiff1d(free, found))
        stuck = (found < 0) & doubted[wanted] & ~taken[rows[wanted]]
        if not stuck.any():
            break
        taken[rows[wanted[stuck]]] = True
    result = ids.copy()
    result[wanted[found >= 0]] = store.sample_ids[found[found >= 0]]
    return result


class _Pixels:
    """The pixel digests of some samples, each decoded once and only if it is asked for."""

    def __init__(self, store: LogitStore | Samples, wanted: Indices, pixels_of: DigestsOf) -> None:
        self._store, self._wanted, self._pixels_of = store, wanted, pixels_of
        self._among: Ids | None = None
        self._known = np.zeros((len(wanted), 16), dtype=np.uint8)
        self._decoded = np.zeros(len(wanted), dtype=bool)

    def paired(self, places: Indices, free: Indices) -> Indices:
        """Return the free row of each of the samples at ``places``, -1 for none."""
        if not (len(places) and len(free)):
            return np.full(len(places), -1)
        if self._among is None:
            known = pixel_digests(self._store.segments)
            self._among = np.empty((0, 16), dtype=np.uint8) if known is None else known
        if not len(self._among):
            return np.full(len(places), -1)
        new = places[~self._decoded[places]]
        if len(new):
            self._known[new] = self._pixels_of(self._wanted[new])
            self._decoded[new] = True
        return _paired(self._known[places], self._among, free)


def _paired(wanted: Ids, among: Ids, free: Indices) -> Indices:
    """Return for each of ``wanted`` a row of ``free`` that has this digest in ``among``, each once; -1 for none."""
    keys, pool = _keys(wanted), _keys(among[free])
    order = np.argsort(pool, kind="stable")
    first, end = (np.searchsorted(pool[order], keys, side=side) for side in ("left", "right"))
    by_key = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[by_key], keys[by_key], side="left")
    at = first.copy()
    at[by_key] += np.arange(len(keys)) - starts
    fits = (at < end) & wanted.any(axis=1)
    rows = np.full(len(wanted), -1)
    rows[fits] = free[order[at[fits]]]
    return rows


def differing(store: LogitStore | Samples, dataset: Dataset, rows: Indices, *, progress: Progress = silent) -> Bools:
    """Return which samples have another image than their row of the store, ``(n,)``; -1 in ``rows`` for none.

    Where content differs, pixels decide, if the store has digests of them.
    """
    changed: Bools = (rows >= 0) & (store.content_digests[rows] != dataset.content_digests).any(axis=1)
    at = np.flatnonzero(changed)
    if len(at) and (known := pixel_digests(store.segments)) is not None:
        at = at[known[rows[at]].any(axis=1)]
        same = (dataset.pixel_digests(at, progress=progress) == known[rows[at]]).all(axis=1)
        changed[at[same]] = False
    return changed


def store_ids(store: LogitStore | Samples, dataset: Dataset, *, progress: Progress = silent) -> Ids:
    """Return the ids of a dataset's samples with those of the store in their place; see ``recognized``."""
    rows = find_ids(dataset.sample_ids, store.sample_ids)
    return recognized(
        store,
        dataset.sample_ids,
        content_of=lambda indices: dataset.content_digests[indices],
        pixels_of=lambda indices: dataset.pixel_digests(indices, progress=progress),
        doubted=differing(store, dataset, rows, progress=progress),
    )


def _keys(ids: Ids) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(ids).view(np.dtype((np.void, 16))).reshape(-1)
