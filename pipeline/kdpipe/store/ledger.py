"""Files beside a store under construction: the lock of its one writer, and the ledger of finished shards.

Both stand next to ``NAME.zarr`` and are removed when it is sealed, so that a sealed store holds exactly the files of
its manifest.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe import durable
from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError, StoreLockedError, UnwritableStoreError
from kdpipe.store.sections import Choice


@dataclass(frozen=True)
class Entry:
    """One finished file of the store."""

    path: str
    size: int
    digest: str
    fidelity: Fidelity | None = None
    """Loss of encoding in a shard of codes; ``None`` for other files."""


class Ledger:
    """An append-only list of finished files, one JSON line each, flushed to disk before it counts."""

    def __init__(self, store: Path) -> None:
        """Use the ledger of the store at ``store``; nothing is created yet."""
        self.path = store.with_name(store.name + ".ledger")

    def read(self) -> dict[str, Entry]:
        """Return the entries by path, without lines that a kill cut short or that are damaged."""
        if not self.path.exists():
            return {}
        entries = {}
        for line in self.path.read_bytes().split(b"\n")[:-1]:
            with suppress(ValueError, KeyError, TypeError, CorruptStoreError):
                described = json.loads(line)
                if "fidelity" in described:
                    described["fidelity"] = Fidelity.from_json(described["fidelity"])
                entries[described["path"]] = Entry(**described)
        return entries

    def rewrite(self, entries: list[Entry], *, choice: Choice | None) -> None:
        """Replace the ledger's content, including a last line that was cut short; ``choice`` comes first."""
        chosen = "" if choice is None else json.dumps({"choice": choice.model_dump(mode="json")}) + "\n"
        lines = chosen + "".join(_line(entry) for entry in entries)
        durable.write_text(self.path, lines, temporary=self.path.with_name(f".{self.path.name}"))

    def append(self, entries: list[Entry]) -> None:
        """Add entries and flush them to disk."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(_line(entry) for entry in entries))
            stream.flush()
            os.fsync(stream.fileno())

    def remove(self) -> None:
        """Delete the ledger."""
        self.path.unlink(missing_ok=True)


def _line(entry: Entry) -> str:
    described: dict[str, Any] = {"path": entry.path, "size": entry.size, "digest": entry.digest}
    if entry.fidelity is not None:
        described["fidelity"] = entry.fidelity.to_json()
    return json.dumps(described) + "\n"


@contextmanager
def lock(store: Path) -> Iterator[None]:
    """Hold the store's writer lock; the lock of a dead process does not count.

    Raises:
        StoreLockedError: another process holds it; the message has its process id.
    """
    path = store.with_name(store.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace") or "unknown"
            os.close(descriptor)
            store = path.with_suffix("")
            raise StoreLockedError(
                f"{store} is being written by process {holder}. Wait for it, or stop it, and run this again."
            ) from None
        # The previous holder may have unlinked the file between the open and the lock.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        os.close(descriptor)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Report errors of the disk with the store and the remedy, in one line; other errors pass.

    Raises:
        UnwritableStoreError: the disk is full, or the folder is read-only or not permitted.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UnwritableStoreError(
                f"{store} cannot be written, its disk is full ({error.strerror}). Make room in {store.parent} and run "
                "this again: finished shards are kept."
            ) from error
        if error.errno in _CLOSED:
            raise UnwritableStoreError(
                f"{store} cannot be written ({error.strerror}: {error.filename or store.parent}). Make {store.parent} "
                "writable, or pass --out another path."
            ) from error
        raise
