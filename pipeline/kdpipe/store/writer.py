"""Writer of a store: whole shards, one writer of each, a ledger to resume from, and a seal at the end.

A shard is finished once its files are on disk and in the ledger. A killed build continues with the first unfinished
shard. Batches never straddle a shard, so the result has the same bytes, by however many processes (``build_together``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import ModelError
from kdpipe.store import arrays, contents, finished, manifest, shards, skeleton
from kdpipe.store.leases import PATIENCE, Membership, leases_of
from kdpipe.store.ledger import Entry, Ledger, lock, writing
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan, Shard, encoding_of, plane_digests, planes_of, shards_of
from kdpipe.store.planes import Plane
from kdpipe.store.settings import WHOLE, Part

_QUEUE = 2
"""Shards that may wait for encoding and writing while the teacher continues."""
MEMORY_LIMIT = 1024**3
"""Default of ``Builder.memory_limit``: enough for three of the largest shards of float32."""


@contextmanager
def build(path: Path, plan: Plan, *, overwrite: bool = False) -> Iterator[Builder]:
    """Start, resume or extend the store at ``path``; yields its ``Builder`` under the writer lock.

    A sealed store of equal ingredients is opened for the views that it lacks; its planes are kept.

    Args:
        path: the store's directory, ``NAME.zarr``.
        plan: the content of the store.
        overwrite: replace a store of other ingredients instead of raising an error.

    Raises:
        StaleStoreError: the store at ``path`` differs from the plan; the message lists the parts.
        StoreError: something else is at ``path``.
        StoreLockedError: another process is writing it.
        UnwritableStoreError: the disk is full or read-only; also raised by the builder's methods.
    """
    with ExitStack() as held:
        with writing(path):
            held.enter_context(lock(path))
            found = skeleton.opened(path, plan, overwrite=overwrite)
            builder = Builder(path, found, keys=plan.keys)
        held.callback(builder.close)
        yield builder


@contextmanager
def build_together(
    path: Path, plan: Callable[[], Plan], part: Part, *, overwrite: bool = False, patience: float = PATIENCE
) -> Iterator[Builder]:
    """Build the store at ``path`` as one of several processes that run this, each on the shards that it leases.

    The first makes the store and the last seals it; a process that dies leaves its shards to the others.

    Args:
        path: the store's directory, ``NAME.zarr``, which all processes see.
        plan: returns the content of the store. The first process calls it under the lock, and then as all others do,
            once the store is made.
        part: the part of the shards that this process begins with.
        overwrite: replace a store of other ingredients instead of raising an error.
        patience: seconds without a sign of life of the other processes after which waiting for them is an error.

    Raises:
        StaleStoreError: as for ``build``; or this process would compute other logits than the others.
        StoreLockedError: a process writes the store alone; or the others show no sign of life.
    """
    with ExitStack() as held:
        with writing(path):
            membership = held.enter_context(Membership(path, patience=patience))
            membership.prepare(
                lambda: _prepare(path, plan(), overwrite, membership), lambda: (path / "zarr.json").exists()
            )
            wanted, found = plan(), manifest.read(path)
            skeleton.refuse_differences(path, found, wanted.manifest())
            if found.state != "sealed":
                membership.join()
            builder = Builder(path, found, keys=wanted.keys, membership=membership, part=part)
        held.callback(builder.close)
        yield builder


@contextmanager
def continue_alone(path: Path) -> Iterator[Builder]:
    """Open a store that exists, without its plan: to read what is finished, and to seal what is complete.

    Raises:
        StoreNotFoundError: there is no store at ``path``.
        StoreLockedError: another process is writing it.
    """
    manifest.read(path)
    with ExitStack() as held:
        with writing(path):
            held.enter_context(lock(path))
            builder = Builder(path, manifest.read(path), keys={})
        held.callback(builder.close)
        yield builder


class Builder:
    """Writes the teacher's logits shard by shard, and seals the complete store."""

    def __init__(
        self,
        path: Path,
        found: Manifest,
        *,
        keys: Mapping[str, Sequence[str]],
        membership: Membership | None = None,
        part: Part = WHOLE,
        touch: Callable[[], None] = lambda: None,
    ) -> None:
        """Continue a store that exists and is locked by this process; ``keys`` are those of each split's samples.

        With a ``membership``, other processes write it, too, and this one begins with its ``part``. ``touch`` is called
        while finished shards are read.
        """
        self.path = path
        self._keys = keys
        self.manifest = found
        self.memory_limit = MEMORY_LIMIT
        """Bytes of the logits and signals that are computed, encoded or written at once, though at least one shard."""
        self._encoding = encoding_of(path, found)
        self._membership, self._part = membership, part
        self._ledger = Ledger(path, token=None if membership is None else membership.token)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-writer")
        self._writing: list[Future[None]] = []
        self._done: dict[str, Entry] = {}
        self._number: dict[Shard, int] = {}
        self._elsewhere = dict.fromkeys(found.splits, 0)
        self._since = time.monotonic()
        self._places = planes_of(found)
        if membership is None and self.sealed:
            self._remove_beside()
        elif not self.sealed:
            if membership is None:
                self._done = finished.confirmed(path, self._ledger, found, touch=touch)
                self._ledger.rewrite(list(self._done.values()), choice=found.choice)
            else:
                self._done = finished.in_place(path, self._ledger.read(), found)
            every = [shard for place in self._places for shard in self.shards(*place)]
            self._number = {shard: number for number, shard in enumerate(every)}
            self._count(self._done)
            self._root = arrays.open_root(path, mode="r+")

    @property
    def sealed(self) -> bool:
        """Whether the store is complete."""
        return self.manifest.state == "sealed"

    def shards(self, split: str, view: int) -> list[Shard]:
        """Return every shard of a plane, finished or not."""
        return shards_of(self.manifest, split, view)

    def is_done(self, shard: Shard) -> bool:
        """Return whether a shard is on disk and in the ledger."""
        return self.sealed or all(path in self._done for path in shard.paths)

    def views(self, split: str) -> list[int]:
        """Return the views of a split in the order in which this process computes them."""
        return self._part.dealt(list(range(self.manifest.splits[split].planes)))

    def unfinished(self, split: str, view: int) -> Iterator[Shard]:
        """Yield the shards of a plane that are to be computed: those that are unfinished when their turn comes.

        Of several processes that write the store, each gets other ones.
        """
        self._since = time.monotonic()
        for shard in self._part.dealt(self.shards(split, view)):
            if not self.is_done(shard) and self._leased(shard):
                yield shard

    def complete(self, split: str) -> bool:
        """Write what was submitted; return whether all shards of a split are finished.

        Waits while other processes compute the rest. False: one of them has died, and ``unfinished`` yields its shards.

        Raises:
            StoreLockedError: the others have shown no sign of life for a long time.
        """
        self.drain()
        if self._membership is None:
            return True
        membership = self._membership

        def ended() -> bool | None:
            self._hear()
            left = [shard for shard in self._number if shard.split == split and not self.is_done(shard)]
            for shard in left:
                if membership.lease(self._number[shard]):
                    membership.release(self._number[shard])
                    return False
            return None if left else True

        return membership.wait(ended, f"the {split} shards of other processes")

    def rows_elsewhere(self, split: str) -> int:
        """Return the rows, of all views, in shards that this process found finished, or heard of from another one."""
        return self._elsewhere[split]

    def touch(self) -> None:
        """Tell the other processes, if there are any, that this one is at work; cheap enough for each batch."""
        if self._membership is not None:
            self._membership.touch()

    def work(self) -> dict[str, Any]:
        """Return the ``seconds`` that all processes took to compute the finished shards, and the ``devices``."""
        return finished.work(self._done.values())

    def submit(self, shard: Shard, logits: torch.Tensor, signals: Mapping[str, torch.Tensor] | None = None) -> None:
        """Queue float32 logits ``(stop - start, classes)`` for encoding and writing.

        The store's signals must be given by name, ``(stop - start, *shape)``, and with a shard that has them the
        images' digests, ``pixel_digest``, uint8 ``(stop - start, 16)``. Waits while too many shards are queued. An
        error of an earlier shard is raised here.
        """
        rows, given = shard.stop - shard.start, {"logits": logits, **(signals or {})}
        wanted = {"logits": (len(self.manifest.classes),), **self.manifest.kept, **dict.fromkeys(shard.digests, (16,))}
        for what in sorted(given.keys() | wanted.keys()):
            found = tuple(given[what].shape) if what in given else None
            expected = (rows, *wanted[what]) if what in wanted else None
            if found != expected:
                raise ModelError(f"the teacher computed {what} of shape {found} for a shard of {expected}.")
        held = self.memory_limit // max(1, sum(each.nbytes for each in given.values()))
        waiting = min(_QUEUE, held - 1)  # beside those of the next shard
        while len(self._writing) >= max(1, waiting) or (self._writing and self._writing[0].done()):
            self._writing.pop(0).result()
        now = time.monotonic()
        took, self._since = now - self._since, now
        self._writing.append(self._executor.submit(self._write, shard, logits, signals or {}, took))
        if waiting < 1:
            self.drain()

    def copy(self, shard: Shard, rows: Plane, pixels: npt.NDArray[np.uint8] | None = None) -> None:
        """Write a shard of rows of another store, with all signals, as they are encoded there; see ``submit``."""
        with writing(self.path):
            entries = shards.copy(self.path, self._root, shard, rows, pixels)
            self._ledger.append(list(entries.values()))
        self._done.update(entries)

    def drain(self) -> None:
        """Wait until all submitted shards are on disk; raise the first error."""
        while self._writing:
            self._writing.pop(0).result()

    def plane(self, split: str, view: int) -> npt.NDArray[np.float32]:
        """Return the decoded logits of a complete plane, float32 ``(n, classes)``."""
        self.drain()
        codes, row_max = (
            torch.from_numpy(np.asarray(arrays.member(self._root, split, name)[view])) for name in ("codes", "row_max")
        )
        logits: npt.NDArray[np.float32] = self._encoding.decode(codes, row_max, len(self.manifest.classes)).numpy()
        return logits

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """Return the labels of a split, ``(n,)``, -1 for none."""
        return np.asarray(arrays.member(self._root, split, "labels")[...]).astype(np.int32)

    def close(self) -> None:
        """Stop the writer thread; queued shards are dropped, and a resumed build computes them again."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def contents(self, split: str) -> npt.NDArray[np.uint8]:
        """Return the content digests that were learned with finished shards, ``(n, 16)``; else zeros."""
        return contents.learned(self._done, self.shards(split, 0), self.manifest.splits[split].samples)

    def forget(self, split: str, rows: npt.NDArray[np.int64]) -> int:
        """Delete the finished shards of all views that have some of ``rows``; return their number."""
        stale = contents.stale(self._done, self._number, split, rows)
        for path in chain(*(shard.paths for shard in stale)):
            self._done.pop(path, None)
        if stale:
            with writing(self.path):
                self._ledger.rewrite(list(self._done.values()), choice=self.manifest.choice)
                finished.swept(self.path, self._done)
        return len(stale)

    def settle(self, dataset: Mapping[str, str]) -> None:
        """Write the learned content digests, once the plain views are complete; ``dataset`` is the fingerprint's."""
        learned = {split: self.contents(split) for split in self.manifest.splits}
        with writing(self.path):
            self.manifest = contents.settled(self.path, self._root, self.manifest, learned, dataset)

    def seal(self, about: dict[str, Any]) -> Manifest:
        """Digest every file, write the final manifest and remove the ledger.

        Of several processes, this is done by the first that comes when all have ended their part.

        Raises:
            CorruptStoreError: a shard is missing, or a file does not belong to the store.
            StoreLockedError: one of several processes does not end, and shows no sign of life.
        """
        self.drain()
        if self._membership is not None:
            self._membership.separate()
            self.manifest = manifest.read(self.path)
            if self.sealed:
                self._remove_beside()
                return self.manifest
            self._done = finished.swept(self.path, finished.in_place(self.path, self._ledger.read(), self.manifest))
        expected = {path for place in self._places for shard in self.shards(*place) for path in shard.paths}
        files = finished.listed(self.path, self._done, shards=expected, side=skeleton.side_files(self.manifest))
        measured = {split: total.to_json() for split, total in self.fidelity().items()}
        planes = plane_digests(self.manifest, files)
        parts = {"files": files, "planes": planes, "about": about, "fidelity": measured}
        sealed = self.manifest.model_copy(update=parts).sealed()
        with writing(self.path):
            manifest.write(self.path, sealed)
            self._remove_beside()
        self.manifest = sealed
        return sealed

    def fidelity(self) -> dict[str, Fidelity]:
        """Return the loss of encoding over the finished shards, by split.

        Planes that were sealed earlier keep their figures, even if a damaged shard had to be computed again. A split
        with such planes but without figures is left out.
        """
        return finished.fidelity(self.manifest, self._done)

    def _write(self, shard: Shard, logits: torch.Tensor, signals: Mapping[str, torch.Tensor], took: float) -> None:
        with writing(self.path):
            entries = shards.write(
                self.path,
                self._root,
                shard,
                encoding=self._encoding,
                temperatures=self.manifest.temperatures,
                logits=logits,
                signals=signals,
                keys=self._keys.get(shard.split, ()),
            )
            codes = shard.paths[0]
            entries[codes] = replace(entries[codes], device=shards.name_of(logits.device), seconds=round(took, 3))
            self._ledger.append(list(entries.values()))
        self._done.update(entries)
        if self._membership is not None:
            self._membership.release(self._number[shard])

    def _leased(self, shard: Shard) -> bool:
        """Return whether this process is to compute a shard; of several, whether no other one does or has done."""
        if self._membership is None:
            return True
        number = self._number[shard]
        if not self._membership.lease(number):
            return False
        self._hear()
        if self.is_done(shard):
            self._membership.release(number)
            return False
        return True

    def _hear(self) -> None:
        """Learn of the shards that other processes have finished."""
        news = finished.in_place(self.path, self._ledger.news(), self.manifest)
        self._count(news.keys() - self._done.keys())
        self._done.update(news)

    def _count(self, files: Collection[str]) -> None:
        for shard in self._number if files else ():
            if shard.paths[0] in files:
                self._elsewhere[shard.split] += shard.stop - shard.start

    def _remove_beside(self) -> None:
        leases_of(self.path).unlink(missing_ok=True)
        self._ledger.remove()


def _prepare(path: Path, plan: Plan, overwrite: bool, membership: Membership) -> None:
    """Create, repair or reopen a store that several processes write, before the others begin."""
    found = skeleton.opened(path, plan, overwrite=overwrite)
    Builder(path, found, keys=plan.keys, touch=membership.touch).close()
