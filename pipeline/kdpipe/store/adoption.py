"""Further segments of a sealed store that were built beside it: put in their place, and listed in its manifest.

Until then they are a separate store, ``NAME.zarr.growth``, which holds nothing but the new segments. Until the
manifest is replaced, in one step, readers see the store as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdpipe import durable
from kdpipe.errors import StoreError
from kdpipe.store import arrays, manifest, tree
from kdpipe.store.leases import leases_of
from kdpipe.store.ledger import Ledger
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import encoding_of
from kdpipe.store.segments import newest
from kdpipe.store.settings import Provenance


def part_path(store: Path) -> Path:
    """Return the directory in which the new segments of the store at ``store`` are built."""
    return store.with_name(f"{store.name}.growth")


def combined(base: Manifest, part: Manifest) -> Manifest:
    """Return the sealed manifest of a store with the further segments of ``part``, which differs in samples alone."""
    rendering = base.rendering or part.rendering
    if rendering is not None:
        sources = {} if base.rendering is None else base.rendering.sources
        more = {} if part.rendering is None else part.rendering.sources
        rendering = rendering.model_copy(update={"sources": sources | more})
    dataset = base.fingerprint.dataset | part.fingerprint.dataset
    whole = base.model_copy(
        update={
            "fingerprint": base.fingerprint.model_copy(update={"dataset": dataset}),
            "splits": base.splits | part.splits,
            "provenance": base.provenance.updated(part.provenance),
            "fidelity": base.fidelity | part.fidelity,
            "rendering": rendering,
            "files": base.files | part.files,
            "planes": base.planes | part.planes,
            "about": _about(base.about, part.about),
        }
    )
    return whole.sealed()


def _about(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return times and versions of both passes: the duration of all work, and the time of the last growth."""
    seconds = [each["seconds"] for each in (base, part) if isinstance(each.get("seconds"), int | float)]
    merged = {**base, **part, "created": base.get("created"), "grown": part.get("created")}
    if seconds:
        merged["seconds"] = round(sum(seconds), 2)
    devices = [name for each in (base, part) for name in each.get("devices", ())]
    if devices:
        merged["devices"] = sorted(set(devices))
    return {key: value for key, value in merged.items() if key in part or key in base or value is not None}


def recover(store: Path) -> Manifest | None:
    """Put finished segments beside a store in their place, after a kill as before; the caller holds the store's lock.

    Segments that are still being built are left alone; finished ones that do not fit the store are removed. Returns the
    store's manifest if it was replaced.
    """
    part = part_path(store)
    if not part.is_dir() or part.is_symlink():
        return None
    try:
        base = manifest.read(store)
    except StoreError:
        return None
    try:
        found = manifest.read(part)
    except StoreError:  # its removal was interrupted
        discard(store)
        return None
    if base.state != "sealed" or found.state != "sealed":
        return None
    whole = combined(base, found)
    if _follow(base, found) and _put(store, part, found) and _counted(store, whole):
        manifest.write(store, whole)
        discard(store)
        return whole
    for group in found.splits:
        if group not in base.splits:
            tree.remove_group(store, group)
    discard(store)
    return None


def describe(store: Path, provenance: Provenance) -> None:
    """Add statements of its makers to a sealed store; the caller holds the store's lock."""
    found = manifest.read(store)
    updated = found.provenance.updated(provenance)
    if updated != found.provenance:
        manifest.write(store, found.model_copy(update={"provenance": updated}).sealed())


def discard(store: Path) -> None:
    """Remove segments that were built beside a store, finished or not."""
    part = part_path(store)
    Ledger(part).remove()
    leases_of(part).unlink(missing_ok=True)
    if part.is_dir() and not part.is_symlink():
        tree.remove(part)


def _follow(base: Manifest, part: Manifest) -> bool:
    """Return whether the segments of ``part`` are the next ones of a store, and differ from it in samples alone."""
    samples = {"dataset": part.fingerprint.dataset}
    return (
        part.is_part
        and all(part.segments(split) == (tree.group_name(split, len(base.segments(split))),) for split in part.names)
        and all(base.splits[split].planes == part.splits[part.segments(split)[0]].planes for split in part.names)
        and base.fingerprint.model_copy(update=samples) == part.fingerprint
        and (base.classes, base.encoding, base.kept) == (part.classes, part.encoding, part.kept)
    )


def _put(store: Path, part: Path, found: Manifest) -> bool:
    """Move the segments of ``part`` into the store; return whether all of their files are there then."""
    for group in found.splits:
        if (part / group).is_dir():
            tree.remove_group(store, group)  # left by another growth
            (part / group).rename(store / group)
    durable.fsync_directory(store)
    sizes = {name: file.size for name, file in found.files.items()}
    moved = (each for each in tree.walk(store) if each.is_file and each.name.split("/")[0] in found.splits)
    return {each.name: each.size for each in moved} == sizes


def _counted(store: Path, whole: Manifest) -> bool:
    """Return whether the segments replace as many rows as the manifest says."""
    encoding = encoding_of(store, whole)
    for split in whole.names:
        ids = []
        for group in whole.segments(split):
            specs = arrays.specs(whole.splits[group], encoding=encoding, classes=len(whole.classes))
            ids.append(arrays.read_side(store, whole, group, "sample_id", specs["sample_id"]))
        if sum(map(len, newest(ids))) != whole.samples(split):
            return False
    return True
