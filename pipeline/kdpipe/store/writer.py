"""Writer of a store: whole shards, one writer, a ledger to resume from, and a seal at the end.

A shard is finished once its files are on disk and in the ledger. A killed build continues with the first unfinished
shard. Batches never straddle a shard, so the result has the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import durable
from kdpipe.encoding.base import Encoded
from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError, DivergedError, ModelError, StaleStoreError
from kdpipe.store import arrays, growing, manifest, skeleton, tree
from kdpipe.store.ledger import Entry, Ledger, lock, writing
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Layout, Plan, Shard, encoding_of
from kdpipe.store.sections import File, array_name

_QUEUE = 2
"""Shards that may wait for encoding and writing while the teacher continues."""


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
            builder = _open(path, plan, overwrite=overwrite)
        held.callback(builder.close)
        yield builder


@contextmanager
def grow(path: Path, plan: Plan, *, onto: Manifest) -> Iterator[Builder]:
    """Start or resume further segments of the sealed store at ``path``; yields their ``Builder`` under the writer lock.

    Once they are sealed, they become part of the store. Until then readers see the store as it was, and nothing of it
    changes; segments that were begun for another plan are removed.

    Args:
        path: the store's directory.
        plan: the new segments alone, such as ``train.1``.
        onto: the store's manifest, which the plan was made for.

    Raises:
        StaleStoreError: the store has another manifest now.
        StoreLockedError: another process is writing it.
        UnwritableStoreError: the disk is full or read-only; also raised by the builder's methods.
    """
    with ExitStack() as held:
        with writing(path):
            held.enter_context(lock(path))
            growing.recover(path)
        if manifest.read(path) != onto:
            raise StaleStoreError(f"{path} was changed by another process meanwhile. Run this again.")
        with build(growing.part_path(path), plan, overwrite=True) as builder:
            yield builder
        if builder.sealed:
            with writing(path):
                growing.recover(path)


class Builder:
    """Writes the teacher's logits shard by shard, and seals the complete store."""

    def __init__(self, path: Path, found: Manifest, *, keys: dict[str, tuple[str, ...]]) -> None:
        """Continue a store that exists and is locked by this process; ``keys`` are those of each split's samples."""
        self.path = path
        self._keys = keys
        self.manifest = found
        self._encoding = encoding_of(path, found)
        self._ledger = Ledger(path)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-writer")
        self._writing: list[Future[None]] = []
        self._done: dict[str, Entry] = {}
        if self.sealed:
            self._ledger.remove()
        else:
            self._done = _confirmed(path, self._ledger, found)
            self._ledger.rewrite(list(self._done.values()), choice=found.choice)
            self._root = arrays.open_root(path, mode="r+")

    @property
    def sealed(self) -> bool:
        """Whether the store is complete."""
        return self.manifest.state == "sealed"

    def shards(self, split: str, view: int) -> list[Shard]:
        """Return every shard of a plane, finished or not."""
        cut = self.manifest.splits[split]
        bounds = Layout(cut.chunk_rows, cut.shard_rows).shards(cut.samples)
        signals = tuple(self.manifest.kept)
        return [Shard(split, view, number, start, stop, signals) for number, (start, stop) in enumerate(bounds)]

    def is_done(self, shard: Shard) -> bool:
        """Return whether a shard is on disk and in the ledger."""
        return self.sealed or all(path in self._done for path in shard.paths)

    def submit(self, shard: Shard, logits: torch.Tensor, signals: Mapping[str, torch.Tensor] | None = None) -> None:
        """Queue float32 logits ``(stop - start, classes)`` for encoding and writing.

        The store's signals must be given by name, ``(stop - start, *shape)``. Waits while too many shards are queued.
        An error of an earlier shard is raised here.
        """
        rows, given = shard.stop - shard.start, {"logits": logits, **(signals or {})}
        wanted = {"logits": (len(self.manifest.classes),), **self.manifest.kept}
        for what in sorted(given.keys() | wanted.keys()):
            found = tuple(given[what].shape) if what in given else None
            expected = (rows, *wanted[what]) if what in wanted else None
            if found != expected:
                raise ModelError(f"the teacher computed {what} of shape {found} for a shard of {expected}.")
        while len(self._writing) >= _QUEUE or (self._writing and self._writing[0].done()):
            self._writing.pop(0).result()
        self._writing.append(self._executor.submit(self._write, shard, logits, signals or {}))

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

    def close(self) -> None:
        """Stop the writer thread; queued shards are dropped, and a resumed build computes them again."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def seal(self, about: dict[str, Any]) -> Manifest:
        """Digest every file, write the final manifest and remove the ledger.

        Raises:
            CorruptStoreError: a shard is missing, or a file does not belong to the store.
        """
        self.drain()
        expected = {
            path
            for split, cut in self.manifest.splits.items()
            for view in range(cut.planes)
            for shard in self.shards(split, view)
            for path in shard.paths
        }
        missing = sorted(expected - self._done.keys())
        if missing:
            raise CorruptStoreError(
                f"{self.path} cannot be sealed: {len(missing)} files are missing, first {missing[0]}."
            )
        files = {}
        allowed = expected | skeleton.side_files(self.manifest)
        entries = list(tree.walk(self.path))
        strange = tree.strangers(entries, allowed | {"zarr.json"})
        if strange:
            raise CorruptStoreError(
                f"{self.path} cannot be sealed: {tree.listed(strange)} do not belong to it. Remove them, and run this "
                "again."
            )
        for name in sorted(each.name for each in entries if each.is_file and each.name != "zarr.json"):
            entry = self._done.get(name) or _entry(self.path, name)
            files[name] = File(size=entry.size, digest=entry.digest)
        planes = {
            f"{split}/{view}": manifest.digest_json(
                [files[path].digest for shard in self.shards(split, view) for path in shard.paths]
            )
            for split, cut in self.manifest.splits.items()
            for view in range(cut.planes)
        }
        measured = {split: total.to_json() for split, total in self.fidelity().items()}
        parts = {"files": files, "planes": planes, "about": about, "fidelity": measured}
        sealed = self.manifest.model_copy(update=parts).sealed()
        with writing(self.path):
            manifest.write(self.path, sealed)
            self._ledger.remove()
        self.manifest = sealed
        return sealed

    def fidelity(self) -> dict[str, Fidelity]:
        """Return the loss of encoding over the finished shards, by split.

        Planes that were sealed earlier keep their figures, even if a damaged shard had to be computed again. A split
        with such planes but without figures is left out.
        """
        temperatures = self.manifest.temperatures
        totals = {split: Fidelity.from_json(value) for split, value in self.manifest.fidelity.items()}
        for split, cut in self.manifest.splits.items():
            views = [view for view in range(cut.planes) if f"{split}/{view}" not in self.manifest.planes]
            if len(views) < cut.planes and split not in totals:
                continue
            total = totals.get(split, Fidelity.none(temperatures))
            for shard in (shard for view in views for shard in self.shards(split, view)):
                entry = self._done.get(shard.paths[0])
                if entry is not None and entry.fidelity is not None:
                    total += entry.fidelity
            totals[split] = total
        return totals

    def _write(self, shard: Shard, logits: torch.Tensor, signals: Mapping[str, torch.Tensor]) -> None:
        self._refuse_not_finite(shard, "logits", logits)
        encoded = self._encoding.encode(logits)
        values = {"codes": encoded.codes, "row_max": encoded.row_max}
        for name, signal in signals.items():
            kept = signal.to(torch.float16).flatten(1)
            self._refuse_not_finite(shard, f"{name}, in float16,", kept)
            values[array_name(name)] = kept.cpu().numpy()
        lost = self._lost(logits, encoded)
        with writing(self.path):
            for name in shard.paths:
                (self.path / name).unlink(missing_ok=True)
            for name, block in values.items():
                arrays.member(self._root, shard.split, name)[shard.view, shard.start : shard.stop] = block
            for name in shard.paths:
                durable.fsync_file(self.path / name, up_to=self.path)
            entries = {name: _entry(self.path, name) for name in shard.paths}
            codes = shard.paths[0]
            entries[codes] = replace(entries[codes], fidelity=lost)
            self._ledger.append(list(entries.values()))
        self._done.update(entries)

    def _lost(self, logits: torch.Tensor, encoded: Encoded) -> Fidelity:
        codes, row_max = (torch.from_numpy(part).to(logits.device) for part in (encoded.codes, encoded.row_max))
        decoded = self._encoding.decode(codes, row_max, logits.shape[1])
        return Fidelity.of(logits, decoded, self.manifest.temperatures)

    def _refuse_not_finite(self, shard: Shard, what: str, values: torch.Tensor) -> None:
        finite = torch.isfinite(values).all(dim=1)
        if finite.all():
            return
        row = shard.start + int((~finite).nonzero()[0])
        keys = self._keys[shard.split]
        raise DivergedError(
            f"the teacher's {what} of {shard.split} row {row}{f' ({keys[row]})' if keys else ''}, view "
            f"{shard.view} are not finite; nothing of this shard was written. Try --precision fp32, and check "
            "the weights."
        )


def _open(path: Path, plan: Plan, *, overwrite: bool) -> Builder:
    """Create, repair or reopen the store at ``path`` for the build; the caller holds the lock."""
    skeleton.clear(path)
    growing.recover(path)
    growing.discard(path)
    wanted = plan.manifest()
    found = skeleton.existing(path, overwrite=overwrite)
    if found is not None:
        differing = skeleton.differences(found, wanted)
        if differing and not overwrite:
            raise StaleStoreError(
                f"{path} differs from what is asked for ({'; '.join(differing)}). "
                "Rebuild it with --overwrite, or pass --out another path."
            )
        if differing:
            found = None
        else:
            wanted = _carried_over(found, wanted)
    if found is None:
        skeleton.create(path, plan, wanted)
        found = wanted
    elif found.state == "building":
        skeleton.repair(path, plan, wanted)
        found = wanted
    elif found.splits != wanted.splits:
        skeleton.reopen(path, plan, wanted, found=found)
        found = wanted
    elif found.provenance != wanted.provenance:
        found = found.model_copy(update={"provenance": wanted.provenance}).sealed()
        manifest.write(path, found)
    return Builder(path, found, keys={name: split.keys for name, split in plan.splits.items()})


def _carried_over(found: Manifest, wanted: Manifest) -> Manifest:
    """Return the wanted manifest with the parts that a store keeps when its build continues."""
    return wanted.model_copy(
        update={
            "encoding": found.encoding,
            "choice": found.choice,
            "fidelity": found.fidelity,
            "planes": found.planes,
            "provenance": found.provenance.updated(wanted.provenance),
            "rendering": found.rendering or wanted.rendering,
        }
    )


def _confirmed(path: Path, ledger: Ledger, found: Manifest) -> dict[str, Entry]:
    """Return the ledger's entries whose files are as recorded; delete shard files without an entry.

    Nothing but the names of shards is deleted: a store with anything else was refused before.
    """
    present = {each.name: each for each in tree.walk(path) if each.own}
    confirmed = {
        name: entry
        for name, entry in ledger.read().items()
        if name in present
        and present[name].is_file
        and _measured(entry, found)
        and _entry(path, name) == replace(entry, fidelity=None)
    }
    # Folders come after what is in them.
    for name in sorted(present, reverse=True):
        _, *place = name.split("/")
        if len(place) > 1 and place[0] not in tree.SIDE and place[1] == "c":
            if present[name].is_file and name not in confirmed:
                (path / name).unlink()
            elif present[name].is_folder and len(place) > 2:
                with suppress(OSError):  # it is not empty
                    (path / name).rmdir()
    return confirmed


def _measured(entry: Entry, found: Manifest) -> bool:
    """Return whether an entry's figures, if it has any, can be those of a shard of the store."""
    if entry.fidelity is None:
        return True
    cut = found.splits.get(entry.path.split("/")[0])
    fits = entry.fidelity.temperatures == found.temperatures
    return cut is not None and fits and 0 < entry.fidelity.rows <= min(cut.shard_rows, cut.samples)


def _entry(store: Path, name: str) -> Entry:
    path = store / name
    return Entry(name, path.stat().st_size, manifest.digest_file(path))
