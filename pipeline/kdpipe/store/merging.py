"""Union of stores that differ in their samples alone, as two teams make them of two halves of the data.

Each store's segments are copied byte for byte, and become segments of the union.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe import durable
from kdpipe.errors import CorruptStoreError, KdpipeError, StaleStoreError, StoreError
from kdpipe.progress import Progress, silent
from kdpipe.reading import open_regular
from kdpipe.store import manifest, partial, skeleton, tree
from kdpipe.store.ledger import lock, writing
from kdpipe.store.manifest import Manifest
from kdpipe.store.reader import MEMORY_LIMIT, LogitStore, open_store
from kdpipe.store.sections import DerivedFrom, File
from kdpipe.store.segments import Ids
from kdpipe.store.settings import MOST_CHARACTERS, Provenance


@dataclass(frozen=True)
class _Copy:
    """A segment of one of the stores, and its group in the union."""

    store: Path
    group: str
    name: str

    def of_file(self, name: str) -> str:
        """Return the path in the union of one of its files."""
        return self.name + name.removeprefix(self.group)


def merge(
    stores: Sequence[Path], out: Path, *, memory_limit: int = MEMORY_LIMIT, progress: Progress = silent
) -> Manifest:
    """Make the union of ``stores`` at ``out``, and return its manifest; nothing is done if it is there already.

    A segment that several stores have, such as the same test split, is taken from the first of them.

    Raises:
        StaleStoreError: two stores differ in more than their samples; the message lists the parts.
        StoreError: two stores have different segments with the same samples; something else is at ``out``.
        CorruptStoreError: a store is damaged.
        UnwritableStoreError: the disk is full or read-only.
    """
    splits = {path: _opened(path, memory_limit=memory_limit) for path in stores}
    found = {path: next(iter(opened.values())).manifest for path, opened in splits.items()}
    first = stores[0]
    for path in stores[1:]:
        differing = _differences(found[first], found[path])
        if differing:
            raise StaleStoreError(
                f"{first} and {path} cannot be merged ({'; '.join(differing)}). Merge stores that differ in samples "
                "alone."
            )
    copies: list[_Copy] = []
    replaced: dict[str, int] = {}
    for split in found[first].names:
        copies += _planned(split, {path: opened[split] for path, opened in splits.items()}, replaced)
    union = _union(found, copies, replaced)
    with writing(out), lock(out):
        skeleton.clear(out)
        if _is_there(out, union):
            return manifest.read(out)
        _copy(out, union, copies, found, progress=progress)
    return union


def _opened(path: Path, *, memory_limit: int) -> dict[str, LogitStore]:
    """Open all splits of a store, which checks its structure."""
    first = open_store(path, memory_limit=memory_limit)
    partial.refuse(path, first.manifest.checksum, what="merging it")
    for group, cut in first.manifest.splits.items():
        listed = all(f"{group}/{view}" in first.manifest.planes for view in range(cut.planes))
        if not listed or group not in first.manifest.fingerprint.dataset:
            raise CorruptStoreError(f"{path} lists no digests of '{group}': its manifest was edited.")
    others = [split for split in first.manifest.names if split != "train"]
    return {"train": first} | {split: open_store(path, split, memory_limit=memory_limit) for split in others}


def _differences(first: Manifest, other: Manifest) -> list[str]:
    """Return a line for each part in which two stores differ, but for their samples."""
    plain = other.model_copy(update={"splits": {split: other.splits[split] for split in other.names}})
    differing = [
        f"{split} views: the first has {cut.planes - 1}, the second {other.splits[split].planes - 1}"
        for split, cut in first.splits.items()
        if split in plain.splits and cut.planes != other.splits[split].planes
    ]
    if not differing:
        differing += skeleton.differences_but_samples(first, plain)
    budgets = [
        None if each.choice is None else (each.choice.max_kl, each.choice.temperatures) for each in (first, other)
    ]
    if budgets[0] != budgets[1]:
        differing.append("choice: their encodings were chosen by other budgets")
    elif not differing and first.encoding != other.encoding:
        differing.append(
            "encoding: their tables were fitted to other logits; encodings without a table, such as fp16r7, can be "
            "merged, and a store that grows keeps its table"
        )
    return differing


@dataclass(frozen=True)
class _Taken:
    """A segment of the union."""

    store: Path
    samples: str
    """Digest of its ids and contents."""
    ids: Ids


def _planned(split: str, stores: dict[Path, LogitStore], replaced: dict[str, int]) -> list[_Copy]:
    """Return the segments of a split to copy, in their order, and enter how many rows each replaces."""
    copies: list[_Copy] = []
    taken: list[_Taken] = []
    for path, store in stores.items():
        digests = store.manifest.fingerprint.dataset
        own = {digests[each.name] for each in store.segments}
        elsewhere = [each for each in taken if each.samples not in own]
        shared = {each.samples for each in taken}
        for each in store.segments:
            if digests[each.name] in shared:
                continue
            for other in elsewhere:
                both = int(np.isin(_keys(each.sample_ids), _keys(other.ids)).sum())
                if both:
                    raise StoreError(
                        f"{other.store} and {path} both have {both:,} '{split}' samples, in segments that differ: "
                        "merge stores of disjoint samples, or let one of them grow."
                    )
            name = tree.group_name(split, len(copies))
            known = np.concatenate([_keys(each.sample_ids[:0]), *(_keys(earlier.ids) for earlier in taken)])
            replaced[name] = int(np.isin(_keys(each.sample_ids), known).sum())
            copies.append(_Copy(path, each.name, name))
            taken.append(_Taken(path, digests[each.name], each.sample_ids))
    return copies


def _keys(ids: Ids) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    return np.ascontiguousarray(ids).view(np.dtype((np.void, ids.shape[1]))).reshape(-1)


def _union(found: dict[Path, Manifest], copies: Sequence[_Copy], replaced: dict[str, int]) -> Manifest:
    """Return the sealed manifest of the union."""
    manifests = list(found.values())
    base = manifests[0]
    files: dict[str, File] = {}
    planes, splits, fidelity, dataset, sources = {}, {}, {}, {}, {}
    for copy in copies:
        own = found[copy.store]
        splits[copy.name] = own.splits[copy.group].model_copy(update={"replaces": replaced[copy.name]})
        dataset[copy.name] = own.fingerprint.dataset[copy.group]
        files |= {copy.of_file(name): own.files[name] for name in _files(own, copy.group)}
        for view in range(own.splits[copy.group].planes):
            planes[f"{copy.name}/{view}"] = own.planes[f"{copy.group}/{view}"]
        if copy.group in own.fidelity:
            fidelity[copy.name] = own.fidelity[copy.group]
        if own.rendering is not None and copy.group in own.rendering.sources:
            sources[copy.name] = own.rendering.sources[copy.group]
    rendering = next((each.rendering for each in manifests if each.rendering is not None), None)
    seconds = [float(known) for each in manifests if isinstance(known := each.about.get("seconds"), int | float)]
    about = base.about | {"merged": [each.digest for each in manifests]}
    if len(seconds) == len(manifests):
        about["seconds"] = round(sum(seconds), 2)
    return base.model_copy(
        update={
            "fingerprint": base.fingerprint.model_copy(update={"dataset": dataset}),
            "splits": splits,
            "dataset": ", ".join(dict.fromkeys(each.dataset for each in manifests))[:4096],
            "provenance": _provenance([each.provenance for each in manifests]),
            "derived_from": _derived([each.derived_from for each in manifests if each.derived_from is not None]),
            "fidelity": fidelity,
            "rendering": rendering and rendering.model_copy(update={"sources": sources}),
            "files": files,
            "planes": planes,
            "about": about,
        }
    ).sealed()


def _provenance(given: Sequence[Provenance]) -> Provenance:
    """Return the statements of all stores; those that differ are joined, since each holds for a part of the union."""
    joined = {}
    for field in Provenance.model_fields:
        said = dict.fromkeys(getattr(each, field) for each in given if getattr(each, field) is not None)
        if said:
            joined[field] = "; ".join(said)[:MOST_CHARACTERS]
    return Provenance(**joined)


def _derived(origins: Sequence[DerivedFrom]) -> DerivedFrom | None:
    """Return the first origin, with all that was withheld of any store, as it holds for a part of the union."""
    withheld = dict.fromkeys(each for origin in origins for each in origin.withheld)
    return origins[0].model_copy(update={"withheld": tuple(withheld)}) if origins else None


def _files(found: Manifest, group: str) -> list[str]:
    return [name for name in found.files if name.split("/")[0] == group]


def _is_there(out: Path, union: Manifest) -> bool:
    """Return whether the union is at ``out``; refuse anything else but an empty directory."""
    if not out.is_symlink() and (not out.exists() or (out.is_dir() and not any(out.iterdir()))):
        return False
    try:
        there = manifest.read(out).digest == union.digest
    except KdpipeError:
        there = False
    if not there:
        raise StoreError(f"{out} exists and is not the union of these stores. Remove it, or pass --out another path.")
    return True


def _copy(
    out: Path, union: Manifest, copies: Sequence[_Copy], found: dict[Path, Manifest], *, progress: Progress
) -> None:
    """Copy the segments beside ``out``, compare each file with its digest, and put all in place."""
    fresh = skeleton.beside(out, "new")
    fresh.mkdir()
    try:
        with progress("copying", total=sum(file.size for file in union.files.values()), unit="bytes") as done:
            for copy in copies:
                for name in _files(found[copy.store], copy.group):
                    _copied(copy.store, name, fresh / copy.of_file(name), found[copy.store].files[name])
                    done(found[copy.store].files[name].size)
        manifest.write(fresh, union)
        if out.exists():
            out.rmdir()
        fresh.rename(out)
        durable.fsync_directory(out.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _copied(store: Path, name: str, target: Path, file: File) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(store / name) as stream, target.open("xb") as written:
        shutil.copyfileobj(stream, written, 1024**2)
    durable.fsync_file(target)
    if target.stat().st_size != file.size or manifest.digest_file(target) != file.digest:
        raise CorruptStoreError(
            f"{store / name} does not match its digest. Run: kdpipe verify {shlex.quote(str(store))}"
        )
