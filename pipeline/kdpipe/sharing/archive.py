"""Stores in a ``.zip`` or ``.tar`` file: exactly the files of the manifest are unpacked, each of its size and digest.

Nothing else in an archive is read: no link, no file of another name or size, nothing that leaves the folder.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from kdpipe import durable
from kdpipe.errors import CorruptStoreError, KdpipeError, StoreNotFoundError
from kdpipe.printable import printable
from kdpipe.reading import open_regular
from kdpipe.store import manifest
from kdpipe.store.sections import File

_SUFFIXES = (".zip", ".tar")
_MOST_MEMBERS = 2**20
_BLOCK = 1024**2
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True)
class _Member:
    """A regular file in an archive."""

    size: int
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a path is that of an archive, by its name."""
    return path.suffix in _SUFFIXES and not path.is_dir()


def unpack(path: Path, target: Path) -> None:
    """Unpack the store in an archive to ``target``, which appears whole or not at all.

    The store may lie at the top of the archive, or in a folder. One process at a time may unpack to ``target``; what a
    killed one has left is removed.

    Raises:
        StoreNotFoundError: there is no archive, or no store in it.
        CorruptStoreError: files are missing, or of another size or digest, or the archive is damaged.
        UnwritableError: the disk is full or fails.
    """
    work = target.with_name(f".{target.name}.unpacking")
    with durable.writing(target), _members(path) as members:
        shutil.rmtree(work, ignore_errors=True)
        root = _root(path, members)
        content = _read(path, f"{root}zarr.json", members, manifest.MAX_MANIFEST_BYTES)
        try:
            found = manifest.parse(content, root=path / f"{printable(root)}zarr.json")
            if found.state != "sealed":
                raise CorruptStoreError(f"{path} holds a store that is not sealed.")
            for name, file in found.files.items():
                _extract(path, f"{root}{name}", members, work / name, file)
            (work / "zarr.json").write_bytes(content)
            durable.fsync_file(work / "zarr.json")
            work.rename(target)
            durable.fsync_directory(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _root(path: Path, members: dict[str, _Member]) -> str:
    """Return the folder of the store: that of the ``zarr.json`` which is nearest to the top."""
    roots = sorted((name for name in members if name.split("/")[-1] == "zarr.json"), key=lambda name: name.count("/"))
    if not roots:
        raise StoreNotFoundError(f"{path} holds no logit store: there is no zarr.json in it.")
    return roots[0].removesuffix("zarr.json")


def _read(path: Path, name: str, members: dict[str, _Member], limit: int) -> bytes:
    if members[name].size > limit:
        raise CorruptStoreError(f"{path}: {printable(name)} is larger than {limit:,} bytes.")
    with members[name].open() as stream:
        return stream.read(limit)


def _extract(path: Path, name: str, members: dict[str, _Member], target: Path, file: File) -> None:
    member = members.get(name)
    if member is None or member.size != file.size:
        found = "is missing" if member is None else f"has {member.size} bytes, expected {file.size}"
        raise CorruptStoreError(f"{path}: {printable(name)} {found}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    hasher, left = blake3(), file.size
    with member.open() as stream, target.open("xb") as out:
        while left and (block := stream.read(min(left, _BLOCK))):
            hasher.update(block)
            out.write(block)
            left -= len(block)
    durable.fsync_file(target)
    if left or hasher.hexdigest(length=16) != file.digest:
        raise CorruptStoreError(f"{path}: {printable(name)} does not match its digest.")


@contextmanager
def _members(path: Path) -> Iterator[dict[str, _Member]]:
    """Open an archive; yield its regular files by name."""
    try:
        file = open_regular(path, follow=True)
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path} does not exist.") from None
    with file:
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(file) as packed:
                    yield _checked(path, _zipped(packed))
            else:
                with tarfile.open(fileobj=file, mode="r:") as opened:
                    yield _checked(path, _taped(opened))
        except KdpipeError:
            raise
        except (*_DAMAGED, OSError) as failure:
            if isinstance(failure, OSError) and failure.errno is not None:
                raise  # of the disk; bz2 has one without a number for damaged data
            raise CorruptStoreError(f"{path} is damaged: {printable(failure)[:200]}.") from None


def _zipped(packed: zipfile.ZipFile) -> Iterator[tuple[str, _Member]]:
    for info in packed.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not info.is_dir() and kind in (0, stat.S_IFREG):
            yield info.filename, _Member(info.file_size, lambda info=info: packed.open(info))  # type: ignore[misc]


def _taped(opened: tarfile.TarFile) -> Iterator[tuple[str, _Member]]:
    for info in opened:
        if info.isreg() and not info.issparse():
            yield info.name.removeprefix("./"), _Member(info.size, lambda info=info: _opened(opened, info))  # type: ignore[misc]


def _opened(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    assert stream is not None
    return stream


def _checked(path: Path, found: Iterator[tuple[str, _Member]]) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for name, member in found:
        if len(members) >= _MOST_MEMBERS:
            raise CorruptStoreError(f"{path} holds more than {_MOST_MEMBERS:,} files.")
        if name in members:
            raise CorruptStoreError(f"{path} holds {printable(name)} twice.")
        members[name] = member
    return members
