"""Tables in the cache of what was found out about samples, saved while it is found out.

A table grows by blocks, each with its digest, so that a kill loses the last second at most, and
several processes can add to one table. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset.caching import prepare, touch, trusted
from kdpipe.reading import open_regular

Entries = npt.NDArray[Any]
"""A structured array; its field ``name`` has 16 bytes."""

_LARGEST = 4 * 1024**3
_COUNT_BYTES = 8
_DIGEST_BYTES = 32
_SAVED_EVERY = 1.0
"""Seconds of work that a kill may lose."""
_MANY_BLOCKS = 256
"""Blocks from which a table is written anew as one."""


@dataclass(frozen=True)
class Table:
    """A table of entries by name, in a file of the cache."""

    path: Path
    kind: np.dtype[Any]

    def read(self) -> Entries:
        """Return the newest entry of each name; none where the file is missing, damaged or not trusted."""
        blocks = self._blocks()
        if not blocks:
            return np.empty(0, dtype=self.kind)
        entries = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        newest = _newest(entries)
        if len(entries) > 2 * len(newest) or len(blocks) > _MANY_BLOCKS:
            self._rewrite(newest)
        return newest

    @contextlib.contextmanager
    def saving(self) -> Iterator[Callable[[Entries], None]]:
        """Yield a function that adds entries; they are in the file a second later, and at the end of the block."""
        waiting: list[Entries] = []
        place = (0, 0)
        saved = time.monotonic()

        def add(entries: Entries) -> None:
            nonlocal saved
            waiting.append(entries)
            if time.monotonic() - saved >= _SAVED_EVERY:
                flush()
                saved = time.monotonic()

        def flush() -> None:
            nonlocal place
            entries = np.concatenate(waiting) if waiting else np.empty(0, dtype=self.kind)
            waiting.clear()
            if len(entries):
                with contextlib.suppress(OSError):
                    place = self._append(entries, place)

        try:
            yield add
        finally:
            flush()

    def _append(self, entries: Entries, place: tuple[int, int]) -> tuple[int, int]:
        """Add a block after the last that is whole; return the file's number and length.

        A file that has the number and length ``place`` is as this process left it.

        Raises:
            OSError: the cache cannot be written: nothing is remembered.
        """
        prepare(self.path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(self.path, flags, 0o600), "r+b") as file:
            with contextlib.suppress(OSError):  # on some network disks; two writers may then lose entries
                fcntl.flock(file, fcntl.LOCK_EX)
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode) or not trusted(file.fileno(), self.path):
                self._rewrite(entries)
                return 0, 0
            end = info.st_size
            if (info.st_ino, end) != place:
                end = max((stop for _, stop in self._whole(memoryview(file.read(min(end, _LARGEST))))), default=0)
                file.truncate(end)
            file.seek(end)
            file.write(_block(entries))
            return info.st_ino, file.tell()

    def _rewrite(self, entries: Entries) -> None:
        def write(file: Path) -> None:
            file.touch(mode=0o600, exist_ok=False)
            file.write_bytes(_block(entries))

        with contextlib.suppress(OSError):
            prepare(self.path)
            durable.replace(self.path, write)

    def _blocks(self) -> list[Entries]:
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                if not trusted(file.fileno(), self.path) or size > _LARGEST:
                    return []
                touch(file.fileno())
                content = memoryview(file.read(size))
        except OSError:
            return []
        return [block for block, _ in self._whole(content)]

    def _whole(self, content: memoryview) -> Iterator[tuple[Entries, int]]:
        """Yield the blocks up to the first that is cut off or damaged, and where each ends."""
        start = 0
        while start + _COUNT_BYTES + _DIGEST_BYTES <= len(content):
            head = content[start : start + _COUNT_BYTES]
            begin = start + _COUNT_BYTES + _DIGEST_BYTES
            stop = begin + int.from_bytes(head, "little") * self.kind.itemsize
            body = content[begin:stop]
            if stop > len(content) or _digest(head, body) != content[start + _COUNT_BYTES : begin]:
                return
            yield np.frombuffer(body, dtype=self.kind), stop
            start = stop


def _block(entries: Entries) -> bytes:
    head, body = len(entries).to_bytes(_COUNT_BYTES, "little"), entries.tobytes()
    return head + _digest(head, body) + body


def _digest(head: bytes | memoryview, body: bytes | memoryview) -> bytes:
    return blake3(bytes(head)).update(body).digest()


def _newest(entries: Entries) -> Entries:
    """Return the last entry of each name."""
    heads = np.ascontiguousarray(entries["name"]).view("<u8").reshape(-1, 2)
    ordered = np.sort(heads[:, 0])
    if not (ordered[1:] == ordered[:-1]).any():
        return entries
    order = np.lexsort((np.arange(len(entries)), heads[:, 1], heads[:, 0]))
    last = np.append((heads[order[1:]] != heads[order[:-1]]).any(axis=1), True)
    newest: Entries = entries[np.sort(order[last])]
    return newest
