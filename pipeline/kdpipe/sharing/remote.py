"""Plain files at a place: a folder, a web server, a bucket or a host by ssh, read with limits and written atomically.

    folder = connect("https://models.example.org/stores")
    folder.read("index.json", limit=2**20)
    folder.fetch("cifar/v2/train/codes/c/0/0/0", target, size=1234, digest="5f…")

What a server sends is not trusted: sizes are checked before memory is taken, a server that is silent or slow is cut
off, and no redirect leads to another scheme. Addresses in messages have no credentials.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from kdpipe import durable
from kdpipe.errors import ParamsError, RemoteError, RemoteMissingError
from kdpipe.printable import printable
from kdpipe.reading import hashed
from kdpipe.sharing.buckets import Bucket
from kdpipe.sharing.disk import Disk
from kdpipe.sharing.host import Host
from kdpipe.sharing.place import BLOCK, Expected, PassingError, Place, Stream, Version, checked, timeout
from kdpipe.sharing.watching import watched
from kdpipe.sharing.web import Web

Report = Callable[[int], None]
"""Called with the number of bytes that were moved since its last call."""

_SCHEMES: dict[str, Callable[[str], Place]] = {
    "file": lambda url: Disk(Path(unquote(urlsplit(url).path))),
    "http": Web.of,
    "https": Web.of,
    "s3": Bucket.of,
    "gs": Bucket.of,
    "az": Bucket.of,
    "ssh": Host.of,
}
_Result = TypeVar("_Result")

ATTEMPTS = 4
"""Attempts without progress until an operation fails."""


def is_url(text: str) -> bool:
    """Whether ``text`` has a scheme, as opposed to a path of a local file."""
    return "://" in text


def connect(url: str, *, read_only: bool = True) -> Folder:
    """Return the folder at a path or URL (``file``, ``http``, ``https``, ``s3``, ``gs``, ``az``, ``ssh``).

    Raises:
        ParamsError: the URL is malformed, or its scheme is unknown.
        RemoteError: the scheme needs an extra or a program that is not installed.
    """
    if not is_url(url):
        return Folder(Disk(Path(url)), read_only)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ParamsError("the URL is malformed: check its host and port.") from None
    make = _SCHEMES.get(parts.scheme)
    if make is None:
        raise ParamsError(
            f"'{printable(parts.scheme)}://' is no scheme that kdpipe reads, expected one of {', '.join(_SCHEMES)}."
        )
    if parts.scheme != "file" and (not parts.hostname or port == 0):
        raise ParamsError(f"the URL {parts.scheme}://… names no host.")
    return Folder(make(url), read_only)


@dataclass(frozen=True)
class Folder:
    """Files below a root at some place; names are relative, with forward slashes."""

    place: Place
    read_only: bool = True

    def describe(self, name: str = "") -> str:
        """Return the address of the folder, or of a file in it, without credentials."""
        return self.place.describe(name)

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, ``None`` where there is no such file."""
        return _attempted(lambda: self.place.size(checked(name)))

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of a file.

        Raises:
            RemoteMissingError: there is no such file.
            RemoteError: it has more than ``limit`` bytes, or cannot be read.
        """
        return self._read(name, limit)[0]

    def read_version(self, name: str, *, limit: int) -> tuple[bytes, Version] | None:
        """Return the content of a file with its version, for ``replace``; ``None`` where there is no such file."""
        try:
            content, version = self._read(name, limit)
        except RemoteMissingError:
            return None
        return content, version if version is not None else blake3(content).hexdigest(length=16)

    def fetch(
        self,
        name: str,
        target: Path,
        *,
        size: int,
        digest: str,
        part: Path | None = None,
        report: Report = lambda _bytes: None,
    ) -> None:
        """Copy a file of known size and digest to ``target``, which appears whole and checked or not at all.

        The bytes of an earlier attempt are in ``part``, by default ``target`` with the suffix ``.part``, and are not
        fetched again.

        Raises:
            RemoteMissingError: there is no such file.
            RemoteError: it has another size or digest, or cannot be read; ``target`` is as before.
            UnwritableError: the disk is full or fails.
        """
        checked(name)
        part = part or target.with_name(f"{target.name}.part")
        with durable.writing(target, kept="what has arrived is kept"):
            for folder in (target.parent, part.parent):
                folder.mkdir(parents=True, exist_ok=True)
            resumed = self._collect(name, part, size, report)
            found = _digest(part)
            if found != digest and resumed:
                part.unlink()  # of another version, or damaged on this disk
                self._collect(name, part, size, report)
                found = _digest(part)
            if found != digest:
                part.unlink()
                raise self._changed(name, "does not match its digest in the manifest")
            part.replace(target)
            durable.fsync_directory(target.parent)

    def upload(self, path: Path, name: str) -> None:
        """Write a local file to the place, whole or not at all, over what is there."""
        self._put(name, path, None)

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet.

        Raises:
            RemoteExistsError: it is there already.
        """
        self._put(name, content, Expected())

    def replace(self, name: str, content: bytes, *, expected: Version | None = None) -> None:
        """Write a file over what is there; over nothing but the version ``expected``, where it is given.

        Plain web servers do not compare versions: read the file again to see whether one's own content is there.

        Raises:
            RemoteChangedError: there is another version by now.
        """
        self._put(name, content, None if expected is None else Expected(expected))

    def copy(self, name: str, new_name: str) -> bool:
        """Copy a file at the place itself, without moving bytes here; return whether that was possible."""
        self._refuse_read_only()
        return _attempted(lambda: self.place.copy(checked(name), checked(new_name)))

    def names(self, prefix: str = "") -> dict[str, int]:
        """Return the bytes of each file below a folder, by name.

        Raises:
            RemoteError: the place cannot be listed, as plain web servers.
        """
        return _attempted(lambda: self.place.names(checked(prefix) if prefix else ""))

    def _put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        self._refuse_read_only()
        _attempted(lambda: self.place.put(checked(name), content, expected))

    def _refuse_read_only(self) -> None:
        if self.read_only:
            raise RemoteError(f"{self.describe()} was opened for reading only.")

    def _read(self, name: str, limit: int) -> tuple[bytes, Version | None]:
        def whole() -> tuple[bytes, Version | None]:
            content = bytearray()
            with self._opened(name, 0) as stream:
                if stream.total is not None and stream.total > limit:
                    raise self._too_large(name, limit)
                for block in stream.blocks:
                    content += block
                    if len(content) > limit:
                        raise self._too_large(name, limit)
            if stream.total is not None and len(content) < stream.total:
                raise self._broken(name, len(content), stream.total)
            return bytes(content), stream.version

        return _attempted(whole)

    def _collect(self, name: str, part: Path, size: int, report: Report) -> bool:
        """Complete the file ``part``; return whether it held bytes before."""
        at = held = _prepared(part, size)
        report(held)
        failures = 0
        while at < size:
            before = at
            try:
                for end in self._append(name, part, at, size):
                    report(max(0, end - at))
                    at = max(at, end)
                if at < size:
                    raise self._broken(name, at, size)
            except PassingError:
                at = part.stat().st_size
                failures = 0 if at - before >= BLOCK else failures + 1
                if failures >= ATTEMPTS:
                    raise
                time.sleep(_pause(failures))
        durable.fsync_file(part)
        return held > 0

    def _append(self, name: str, part: Path, at: int, size: int) -> Iterator[int]:
        """Write what the server sends from the byte ``at`` on; yield the end of the file after each block."""
        with self._opened(name, at) as stream, part.open("r+b") as file:
            if stream.total is not None and stream.total != size:
                raise self._changed(name, f"has {stream.total:,} bytes, expected {size:,}")
            file.truncate(stream.start)
            file.seek(stream.start)
            end = stream.start
            for block in stream.blocks:
                end += len(block)
                if end > size:
                    file.truncate(0)
                    raise self._changed(name, f"has more than the expected {size:,} bytes")
                file.write(block)
                file.flush()
                yield end

    def _opened(self, name: str, start: int) -> AbstractContextManager[Stream]:
        address = self.describe(checked(name))
        return watched(lambda: self.place.open(name, start), seconds=timeout(), of=address)

    def _too_large(self, name: str, limit: int) -> RemoteError:
        return RemoteError(f"{self.describe(name)} is larger than {limit:,} bytes, which no such file of kdpipe is.")

    def _changed(self, name: str, how: str) -> RemoteError:
        return RemoteError(f"{self.describe(name)} {how}: it was damaged or changed at the server. Tell its publisher.")

    def _broken(self, name: str, at: int, size: int) -> PassingError:
        return PassingError(
            f"{self.describe(name)}: the server closed the connection after {at:,} of {size:,} bytes. "
            "Run this again: what has arrived is kept."
        )


def _attempted(operation: Callable[[], _Result]) -> _Result:
    """Return the result of an operation, attempted again where its failure may pass."""
    for failures in range(1, ATTEMPTS):
        try:
            return operation()
        except PassingError:
            time.sleep(_pause(failures))
    return operation()


def _pause(failures: int) -> float:
    """Return the seconds to wait before another attempt."""
    return min(timeout() / 10, float(2 ** (failures - 1)))


def _prepared(part: Path, size: int) -> int:
    """Create the file of an unfinished download, or return the bytes that it holds already."""
    try:
        status = part.lstat()
    except FileNotFoundError:
        part.touch(exist_ok=False)
        return 0
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > size:
        part.unlink()
        part.touch(exist_ok=False)
        return 0
    return status.st_size


def _digest(part: Path) -> str:
    return hashed(part).hexdigest(length=16)
