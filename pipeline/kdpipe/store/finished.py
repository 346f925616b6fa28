"""Finished files of a store under construction: the entries of its ledger that are still true, and what to delete."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError
from kdpipe.store import manifest, tree
from kdpipe.store.ledger import Entry, Ledger
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import shards_of
from kdpipe.store.sections import File


def confirmed(path: Path, ledger: Ledger, found: Manifest, *, touch: Callable[[], None]) -> dict[str, Entry]:
    """Return the ledger's entries whose files are as recorded; delete shard files without an entry.

    ``touch`` is called before each file is read.
    """
    regular = {each.name for each in tree.walk(path) if each.own and each.is_file}
    entries = {name: entry for name, entry in ledger.read().items() if name in regular}
    kept = {}
    for name, entry in in_place(path, entries, found).items():
        touch()
        if entry_of(path, name) == entry.file:
            kept[name] = entry
    return swept(path, kept)


def in_place(path: Path, entries: Mapping[str, Entry], found: Manifest) -> dict[str, Entry]:
    """Return the entries that can be of the store, and whose files have the recorded sizes."""
    kept = {}
    for name, entry in entries.items():
        with suppress(OSError):
            status = (path / name).lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size == entry.size and _measured(entry, found):
                kept[name] = entry
    return kept


def swept(path: Path, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Delete shard files without an entry, and return the entries.

    Nothing but the names of shards is deleted: a store with anything else was refused before.
    """
    present = {each.name: each for each in tree.walk(path) if each.own}
    # Folders come after what is in them.
    for name in sorted(present, reverse=True):
        _, *place = name.split("/")
        if len(place) > 1 and place[0] not in tree.SIDE and place[1] == "c":
            if present[name].is_file and name not in entries:
                (path / name).unlink()
            elif present[name].is_folder and len(place) > 2:
                with suppress(OSError):  # it is not empty
                    (path / name).rmdir()
    return entries


def listed(path: Path, entries: Mapping[str, Entry], *, shards: Set[str], side: Set[str]) -> dict[str, File]:
    """Return every file of a complete store, with size and digest; those of side arrays are read for it.

    Raises:
        CorruptStoreError: a shard is missing, or a file does not belong to the store.
    """
    missing = sorted(shards - entries.keys())
    if missing:
        raise CorruptStoreError(
            f"{path} cannot be sealed: {len(missing)} files are missing, first {missing[0]}. Run the same "
            "cache-teacher again."
        )
    present = list(tree.walk(path))
    beside = {"zarr.json", *tree.COMPANIONS}
    strange = tree.strangers(present, shards | side | beside)
    if strange:
        raise CorruptStoreError(
            f"{path} cannot be sealed: {tree.listed(strange)} do not belong to it. Remove them, and run this again."
        )
    found = {}
    for name in sorted(each.name for each in present if each.is_file and each.name not in beside):
        entry = entries.get(name) or entry_of(path, name)
        found[name] = File(size=entry.size, digest=entry.digest)
    return found


def work(entries: Collection[Entry]) -> dict[str, Any]:
    """Return the ``seconds`` that the shards of some entries took in all, and the names of the ``devices``."""
    return {
        "seconds": round(sum(entry.seconds for entry in entries if entry.seconds is not None), 2),
        "devices": sorted({entry.device for entry in entries if entry.device is not None}),
    }


def fidelity(found: Manifest, done: Mapping[str, Entry]) -> dict[str, Fidelity]:
    """Return the loss of encoding over finished shards, by split; see ``Builder.fidelity``."""
    totals = {split: Fidelity.from_json(value) for split, value in found.fidelity.items()}
    for split, cut in found.splits.items():
        views = [view for view in range(cut.planes) if f"{split}/{view}" not in found.planes]
        if len(views) < cut.planes and split not in totals:
            continue
        total = totals.get(split, Fidelity.none(found.temperatures))
        for shard in (shard for view in views for shard in shards_of(found, split, view)):
            entry = done.get(shard.paths[0])
            if entry is not None and entry.fidelity is not None:
                total += entry.fidelity
        if total.rows:
            totals[split] = total
    return totals


def clear(file: Path) -> None:
    """Remove a file of a shard, and what a killed process has left of it."""
    file.unlink(missing_ok=True)
    for left in file.parent.glob(f"{file.name}.*.partial"):
        left.unlink(missing_ok=True)


def entry_of(store: Path, name: str) -> Entry:
    """Return the entry of a file as it is on disk."""
    path = store / name
    return Entry(name, path.stat().st_size, manifest.digest_file(path))


def _measured(entry: Entry, found: Manifest) -> bool:
    """Return whether an entry's figures, if it has any, can be those of a shard of the store."""
    if entry.fidelity is None:
        return True
    cut = found.splits.get(entry.path.split("/")[0])
    fits = entry.fidelity.temperatures == found.temperatures
    return cut is not None and fits and 0 < entry.fidelity.rows <= min(cut.shard_rows, cut.samples)
