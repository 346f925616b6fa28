"""Pulling a version of a store, or a part of it, into a folder of this machine.

    with Pull.begun(found, Path("cifar.zarr"), Wanted(splits=("test",))) as pull:
        pull.fetch(pull.sides())
        pull.fetch(pull.planes())
        pull.finish()

A new store is made in a hidden folder beside its place and renamed when the wanted part is complete; a part of the same
version is completed in its place. A killed pull goes on with the files, and the bytes of files, that have arrived.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdpipe import directories, durable
from kdpipe.errors import ParamsError, StaleStoreError, StoreError, UnwritableError
from kdpipe.progress import Progress, in_bytes, silent
from kdpipe.sharing.published import Published
from kdpipe.store import manifest, partial, tree
from kdpipe.store.manifest import Manifest
from kdpipe.store.partial import Present, place_of
from kdpipe.store.sections import File

_MOST_NEIGHBORS = 50
"""Stores beside the new one whose files are used again."""

Planes = dict[str, tuple[int, ...]]
"""Views of each group."""


@dataclass(frozen=True)
class Wanted:
    """The wanted part of a store."""

    splits: tuple[str, ...] | None = None
    """``None`` for all."""
    views: int | None = None
    """Augmented views besides the plain one; ``None`` for all."""

    def of(self, found: Manifest) -> Planes:
        """Return the views of each group that are wanted.

        Raises:
            ParamsError: the store has no such split, or fewer views.
        """
        for split in self.splits or ():
            if split not in found.names:
                raise ParamsError(f"the store has no split '{split}', only {', '.join(found.names)}.")
        splits = found.names if self.splits is None else self.splits
        groups = [group for split in splits for group in found.segments(split)]
        most = max(found.splits[group].planes for group in groups) - 1
        if self.views is not None and not 0 <= self.views <= most:
            raise ParamsError(f"--views {self.views}: the store has {most} augmented views of {' and '.join(splits)}.")
        count = most if self.views is None else self.views
        return {group: tuple(range(min(count + 1, found.splits[group].planes))) for group in groups}


@dataclass
class Pull:
    """A pull that has begun, whose place no other process writes."""

    found: Published
    out: Path
    work: Path
    """The folder that is filled: ``out`` itself, or one beside it."""
    wanted: Planes
    here: Planes
    """Views of each group that were here before, and are promised by ``present.json``."""
    progress: Progress = silent
    reused: int = 0
    """Bytes that came from other stores of this machine."""
    fetched: int = 0
    """Bytes that came from the place."""
    _good: set[str] = field(default_factory=set)
    """Files that are here and were checked."""
    _neighbors: dict[tuple[str, int], list[Path]] | None = None

    @classmethod
    @contextmanager
    def begun(
        cls, found: Published, out: Path, wanted: Wanted, *, overwrite: bool = False, progress: Progress = silent
    ) -> Iterator[Pull]:
        """Lock ``out``, and find out what of the wanted part is here.

        ``overwrite`` replaces another store at ``out``; without it that is refused.

        Raises:
            ParamsError: the store has no such part.
            StaleStoreError: there is another store at ``out``.
            RunLockedError: another process writes it.
        """
        planes = wanted.of(found.manifest)
        if out.is_symlink():
            raise StoreError(f"{out} is a link, and a store is written to a folder. Pass --out {out.resolve()}.")
        with directories.locked(out):
            _recover(out)
            same = _standing(found, out, overwrite=overwrite)
            work = out if same else _beside(out, "pull")
            here: Planes = {}
            if same:
                listed = partial.read(out, found.manifest.checksum)
                here = _all(found.manifest) if listed is None else dict(listed.planes)
            pull = cls(found, out, work, planes, here, progress)
            pull._prepare()
            yield pull

    def sides(self) -> list[str]:
        """Return the files of the wanted splits that all views need: metadata, ids, digests and labels."""
        return [name for name in self._files() if place_of(name)[1] is None]

    def planes(self) -> list[str]:
        """Return the files of the wanted views, view by view."""
        named = [(place_of(name)[1], name) for name in self._files()]
        return [name for view, name in sorted((view, name) for view, name in named if view is not None)]

    def missing(self) -> int:
        """Return the bytes of the wanted part that neither are here nor lie in other stores of this machine."""
        self._reuse([*self.sides(), *self.planes()])
        return sum(self._size(name) for name in self._files() if name not in self._good)

    @property
    def size(self) -> int:
        """Bytes of the whole store."""
        return sum(file.size for file in self.found.manifest.files.values())

    def fetch(self, names: Sequence[str]) -> None:
        """Fetch those of some files that are not here; see ``Published.fetch`` for errors.

        Raises:
            UnwritableError: there is too little room for them.
        """
        self._reuse(names)
        left = [name for name in names if name not in self._good]
        total = sum(map(self._size, left))
        if total > shutil.disk_usage(self.work).free:
            raise UnwritableError(
                f"{self.out}: {total / 1e6:,.1f} MB are to be fetched, and its disk has less room. Make room, or pull "
                "a part: --split, --views."
            )
        if not left:
            return
        with in_bytes(self.progress, f"pulling {self.found.address.name}", total) as report:
            self.found.fetch(left, self.work, parts=self._parts, report=report)
        self._good.update(left)
        self.fetched += total

    def finish(self) -> Path:
        """Note that the wanted part is here, and put a new store in its place; return that."""
        whole = _all(self.found.manifest)
        merged = {
            group: tuple(sorted({*self.here.get(group, ()), *self.wanted.get(group, ())}))
            for group in whole
            if group in self.here or group in self.wanted
        }
        for name, content in self.found.companions().items():
            durable.write_bytes(self.work / name, content, temporary=self._beside(name))
        partial.write(self.work, None if merged == whole else self._present(merged))
        if self.work != self.out:
            old = _beside(self.out, "old")
            with durable.writing(self.out):
                if self.out.exists():
                    self.out.rename(old)
                self.work.rename(self.out)
                durable.fsync_directory(self.out.absolute().parent)
                if old.exists():
                    tree.remove(old)
        shutil.rmtree(self._parts, ignore_errors=True)
        return self.out

    def abandon(self) -> None:
        """Remove what was fetched of a new store."""
        if self.work != self.out:
            tree.remove(self.work)
        shutil.rmtree(self._parts, ignore_errors=True)

    @property
    def _parts(self) -> Path:
        return _beside(self.out, "parts")

    def _beside(self, name: str) -> Path:
        return self.work.with_name(f".{self.work.name}.{name}.{secrets.token_hex(4)}.tmp")

    def _size(self, name: str) -> int:
        return self.found.manifest.files[name].size

    def _files(self) -> list[str]:
        part = self._present(self.wanted)
        return [name for name in self.found.manifest.files if part.names(name)]

    def _present(self, planes: Planes) -> Present:
        checksum = self.found.manifest.checksum
        assert checksum is not None
        return Present(checksum=checksum, source=self.found.describe()[:4096], planes=planes)

    def _prepare(self) -> None:
        """Make the folder with the manifest alone, or go on with that of a killed pull; check what is here."""
        with durable.writing(self.out):
            if self.work != self.out:
                if _manifest_of(self.work) != self.found.manifest and os.path.lexists(self.work):
                    tree.remove(self.work)
                self.work.mkdir(parents=True, exist_ok=True)
                partial.write(self.work, self._present({}))
                durable.write_bytes(self.work / "zarr.json", self.found.content, temporary=self._beside("zarr.json"))
        there = [name for name in self._files() if (self.work / name).is_file()]
        total = sum(map(self._size, there))
        with in_bytes(self.progress, "checking what is here", total) as report:
            for name in there:
                if _has(self.work / name, self.found.manifest.files[name]):
                    self._good.add(name)
                report(self._size(name))

    def _reuse(self, names: Sequence[str]) -> None:
        """Take files that other stores of this machine have."""
        left = [name for name in names if name not in self._good]
        if left and self._neighbors is None:
            self._neighbors = _neighbors(self.out, exclude=self.work)
        for name in left:
            file = self.found.manifest.files[name]
            for path in (self._neighbors or {}).get((file.digest, file.size), ()):
                if _has(path, file):
                    self._take(path, self.work / name)
                    self._good.add(name)
                    self.reused += file.size
                    break

    def _take(self, path: Path, target: Path) -> None:
        """Give a file of another store a second name, where the disk can, or copy it."""
        with durable.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(path, target, follow_symlinks=False)
                durable.fsync_directory(target.parent)
            except OSError:
                copied = self._beside("copied")
                durable.replace(target, lambda file: shutil.copyfile(path, file), temporary=copied)


def _all(found: Manifest) -> Planes:
    return {group: tuple(range(cut.planes)) for group, cut in found.splits.items()}


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f".{out.name}.{ending}")


def _recover(out: Path) -> None:
    """Put the old store back, or remove it, where a kill came while another took its place."""
    old = _beside(out, "old")
    if old.exists():
        with durable.writing(out):
            if out.exists():
                tree.remove(old)
            else:
                old.rename(out)


def _standing(found: Published, out: Path, *, overwrite: bool) -> bool:
    """Return whether ``out`` holds the version, whole or in part; refuse anything else that is there."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        with suppress(OSError):
            out.rmdir()
        return False
    there = _manifest_of(out)
    if there is not None and there.checksum == found.manifest.checksum:
        return True
    if there is None:
        raise StoreError(f"{out} exists and is not a logit store. Pass --out another path, or remove it.")
    if not overwrite:
        raise StaleStoreError(
            f"{out} holds another store or version (digest {there.digest}) than {found.describe()} (digest "
            f"{found.manifest.digest}). Pass --out another path, or --overwrite: files that both have are kept."
        )
    tree.refuse_strangers(out, what="replacing it")
    return False


def _manifest_of(store: Path) -> Manifest | None:
    try:
        return manifest.read(store)
    except (StoreError, OSError):
        return None


def _neighbors(out: Path, *, exclude: Path) -> dict[tuple[str, int], list[Path]]:
    """Return the files of the stores beside ``out``, and of what is at ``out`` itself, by digest and size."""
    parent = out.absolute().parent
    with suppress(OSError):
        stores = [out, *sorted(path for path in parent.glob("*.zarr") if path.name != out.name)][:_MOST_NEIGHBORS]
        known: dict[tuple[str, int], list[Path]] = {}
        for store in stores:
            there = None if store == exclude or store.is_symlink() else _manifest_of(store)
            for name, file in ({} if there is None else there.files).items():
                known.setdefault((file.digest, file.size), []).append(store / name)
        return known
    return {}


def _has(path: Path, file: File) -> bool:
    try:
        return path.lstat().st_size == file.size and bool(manifest.digest_file(path) == file.digest)
    except OSError:
        return False
