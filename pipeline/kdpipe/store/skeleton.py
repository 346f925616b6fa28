"""The empty store: created beside its path, moved there in one step, and repaired before a build continues."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np

from kdpipe import durable
from kdpipe.encoding.registry import restore_encoding
from kdpipe.errors import CorruptStoreError, KdpipeError, StaleStoreError, StoreError
from kdpipe.reading import parse_json, read_bytes
from kdpipe.store import adoption, arrays, manifest, partial, tree
from kdpipe.store.arrays import Spec
from kdpipe.store.ledger import Entry, Ledger
from kdpipe.store.manifest import Manifest
from kdpipe.store.plan import Plan, encoding_of
from kdpipe.store.sections import Shape, Split, rendering_differences

_BESIDE = ("new", "old", "manifest", "ledger")
"""Endings of the hidden files and directories that a kill may leave beside a store, such as ``.NAME.zarr.new``."""


def opened(path: Path, plan: Plan, *, overwrite: bool) -> Manifest:
    """Create, repair or reopen the store at ``path`` for the build, and return its manifest; the caller holds the lock.

    Raises:
        StaleStoreError: the store differs from the plan; the message lists the parts.
        StoreError: something else is at ``path``.
    """
    clear(path)
    adoption.recover(path)
    adoption.discard(path)
    wanted = plan.manifest()
    found = existing(path, overwrite=overwrite)
    if found is not None:
        if not overwrite:
            refuse_differences(path, found, wanted)
        if differences(found, wanted):
            found = None
        else:
            wanted = _carried_over(found, wanted)
    if found is None:
        create(path, plan, wanted)
        found = wanted
    elif found.state == "building":
        repair(path, plan, wanted)
        found = wanted
    elif found.splits != wanted.splits:
        reopen(path, plan, wanted, found=found)
        found = wanted
    elif found.provenance != wanted.provenance:
        found = found.model_copy(update={"provenance": wanted.provenance}).sealed()
        manifest.write(path, found)
    return found


def refuse_differences(path: Path, found: Manifest, wanted: Manifest) -> None:
    """Refuse a store that differs from the wanted one.

    Raises:
        StaleStoreError: the message lists the parts.
    """
    differing = differences(found, wanted)
    if differing:
        raise StaleStoreError(
            f"{path} differs from what is asked for ({'; '.join(differing)}). "
            "Rebuild it with --overwrite, or pass --out another path."
        )


def _carried_over(found: Manifest, wanted: Manifest) -> Manifest:
    """Return the wanted manifest with the parts that a store keeps when its build continues."""
    return wanted.model_copy(
        update={
            "encoding": found.encoding,
            "choice": found.choice,
            "fidelity": found.fidelity,
            "planes": found.planes,
            "provenance": found.provenance.updated(wanted.provenance),
            "rendering": wanted.rendering if found.unread else found.rendering or wanted.rendering,
            "splits": {
                name: cut.model_copy(update={"pixel_digests": found.splits[name].pixel_digests})
                for name, cut in wanted.splits.items()
            },
        }
    )


def clear(path: Path) -> None:
    """Remove the leftovers of a killed build beside the store at ``path``.

    Raises:
        CorruptStoreError: one of them holds something that kdpipe never writes.
    """
    for ending in _BESIDE:
        left = beside(path, ending)
        if os.path.lexists(left):
            tree.remove(left)


def existing(path: Path, *, overwrite: bool) -> Manifest | None:
    """Return the manifest of the store at ``path``; ``None`` if there is none, or with ``overwrite`` a damaged one.

    Raises:
        CorruptStoreError: the store is damaged.
        StoreError: something else is at ``path``, or a link; it is left alone.
    """
    if path.is_symlink():
        # Lock, ledger and the new store would stand beside the link, and another writer's beside its target.
        raise StoreError(f"{path} is a link, and a store is written to a folder. Pass --out {path.resolve()}.")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        found = manifest.read(path)
    except StoreError as error:
        if not _is_ours(path):
            raise StoreError(
                f"{path} exists and is not a logit store. Pass --out another path, or remove it."
            ) from None
        if isinstance(error, CorruptStoreError) and not overwrite:
            raise CorruptStoreError(f"{error} Rebuild it with --overwrite.") from None
        return None
    if not overwrite:
        partial.refuse(path, found.checksum, what="writing it")
    return found


def settled(
    path: Path, plan: Plan, *, max_kl: float | None, temperatures: tuple[float, ...], any_samples: bool = False
) -> Plan | None:
    """Return ``plan`` with the encoding of the store at ``path`` if their other settings are equal, else ``None``.

    These are teacher, data, views and budget of KL, or the encoding if there is no budget. A resumed build thus
    measures no second pilot and cannot make another choice. With ``any_samples`` the data may differ.
    """
    try:
        found = manifest.read(path)
    except StoreError:
        return None
    budget = (None, ()) if found.choice is None else (found.choice.max_kl, found.choice.temperatures)
    if budget != (max_kl, () if max_kl is None else temperatures):
        return None
    name = plan.fingerprint.encoding if max_kl is None else found.fingerprint.encoding
    known = {"encoding": name} | ({"dataset": found.fingerprint.dataset} if any_samples else {})
    if found.fingerprint != plan.fingerprint.model_copy(update=known):
        return None
    return plan.encoded_by(encoding_of(path, found), found.choice)


def differences(found: Manifest, wanted: Manifest) -> list[str]:
    """Return a line for each part in which a store differs from the wanted one."""
    differing = found.fingerprint.differences(wanted.fingerprint)
    if found.unread != wanted.unread:
        differing.append(
            "dataset: the store's images are read once, by a single process; finish it without --part or torchrun"
            if found.unread
            else "dataset: the store's images were read before its pass"
        )
    if not differing:
        differing += rendering_differences(found.rendering, wanted.rendering, unread=found.unread)
    if found.order != wanted.order:
        rows = [each.order or "dataset" for each in (found, wanted)]
        differing.append(f"order: the store's rows are in the order '{rows[0]}', asked for '{rows[1]}'")
    if found.classes != wanted.classes:
        differing.append("classes: the names or their order differ")
    for name, split in wanted.splits.items():
        kept = found.splits.get(name)
        planes = kept.planes if kept is not None else 0
        if planes > split.planes or (planes < split.planes and found.state != "sealed"):
            differing.append(f"{name} views: the store has {planes - 1}, asked for {split.planes - 1}")
        elif kept is None or kept.model_copy(update=_apart_from_cut(split)) != split:
            differing.append(f"{name}: its cut into chunks and shards is that of another version")
    for name in sorted(found.kept.keys() | wanted.kept.keys()):
        mine, other = (_sides(one.kept.get(name)) for one in (found, wanted))
        if mine != other:
            differing.append(f"{name}: the store has {mine}, asked for {other}")
    same_length = len(found.teacher_probe) == len(wanted.teacher_probe)
    if not same_length or not np.allclose(found.teacher_probe, wanted.teacher_probe, rtol=1e-2, atol=1e-2):
        differing.append("teacher: its logits for the fixed probe input differ, so its code has changed")
    return differing


def _apart_from_cut(split: Split) -> dict[str, object]:
    """Return what may differ where a store continues: its views, and digests that older versions did not write."""
    return {"planes": split.planes, "pixel_digests": split.pixel_digests}


def differences_but_samples(found: Manifest, wanted: Manifest) -> list[str]:
    """Return a line for each part in which a store differs from the wanted one, but for the samples of its splits.

    ``wanted`` has one segment of each split.
    """
    if set(found.names) != set(wanted.names):
        return [f"splits: the store has {', '.join(found.names)}, asked for {', '.join(wanted.names)}"]
    rendering = wanted.rendering and wanted.rendering.model_copy(update={"sources": {}})
    alike = {
        "fingerprint": wanted.fingerprint.model_copy(update={"dataset": found.fingerprint.dataset}),
        "splits": {split: found.splits[split] for split in wanted.splits},
        "rendering": rendering,
    }
    views = [
        f"{split} views: the store has {found.splits[split].planes - 1}, asked for {cut.planes - 1}"
        for split, cut in wanted.splits.items()
        if cut.planes < found.splits[split].planes
    ]
    return views + differences(found, wanted.model_copy(update=alike))


def create(path: Path, plan: Plan, wanted: Manifest) -> None:
    """Create an empty store at ``path``; an older store is removed once the new one is in place."""
    if path.exists():
        tree.refuse_strangers(path, what="replacing it")
    fresh, old = _fresh(path, plan, wanted), beside(path, "old")
    Ledger(path).remove()
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    durable.fsync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def repair(path: Path, plan: Plan, wanted: Manifest) -> None:
    """Write everything but the shards again, to continue a build after a crash.

    Raises:
        CorruptStoreError: the store holds a link or something else that kdpipe never writes.
    """
    tree.refuse_strangers(path, what="continuing it")
    fresh = _fresh(path, plan, wanted)
    for file in sorted(fresh.rglob("*")):
        target = path / file.relative_to(fresh)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            durable.fsync_directory(target.parent)
    shutil.rmtree(fresh)


def reopen(path: Path, plan: Plan, wanted: Manifest, *, found: Manifest) -> None:
    """Open a sealed store for the views that it lacks, without changing its planes.

    Raises:
        CorruptStoreError: the store holds a link or something else that kdpipe never writes.
    """
    tree.refuse_strangers(path, what="extending it")
    shards = {name for name in found.files if re.fullmatch(rf"[^/]+/(?!({'|'.join(tree.SIDE)})/)[^/]+/c/.*", name)}
    entries = [Entry(name, found.files[name].size, found.files[name].digest) for name in sorted(shards)]
    Ledger(path).rewrite(entries, choice=wanted.choice)
    manifest.write(path, wanted)
    repair(path, plan, wanted)


def side_files(found: Manifest) -> set[str]:
    """Return every path that the store may hold besides its shards and the root ``zarr.json``."""
    return {path for name in found.splits for path in arrays.side_files(name, _specs(found, name))}


def _specs(found: Manifest, split: str) -> dict[str, Spec]:
    chosen = restore_encoding(found.encoding)
    return arrays.specs(found.splits[split], encoding=chosen, classes=len(found.classes), signals=found.kept)


def _sides(shape: Shape | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))


def _fresh(path: Path, plan: Plan, wanted: Manifest) -> Path:
    fresh = beside(path, "new")
    fresh.mkdir()
    try:
        (fresh / "zarr.json").write_bytes(manifest.document(wanted))
        root = arrays.open_root(fresh, mode="r+")
        for name, split in plan.splits.items():
            arrays.create(root.create_group(name), _specs(wanted, name))
            for array, values in split.side_arrays().items():
                arrays.member(root, name, array)[...] = values
        for file in fresh.rglob("*"):
            if file.is_file():
                durable.fsync_file(file)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return fresh


def beside(path: Path, what: str) -> Path:
    """Return the path of a hidden file or directory beside a store, such as ``.NAME.zarr.new``."""
    return path.with_name(f".{path.name}.{what}")


def _is_ours(path: Path) -> bool:
    """Return whether ``path`` is a store of kdpipe, possibly damaged."""
    root = path / "zarr.json"
    if root.is_symlink() or not root.is_file():
        return False
    try:
        return "kdpipe" in parse_json(read_bytes(root, limit=manifest.MAX_MANIFEST_BYTES), of=root)["attributes"]
    except (KdpipeError, KeyError, TypeError):
        return all((path / name).exists() for name in ("train/codes", "train/row_max", "train/sample_id"))
