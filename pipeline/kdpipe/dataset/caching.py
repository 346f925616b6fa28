"""The directory of all caches: trust in it, its files, and the removal of the least recently used ones.

Everything in it may be deleted at any time. A file's time of modification is that of its last use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdpipe.errors import ParamsError
from kdpipe.reading import open_regular

FOLDERS = ("pixels", "digests", "decoded", "indexes", "broken", "addresses")
"""The folders in the cache directory; nothing else in it but ``STORES`` is listed or removed."""
STORES = "stores"
"""The folder of stores from URLs and archives, each in a folder with the file ``lock``, locked while it is used."""

LIMIT = "KDPIPE_CACHE_LIMIT"
"""Environment variable: gigabytes that the caches may take."""

_DEFAULT_LIMIT = 20 * 10**9
_OWNER_HEADER = 64
_YOUNG_SECONDS = 5.0
"""Age below which a temporary file may not have been locked yet by its writer."""


@dataclass(frozen=True)
class Entry:
    """A file in the cache, or the folder of a store."""

    path: Path
    bytes: int
    used: float
    """Time of its last use, in seconds since 1970."""
    dataset: str
    """Name and split of the dataset whose pixels it holds, cut to 24 bytes, or name of a store; else empty."""
    dead: bool
    """Whether it is the temporary file of a process that ended."""


def cache_directory() -> Path:
    """Return the directory of all caches: ``$KDPIPE_CACHE``, ``$XDG_CACHE_HOME/kdpipe`` or ``~/.cache/kdpipe``."""
    if own := os.environ.get("KDPIPE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdpipe"


def limit_bytes() -> int:
    """Return the bytes that the caches may take: ``$KDPIPE_CACHE_LIMIT`` gigabytes, else 20 or a fifth of the disk.

    Raises:
        ParamsError: the variable is no number, or negative.
    """
    asked = os.environ.get(LIMIT)
    if asked:
        try:
            return int(max(float(asked), -1) * 10**9) if 0 <= float(asked) < 10**9 else _refuse(asked)
        except ValueError:
            return _refuse(asked)
    with contextlib.suppress(OSError):
        place = next(place for place in (cache_directory(), *cache_directory().parents) if place.is_dir())
        return min(_DEFAULT_LIMIT, shutil.disk_usage(place).total // 5)
    return _DEFAULT_LIMIT


def _refuse(asked: str) -> int:
    raise ParamsError(f"{LIMIT} is '{asked}', expected the gigabytes that the caches may take, such as 20.")


def distrust() -> str | None:
    """Return why the cache directory is not used: another user wrote it, or could; ``None`` where it is used."""
    root = cache_directory()
    with contextlib.suppress(OSError):
        info = root.stat()
        if info.st_uid not in (os.geteuid(), 0):
            return f"the cache {root} belongs to another user and is not used; set KDPIPE_CACHE to a folder of yours"
        if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
            return f"the cache {root} can be written by other users and is not used; run: chmod go-w {root}"
    return None


def trusted(descriptor: int, path: Path) -> bool:
    """Return whether this user alone, or root, can have written an open file of the cache at ``path``."""
    infos = (os.fstat(descriptor), path.parent.lstat())
    return distrust() is None and all(
        info.st_uid in (os.geteuid(), 0) and not info.st_mode & 0o022 and not stat.S_ISLNK(info.st_mode)
        for info in infos
    )


def prepare(path: Path) -> None:
    """Make the folder of a cache file that is to be written, for this user alone.

    Raises:
        OSError: the cache cannot be written, or is not trusted.
    """
    reason = distrust()
    if reason is not None:
        raise PermissionError(reason)
    path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    info = path.parent.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path.parent} is not a folder of this user")
    if info.st_mode & 0o022:
        path.parent.chmod(0o700)
        for other in path.parent.iterdir():  # someone else may have put it there
            other.unlink()


def touch(descriptor: int) -> None:
    """Note that an open cache file is used now."""
    with contextlib.suppress(OSError):
        os.utime(descriptor)


def entries() -> list[Entry]:
    """Return the files of the caches: those of processes that ended, then the least recently used first."""
    return sorted(_entries(), key=lambda entry: (not entry.dead, entry.used))


def _entries() -> Iterator[Entry]:
    for folder in FOLDERS:
        place = cache_directory() / folder
        if place.is_symlink() or not place.is_dir():
            continue
        for path in place.iterdir():
            with contextlib.suppress(OSError):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode):
                    used = info.st_mtime
                    name = _name(path) if folder == "pixels" else ""
                    yield Entry(path, info.st_size, used, name, path.suffix == ".tmp" and _is_dead(path, used))
    yield from _stores()


def _stores() -> Iterator[Entry]:
    place = cache_directory() / STORES
    if place.is_symlink() or not place.is_dir():
        return
    for folder in place.iterdir():
        with contextlib.suppress(OSError):
            if folder.is_symlink():
                continue
            sizes = [path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()]
            name = next((path.name for path in folder.glob("*.zarr")), "")
            yield Entry(folder, sum(sizes), (folder / "lock").lstat().st_mtime, name, False)


def _remove(path: Path) -> bool:
    """Remove a file, or the folder of a store that no process uses; return whether it was."""
    if not path.is_dir():
        path.unlink()
        return True
    with (path / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(path)
    return True


def _name(path: Path) -> str:
    with open_regular(path) as file:
        return file.read(_OWNER_HEADER)[40:].rstrip(b"\0").decode(errors="ignore")


def _is_dead(path: Path, written: float) -> bool:
    """Return whether no process holds the lock of a temporary file."""
    if time.time() - written < _YOUNG_SECONDS:
        return False
    with open_regular(path) as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def prune(limit: int, *, keep: Path | None = None) -> list[Entry]:
    """Remove dead temporary files, then the least recently used files until ``limit`` bytes are left; return them.

    ``keep`` and files that are being written stay. A process that has mapped a removed file goes on.
    """
    found = entries()
    left = sum(entry.bytes for entry in found)
    removed = []
    for entry in found:
        being_written = entry.path.suffix == ".tmp" and not entry.dead
        if entry.path == keep or being_written or not (entry.dead or left > limit):
            continue
        with contextlib.suppress(OSError):
            if _remove(entry.path):
                left -= entry.bytes
                removed.append(entry)
    return removed
