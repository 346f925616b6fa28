"""The operations on files that each kind of place has: a folder, a web server, a bucket, a host by ssh."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdpipe.errors import ParamsError, RemoteError
from kdpipe.printable import printable

TIMEOUT = "KDPIPE_TIMEOUT"
"""The environment variable with the seconds that a server may keep silent."""
BLOCK = 256 * 1024
"""Bytes that are read and written at once."""
SLOWEST = 1000
"""Bytes per second below which a server is cut off."""

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}(?:/(?!\.)[A-Za-z0-9._-]{1,255}){0,15}")

Version = str
"""Identifies a file's content at a place, such as its etag."""


class PassingError(RemoteError):
    """A failure that may pass: a connection that broke, a timeout, a server that is overloaded."""


@dataclass(frozen=True)
class Stream:
    """The content of a file from some byte on."""

    start: int
    """The first byte; 0 where the server cannot send parts."""
    total: int | None
    """Bytes of the whole file; ``None`` where the server does not tell."""
    version: Version | None
    blocks: Iterator[bytes]


@dataclass(frozen=True)
class Expected:
    """The condition of a write: the version that it may replace, or none."""

    version: Version | None = None
    """The content that is replaced; ``None`` for no file."""


class Place(Protocol):
    """Files below a root. Names are relative, and were checked by ``checked``.

    Raises, in all methods: RemoteError, and PassingError where another attempt may succeed.
    """

    def describe(self, name: str = "") -> str:
        """Return the address of a file, without credentials."""

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, ``None`` where there is no such file."""

    def open(self, name: str, start: int) -> Stream:
        """Open a file for reading from the byte ``start`` on; raise RemoteMissingError where there is none."""

    def put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        """Write a whole file, so that it is there whole or not at all.

        Raises:
            RemoteExistsError: there is a file, and none is expected.
            RemoteChangedError: there is another version than the expected one.
        """

    def copy(self, name: str, new_name: str) -> bool:
        """Copy a file at the place itself, without moving bytes; return whether that was possible."""

    def names(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each file below a folder, by name; raise RemoteError where it cannot be listed."""


def checked(name: str) -> str:
    """Return the name of a file below a root: plain ASCII, no hidden part, and nothing that leaves the root.

    Raises:
        RemoteError: it is something else.
    """
    if not _NAME.fullmatch(name):
        raise RemoteError(f"'{printable(name)[:200]}' is no name of a file in a shared folder.")
    return name


def timeout() -> float:
    """Return the seconds that a server may keep silent.

    Raises:
        ParamsError: the environment variable is no positive number.
    """
    written = os.environ.get(TIMEOUT, "30")
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise ParamsError(f"{TIMEOUT} is '{printable(written)}', expected seconds, such as 30.")
    return seconds
