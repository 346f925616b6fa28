"""Atomic writing of files: write a temporary file beside it, flush it to disk, rename it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
    ``path``, with the process id in its name; ``temporary`` must be on the same file system.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        fsync_file(temporary)
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, temporary: Path | None = None) -> None:
    """Write ``content`` to ``path`` atomically; see ``replace`` for ``temporary``."""
    replace(path, lambda file: file.write_bytes(content), temporary=temporary)


def write_text(path: Path, content: str, *, temporary: Path | None = None) -> None:
    """Write ``content`` to ``path`` as UTF-8, atomically; see ``replace`` for ``temporary``."""
    write_bytes(path, content.encode(), temporary=temporary)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically; NaN and infinity raise ``ValueError``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
