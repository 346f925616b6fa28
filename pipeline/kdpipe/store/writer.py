"""Writing a store: whole shards, one writer, a ledger to resume from, and a seal at the end.

A shard counts once its two files are on disk and in the ledger. A run that was killed continues with the
first shard that is not; batches never straddle a shard, so it ends with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdpipe import durable, encoding
from kdpipe.errors import CorruptStoreError, DivergedError, StaleStoreError, StoreError
from kdpipe.store import arrays, manifest
from kdpipe.store.layout import Layout
from kdpipe.store.ledger import Entry, Ledger, lock
from kdpipe.store.manifest import File, Fingerprint, Manifest, Split

_QUEUE = 2
"""Shards that may wait to be encoded and written while the teacher goes on."""


@dataclass(frozen=True)
class SplitPlan:
    """What a split will hold, known before the teacher runs."""

    sample_ids: npt.NDArray[np.uint8]
    """``(n, 16)``"""
    content_digests: npt.NDArray[np.uint8]
    """``(n, 16)``"""
    labels: npt.NDArray[np.int32]
    """``(n,)``, -1 where there is none."""
    planes: int
    """The plain view and the augmented ones."""
    probe_rows: npt.NDArray[np.int64]
    """``(p,)``: the samples whose pixels are remembered."""
    probe_hashes: npt.NDArray[np.uint64]
    """``(planes, p)``: 64-bit hashes of their rendered pixels."""


@dataclass(frozen=True)
class Shard:
    """A shard that is still to be computed: rows ``start`` to ``stop`` of one view."""

    split: str
    view: int
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Plan:
    """All that is needed to start or to resume a store."""

    fingerprint: Fingerprint
    teacher_probe: tuple[float, ...]
    dataset: str
    classes: tuple[str, ...]
    splits: dict[str, SplitPlan]

    def manifest(self) -> Manifest:
        """Return the manifest of the store while it is being built."""
        chosen = encoding.get(self.fingerprint.encoding)
        row_bytes = np.dtype(chosen.dtype).itemsize * len(self.classes)
        splits = {}
        for name, split in self.splits.items():
            samples = len(split.sample_ids)
            layout = Layout.choose(samples=samples, row_bytes=row_bytes)
            splits[name] = Split(
                samples=samples,
                planes=split.planes,
                chunk_rows=layout.chunk_rows,
                shard_rows=layout.shard_rows,
            )
        return Manifest(
            state="building",
            fingerprint=self.fingerprint,
            classes=self.classes,
            encoding=chosen.describe(),
            splits=splits,
            dataset=self.dataset,
            teacher_probe=self.teacher_probe,
        )


@contextmanager
def build(path: Path, plan: Plan, *, overwrite: bool = False) -> Iterator[Builder]:
    """Start, resume or find finished the store at ``path``; yields its ``Builder`` under the writer lock.

    Args:
        path: the store's directory, ``NAME.zarr``.
        plan: what the store must hold.
        overwrite: replace a store that was made from other ingredients, instead of refusing.

    Raises:
        StaleStoreError: the store at ``path`` differs from the plan, with the parts that do.
        StoreError: something else is at ``path``.
        StoreLockedError: another process is writing it.
    """
    with lock(path):
        wanted = plan.manifest()
        found = _existing(path, overwrite=overwrite)
        if found is not None:
            differing = _differences(found, wanted)
            if differing and not overwrite:
                raise StaleStoreError(
                    f"{path} differs from what is asked for ({'; '.join(differing)}). "
                    "Rebuild it with --overwrite, or pass --out another path."
                )
            if differing:
                found = None
        if found is None:
            _create(path, plan, wanted)
            found = wanted
        builder = Builder(path, found)
        try:
            yield builder
        finally:
            builder.close()


class Builder:
    """Takes the teacher's logits shard by shard and seals the store when all are there."""

    def __init__(self, path: Path, found: Manifest) -> None:
        """Wrap a store that exists and is locked by this process."""
        self.path = path
        self.manifest = found
        self._encoding = encoding.get(found.fingerprint.encoding)
        self._ledger = Ledger(path)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kdpipe-writer")
        self._writing: list[Future[None]] = []
        self._done: dict[str, Entry] = {}
        if self.sealed:
            self._ledger.remove()
        else:
            self._done = _confirmed(path, self._ledger)
            self._ledger.rewrite(list(self._done.values()))
            self._root = arrays.open_root(path, mode="r+")

    @property
    def sealed(self) -> bool:
        """Whether there is nothing left to do."""
        return self.manifest.state == "sealed"

    def shards(self, split: str, view: int) -> list[Shard]:
        """Return every shard of a plane, done or not."""
        cut = self.manifest.splits[split]
        bounds = Layout(cut.chunk_rows, cut.shard_rows).shards(cut.samples)
        return [Shard(split, view, number, start, stop) for number, (start, stop) in enumerate(bounds)]

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is on disk and in the ledger."""
        return self.sealed or all(path in self._done for path in _paths(shard))

    def submit(self, shard: Shard, logits: torch.Tensor) -> None:
        """Queue float32 logits ``(stop - start, classes)`` for encoding and writing.

        Waits while too many shards are queued. An error of an earlier shard is raised here.
        """
        while len(self._writing) >= _QUEUE or (self._writing and self._writing[0].done()):
            self._writing.pop(0).result()
        self._writing.append(self._executor.submit(self._write, shard, logits))

    def drain(self) -> None:
        """Wait until everything that was submitted is on disk; raise the first error."""
        while self._writing:
            self._writing.pop(0).result()

    def plane(self, split: str, view: int) -> npt.NDArray[np.float32]:
        """Return the logits of a plane that is complete, float32 ``(n, classes)``, as a reader would see them."""
        self.drain()
        codes, row_max = (
            torch.from_numpy(np.asarray(arrays.member(self._root, split, name)[view])) for name in ("codes", "row_max")
        )
        logits: npt.NDArray[np.float32] = self._encoding.decode(codes, row_max).numpy()
        return logits

    def close(self) -> None:
        """Stop the writer thread; what was not begun is dropped and will be computed again."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def seal(self, about: dict[str, Any]) -> Manifest:
        """Digest every file, write the final manifest and remove the ledger.

        Raises:
            CorruptStoreError: a shard is missing, or there is a file that does not belong.
        """
        self.drain()
        expected = {
            path
            for split, cut in self.manifest.splits.items()
            for view in range(cut.planes)
            for shard in self.shards(split, view)
            for path in _paths(shard)
        }
        missing = sorted(expected - self._done.keys())
        if missing:
            raise CorruptStoreError(
                f"{self.path} cannot be sealed: {len(missing)} files are missing, first {missing[0]}."
            )
        files = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if path.is_dir() or name == "zarr.json":
                continue
            entry = self._done.get(name) or _entry(self.path, name)
            files[name] = File(size=entry.size, digest=entry.digest)
        planes = {
            f"{split}/{view}": manifest.digest_json(
                [files[path].digest for shard in self.shards(split, view) for path in _paths(shard)]
            )
            for split, cut in self.manifest.splits.items()
            for view in range(cut.planes)
        }
        sealed = self.manifest.model_copy(update={"state": "sealed", "files": files, "planes": planes, "about": about})
        sealed = sealed.model_copy(update={"digest": sealed.content_digest()})
        sealed = sealed.model_copy(update={"checksum": sealed.own_checksum()})
        manifest.write(self.path, sealed)
        self._ledger.remove()
        self.manifest = sealed
        return sealed

    def _write(self, shard: Shard, logits: torch.Tensor) -> None:
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            row = shard.start + int((~finite).nonzero()[0])
            raise DivergedError(
                f"the teacher's logits of {shard.split} sample {row}, view {shard.view} are not finite; nothing of "
                "this shard was written. Try --precision fp32, and check the weights."
            )
        encoded = self._encoding.encode(logits)
        names = _paths(shard)
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        for name, values in (("codes", encoded.codes), ("row_max", encoded.row_max)):
            arrays.member(self._root, shard.split, name)[shard.view, shard.start : shard.stop] = values
        for name in names:
            durable.fsync_file(self.path / name)
        entries = [_entry(self.path, name) for name in names]
        self._ledger.append(entries)
        self._done.update({entry.path: entry for entry in entries})


def _existing(path: Path, *, overwrite: bool) -> Manifest | None:
    if not path.exists():
        return None
    try:
        return manifest.read(path)
    except StoreError:
        is_group = (path / "zarr.json").is_file()
        if overwrite and is_group:
            return None
        if path.is_dir() and not any(path.iterdir()):
            return None
        if is_group:
            raise
        raise StoreError(f"{path} exists and is not a logit store. Pass --out another path, or remove it.") from None


def _differences(found: Manifest, wanted: Manifest) -> list[str]:
    differing = found.fingerprint.differences(wanted.fingerprint)
    if found.classes != wanted.classes:
        differing.append("classes: the names or their order differ")
    for name, split in wanted.splits.items():
        planes = found.splits[name].planes if name in found.splits else 0
        if planes != split.planes:
            differing.append(f"{name} views: the store has {planes - 1}, asked for {split.planes - 1}")
    probes = zip(found.teacher_probe, wanted.teacher_probe, strict=False)
    if len(found.teacher_probe) != len(wanted.teacher_probe) or not all(
        np.isclose(mine, asked, rtol=1e-2, atol=1e-2) for mine, asked in probes
    ):
        differing.append("teacher: its logits for the fixed probe input differ, so its code has changed")
    return differing


def _create(path: Path, plan: Plan, wanted: Manifest) -> None:
    """Make the empty store beside ``path`` and move it there in one step."""
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    manifest.write(fresh, wanted)
    root = arrays.open_root(fresh, mode="r+")
    dtype = str(wanted.encoding["dtype"])
    for name, split in plan.splits.items():
        group = root.create_group(name)
        expected = arrays.specs(
            wanted.splits[name], width=len(wanted.classes), dtype=dtype, probes=len(split.probe_rows)
        )
        arrays.create(group, expected)
        for array, values in _side_arrays(split).items():
            arrays.member(root, name, array)[...] = values
    for file in fresh.rglob("*"):
        if file.is_file():
            durable.fsync_file(file)
    Ledger(path).remove()
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)
    durable.fsync_directory(path.parent)


def _side_arrays(split: SplitPlan) -> dict[str, npt.NDArray[Any]]:
    return {
        "labels": split.labels,
        "sample_id": split.sample_ids,
        "content_digest": split.content_digests,
        "probe_row": split.probe_rows,
        "probe_hash": split.probe_hashes,
    }


def _confirmed(path: Path, ledger: Ledger) -> dict[str, Entry]:
    """Return the ledger's entries whose files are as recorded; delete shard files that have none."""
    confirmed = {
        name: entry for name, entry in ledger.read().items() if (path / name).is_file() and _entry(path, name) == entry
    }
    for folder in path.glob("*/*/c"):
        if folder.parent.name in ("codes", "row_max"):
            for file in folder.rglob("*"):
                if file.is_file() and file.relative_to(path).as_posix() not in confirmed:
                    file.unlink()
    return confirmed


def _entry(store: Path, name: str) -> Entry:
    path = store / name
    return Entry(name, path.stat().st_size, manifest.digest_file(path))


def _paths(shard: Shard) -> tuple[str, str]:
    return (
        arrays.code_path(shard.split, shard.view, shard.number),
        arrays.row_max_path(shard.split, shard.view, shard.number),
    )
