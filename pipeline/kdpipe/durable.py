"""Durable files: atomic writing (a temporary file, flushed and renamed), locks, and errors of the disk in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdpipe.errors import KdpipeError, UnwritableError
from kdpipe.printable import printable_json

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL = 0.02
"""Seconds between two attempts to take a lock."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries, so that a rename in it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path, *, up_to: Path | None = None) -> None:
    """Flush a file's content, then its directory entry, then those of its parents up to ``up_to``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_directory(path.parent)
    if up_to is not None:
        for parent in path.parents[1 : 1 + len(path.relative_to(up_to).parts) - 1]:
            fsync_directory(parent)


def replace(path: Path, write: Callable[[Path], object], *, temporary: Path | None = None) -> None:
    """Call ``write`` with the path of a temporary file, then rename that to ``path``.

    On an error or a kill, ``path`` keeps its former content; a kill leaves the temporary file. By default it is beside
    ``path``, with a random part in its name; ``temporary`` must be on the same file system.

    Raises:
        UnwritableError: the disk is full or fails, or the folder is read-only.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            write(temporary)
            fsync_file(temporary)
            temporary.replace(path)
            fsync_directory(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, temporary: Path | None = None) -> None:
    """Write ``content`` to ``path`` atomically; see ``replace`` for ``temporary``."""
    replace(path, lambda file: file.write_bytes(content), temporary=temporary)


def write_text(path: Path, content: str, *, temporary: Path | None = None) -> None:
    """Write ``content`` to ``path`` as UTF-8, atomically; see ``replace`` for ``temporary``."""
    write_bytes(path, content.encode(), temporary=temporary)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON in ASCII, atomically; NaN and infinity raise ``ValueError``."""
    write_text(path, printable_json(value) + "\n")


@contextmanager
def writing(
    path: Path, *, kept: str = "what was there before is kept", error: type[UnwritableError] = UnwritableError
) -> Iterator[None]:
    """Report the disk's errors in the block as one line with ``path``, the remedy, and what is ``kept``.

    Raises:
        UnwritableError: or the type ``error``: a write failed.
    """
    try:
        yield
    except KdpipeError:
        raise
    except OSError as failure:
        reason = failure.strerror or str(failure)
        if failure.errno in _FULL:
            remedy = f"its disk is full ({reason}). Make room in {path.parent} and run this again: {kept}."
        elif failure.errno in _CLOSED:
            remedy = f"{reason}: {failure.filename or path.parent}. Make it writable, or pass another path."
        else:
            remedy = f"{reason}. Check the disk of {path.parent} and run this again: {kept}."
        raise error(f"{path} cannot be written: {remedy}") from failure


class HeldError(Exception):
    """Another process holds a lock; ``holder`` is what it wrote into the file."""

    def __init__(self, holder: str) -> None:
        """Keep what the file says."""
        super().__init__(holder)
        self.holder = holder


@contextmanager
def locked(path: Path, refuse: Callable[[str], KdpipeError], *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, and remove it afterwards; a dead process's lock does not count.

    The file holds the process id of its owner. A link in its place is refused and left alone. Another owner is waited
    for ``patience`` seconds.

    Raises:
        KdpipeError: what ``refuse`` returns for the process id of another owner.
        UnwritableError: the file cannot be made.
    """
    deadline = time.monotonic() + patience
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                descriptor = take_lock(path)
                break
            except HeldError as held:
                if time.monotonic() >= deadline:
                    holder = held.holder.partition(" ")[0]
                    raise refuse(holder if holder.isdecimal() else "unknown") from None
            time.sleep(_POLL)
    try:
        with writing(path):
            write_holder(descriptor, str(os.getpid()))
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def take_lock(path: Path, *, shared: bool = False) -> int:
    """Lock the file ``path``, alone or ``shared`` with others, and return the descriptor whose closing unlocks it.

    Whoever removes the file must hold it alone.

    Raises:
        HeldError: another process holds it.
        UnwritableError: it is a link, or otherwise no lock file.
    """
    while True:
        descriptor = open_beside(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace")
            os.close(descriptor)
            raise HeldError(holder) from None
        # The previous holder may have unlinked the file between the open and the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        os.close(descriptor)


def write_holder(descriptor: int, holder: str) -> None:
    """Replace the content of a lock file that this process holds alone."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder.encode(), 0)


def open_beside(path: Path) -> int:
    """Open or create a file that processes lock, following no link.

    Raises:
        UnwritableError: it is a link, or otherwise no lock file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as failure:
        if failure.errno == errno.ELOOP:
            raise _no_lock(path) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _no_lock(path)
    return descriptor


def _no_lock(path: Path) -> UnwritableError:
    return UnwritableError(
        f"{path} is a link or otherwise no lock file of kdpipe, and is left alone. Remove it, or pass another path."
    )
