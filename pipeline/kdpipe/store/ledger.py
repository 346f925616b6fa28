"""Files beside a store under construction: the lock of its one writer, and the ledger of finished shards.

Both stand next to ``NAME.zarr`` and are removed when it is sealed, so that a sealed store holds exactly the files of
its manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue

from kdpipe import durable
from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError, StoreLockedError, UnwritableStoreError
from kdpipe.reading import parse_json, read_bytes, validated
from kdpipe.store.sections import Choice, Digest, FileName, Size

_MAX_BYTES = 256 * 1024**2
"""A hundred times the ledger of ImageNet in 100 views."""


@dataclass(frozen=True)
class Entry:
    """One finished file of the store."""

    path: str
    size: int
    digest: str
    fidelity: Fidelity | None = None
    """Loss of encoding in a shard of codes; ``None`` for other files."""


class _Line(BaseModel):
    """One line of the ledger that records a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: FileName
    size: Size
    digest: Digest
    fidelity: dict[str, JsonValue] | None = None


class Ledger:
    """An append-only list of finished files, one JSON line each, flushed to disk before it counts."""

    def __init__(self, store: Path) -> None:
        """Use the ledger of the store at ``store``; nothing is created yet."""
        self.path = store.with_name(store.name + ".ledger")

    def read(self) -> dict[str, Entry]:
        """Return the entries by path, without lines that a kill cut short or that are damaged.

        Raises:
            CorruptStoreError: the ledger is a link, no regular file, or larger than any store's.
        """
        if not os.path.lexists(self.path):
            return {}
        entries = {}
        for line in read_bytes(self.path, limit=_MAX_BYTES, error=CorruptStoreError).split(b"\n")[:-1]:
            with suppress(CorruptStoreError):
                content = parse_json(line, of=self.path, error=CorruptStoreError)
                found = validated(content, _Line, of=self.path, error=CorruptStoreError)
                lost = None if found.fidelity is None else Fidelity.from_json(found.fidelity)
                entries[found.path] = Entry(found.path, found.size, found.digest, lost)
        return entries

    def rewrite(self, entries: list[Entry], *, choice: Choice | None) -> None:
        """Replace the ledger's content, including a last line that was cut short; ``choice`` comes first."""
        chosen = "" if choice is None else json.dumps({"choice": choice.model_dump(mode="json")}) + "\n"
        lines = chosen + "".join(_line(entry) for entry in entries)
        durable.write_text(self.path, lines, temporary=self.path.with_name(f".{self.path.name}"))

    def append(self, entries: list[Entry]) -> None:
        """Add entries and flush them to disk."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self.path, flags, 0o644), "w", encoding="utf-8") as stream:
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

    def refuse(holder: str) -> StoreLockedError:
        return StoreLockedError(
            f"{store} is being written by process {holder}. Wait for it, or stop it, and run this again."
        )

    with durable.locked(store.with_name(store.name + ".lock"), refuse):
        yield


@contextmanager
def writing(store: Path) -> Iterator[None]:
    """Report the disk's errors with the store and the remedy, in one line.

    Raises:
        UnwritableStoreError: the disk is full or fails, or the folder is read-only or not permitted.
    """
    with durable.writing(store, kept="finished shards are kept", error=UnwritableStoreError):
        yield
