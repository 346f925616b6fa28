"""Files beside a store under construction: the lock of its writer, and the ledger of finished shards.

They stand next to ``NAME.zarr`` and are removed when it is sealed, so that a sealed store holds exactly the files of
its manifest. Each of several processes that write one store has its own ledger, ``NAME.zarr.ledger.TOKEN``.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from kdpipe import durable
from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import CorruptStoreError, StoreLockedError, UnwritableStoreError
from kdpipe.reading import parse_json, read_bytes, validated
from kdpipe.store.sections import Choice, Digest, FileName, Size

_MAX_BYTES = 1024**3
"""Thirty times the ledger of ImageNet with its content digests in 100 views."""


@dataclass(frozen=True)
class Entry:
    """One finished file of the store."""

    path: str
    size: int
    digest: str
    fidelity: Fidelity | None = None
    """Loss of encoding in a shard of codes; ``None`` for other files."""
    device: str | None = None
    """Name of the device that computed a shard's logits; ``None`` for other files than codes."""
    seconds: float | None = None
    """Time that this took; ``None`` for other files than codes."""
    contents: str | None = None
    """Content digests of the rows of a shard in base64, where the build learns them with it; else ``None``."""

    @property
    def file(self) -> Entry:
        """The entry without what is known of the shard's logits."""
        return replace(self, fidelity=None, device=None, seconds=None, contents=None)


class _Line(BaseModel):
    """One line of the ledger that records a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: FileName
    size: Size
    digest: Digest
    fidelity: dict[str, JsonValue] | None = None
    device: Annotated[str, Field(max_length=256)] | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    contents: Annotated[str, Field(max_length=2**21)] | None = None


class Ledger:
    """An append-only list of finished files, one JSON line each, flushed to disk before it counts."""

    def __init__(self, store: Path, *, token: str | None = None) -> None:
        """Use the ledger of the store at ``store``; nothing is created yet.

        With a ``token``, entries are appended to a separate file. Those of all files are read.
        """
        self.path = store.with_name(store.name + ".ledger")
        self._own = self.path if token is None else self.path.with_name(f"{self.path.name}.{token}")
        self._read: dict[Path, int] = {}

    def read(self) -> dict[str, Entry]:
        """Return the entries by path, without lines that a kill cut short or that are damaged.

        Raises:
            CorruptStoreError: a ledger is a link, no regular file, or larger than any store's.
        """
        self._read.clear()
        return self.news()

    def news(self) -> dict[str, Entry]:
        """Return the entries by path that were added since they were last read."""
        entries = {}
        for path in [*([self.path] if os.path.lexists(self.path) else []), *self.of_processes()]:
            begin = self._read.get(path, 0)
            try:
                content = read_bytes(path, limit=_MAX_BYTES, error=CorruptStoreError)[begin:]
            except CorruptStoreError:
                if os.path.lexists(path):
                    raise
                continue  # it was merged into the first
            *lines, rest = content.split(b"\n")
            self._read[path] = begin + len(content) - len(rest)
            for line in lines:
                with suppress(CorruptStoreError):
                    parsed = parse_json(line, of=path, error=CorruptStoreError)
                    found = validated(parsed, _Line, of=path, error=CorruptStoreError)
                    lost = None if found.fidelity is None else Fidelity.from_json(found.fidelity)
                    entries[found.path] = replace(Entry(**found.model_dump()), fidelity=lost)
        return entries

    def of_processes(self) -> list[Path]:
        """Return the ledgers of processes that write the store together, or did."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.name)}.*"))

    def rewrite(self, entries: list[Entry], *, choice: Choice | None) -> None:
        """Replace the content of all ledgers, including a last line that was cut short; ``choice`` comes first."""
        chosen = "" if choice is None else json.dumps({"choice": choice.model_dump(mode="json")}) + "\n"
        lines = chosen + "".join(_line(entry) for entry in entries)
        durable.write_text(self.path, lines, temporary=self.path.with_name(f".{self.path.name}"))
        for path in self.of_processes():
            path.unlink(missing_ok=True)

    def append(self, entries: list[Entry]) -> None:
        """Add entries and flush them to disk."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self._own, flags, 0o644), "w", encoding="utf-8") as stream:
            stream.write("".join(_line(entry) for entry in entries))
            stream.flush()
            os.fsync(stream.fileno())

    def touch(self) -> None:
        """Note, in the time of this process's ledger, that it is at work."""
        with suppress(FileNotFoundError):
            os.utime(self._own, follow_symlinks=False)

    def remove(self) -> None:
        """Delete all ledgers."""
        for path in [self.path, *self.of_processes()]:
            path.unlink(missing_ok=True)


def _line(entry: Entry) -> str:
    described: dict[str, Any] = {"path": entry.path, "size": entry.size, "digest": entry.digest}
    if entry.fidelity is not None:
        described["fidelity"] = entry.fidelity.to_json()
    described |= {key: value for key in ("device", "seconds", "contents") if (value := getattr(entry, key)) is not None}
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
