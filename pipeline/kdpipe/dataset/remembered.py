"""Small tables in the cache of what was found out about image files, each with a digest of its own content."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset.caching import prepare, touch, trusted
from kdpipe.reading import open_regular

_CHECK_BYTES = 32
_LARGEST_TABLE = 4 * 1024**3


def recall(path: Path, *, entry_bytes: int) -> list[bytes]:
    """Return the entries of a table; none where it is missing, damaged, or not trusted."""
    try:
        with open_regular(path) as file:
            if not trusted(file.fileno(), path) or os.fstat(file.fileno()).st_size > _LARGEST_TABLE:
                return []
            touch(file.fileno())
            content = file.read()
    except OSError:
        return []
    check, body = content[:_CHECK_BYTES], content[_CHECK_BYTES:]
    if len(body) % entry_bytes or blake3(body).digest() != check:
        return []
    return [body[i : i + entry_bytes] for i in range(0, len(body), entry_bytes)]


def remember(path: Path, entries: list[bytes]) -> None:
    """Write a table; without a writable cache, the files are read again next time."""
    body = b"".join(entries)

    def write(file: Path) -> None:
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(blake3(body).digest() + body)

    with contextlib.suppress(OSError):
        prepare(path)
        durable.replace(path, write)
