"""The SFTP protocol, version 3, over the program ``ssh``: draft-ietf-secsh-filexfer-02, and OpenSSH's extensions.

``ssh`` brings the user's keys, agent, host keys and settings; packets are read with limits and timeouts.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from kdpipe.errors import RemoteError, RemoteMissingError
from kdpipe.printable import printable
from kdpipe.sharing.place import PassingError

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _FSTAT, _OPENDIR, _READDIR, _REMOVE, _MKDIR, _STAT, _RENAME = (
    1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 14, 17, 18,
)  # fmt: skip
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = 101, 102, 103, 104, 105, 200
_OK, _EOF, _NO_FILE, _DENIED, _FAILURE = 0, 1, 2, 3, 4
_READING, _WRITING, _CREATE, _EXCLUSIVE = 1, 2, 8, 32
_MOST_PACKET = 512 * 1024
_PIECE = 32 * 1024
"""Bytes of a read or write, which every server takes."""
_OUTSTANDING = 32
"""Reads or writes that are sent before the first is answered."""
MOST_ENTRIES = 1_000_000
"""Entries of a folder that are listed."""
_S_IFMT, _S_IFREG, _S_IFDIR = 0o170000, 0o100000, 0o040000


class NoSuchError(RemoteMissingError):
    """A file or its folder does not exist."""


class RefusedError(RemoteError):
    """The server refused an operation without saying why: often because a file exists already."""


@dataclass(frozen=True)
class Attributes:
    """Attributes of a file."""

    size: int
    mode: int
    modified: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.mode & _S_IFMT == _S_IFREG

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return self.mode & _S_IFMT == _S_IFDIR


class Connection:
    """A connection to a server; after an error of it, it is closed."""

    def __init__(self, command: Sequence[str], *, seconds: float, of: str) -> None:
        """Start ``ssh``, and wait ``seconds`` for each of its answers; ``of`` is the address, for messages.

        Raises:
            RemoteError: ``ssh`` is not installed.
            PassingError: there is no connection.
        """
        self._seconds, self._of = seconds, of
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0
            )
        except OSError as failure:
            self._errors.close()
            raise RemoteError(f"{of} needs the program ssh: {failure.strerror}.") from failure
        self._number = 0
        self.extensions: set[bytes] = set()
        """Names of the server's extensions."""
        self._send(_INIT, struct.pack(">I", 3))
        kind, content = self._packet()
        if kind != _VERSION:
            raise self._broken("the host speaks no SFTP")
        fields = _Fields(content[4:])
        while fields.left:
            self.extensions.add(fields.text())
            fields.text()

    @property
    def is_open(self) -> bool:
        """Whether ``ssh`` is running."""
        return self._process.poll() is None

    def about(self, address: str) -> Connection:
        """Name another address in messages."""
        self._of = address
        return self

    def __del__(self) -> None:
        """End ``ssh``, whose process would outlive this object."""
        if hasattr(self, "_process"):
            self.close()

    def close(self) -> None:
        """End ``ssh``."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def stat(self, path: bytes) -> Attributes | None:
        """Return the attributes of a file; ``None`` where there is none."""
        try:
            return _attributes(self._asked(_STAT, _text(path), _ATTRS))
        except NoSuchError:
            return None

    def read(self, path: bytes, start: int) -> tuple[Attributes, Iterator[bytes]]:
        """Open a file; return its attributes, and its content from the byte ``start`` on."""
        handle = self._asked(_OPEN, _text(path) + struct.pack(">II", _READING, 0), _HANDLE).text()
        found = _attributes(self._asked(_FSTAT, _text(handle), _ATTRS))
        return found, self._content(handle, start, found.size)

    def write(self, path: bytes, blocks: Iterator[bytes]) -> None:
        """Create a file that is not there, write and flush it."""
        flags = _WRITING | _CREATE | _EXCLUSIVE
        handle = self._asked(_OPEN, _text(path) + struct.pack(">II", flags, 0), _HANDLE).text()
        at, waiting = 0, deque[int]()
        try:
            for piece in _pieces(blocks):
                waiting.append(self._request(_WRITE, _text(handle) + struct.pack(">Q", at) + _text(piece)))
                at += len(piece)
                if len(waiting) >= _OUTSTANDING:
                    self._answer(waiting.popleft(), _STATUS)
            while waiting:
                self._answer(waiting.popleft(), _STATUS)
        except PassingError:
            raise
        except RemoteError:
            # The caller removes the file, so the connection must be at the answer to its next request.
            for number in waiting:
                with suppress(RefusedError):
                    self._answer(number, _STATUS)
            self._asked(_CLOSE, _text(handle), _STATUS)
            raise
        if b"fsync@openssh.com" in self.extensions:
            self._asked(_EXTENDED, _text(b"fsync@openssh.com") + _text(handle), _STATUS)
        self._asked(_CLOSE, _text(handle), _STATUS)

    def make_folder(self, path: bytes) -> None:
        """Make a folder."""
        self._asked(_MKDIR, _text(path) + struct.pack(">I", 0), _STATUS)

    def remove(self, path: bytes) -> None:
        """Remove a file."""
        self._asked(_REMOVE, _text(path), _STATUS)

    def rename_new(self, path: bytes, new: bytes) -> None:
        """Rename a file to a name that is free; raise RefusedError where it is not."""
        self._asked(_RENAME, _text(path) + _text(new), _STATUS)

    def rename_over(self, path: bytes, new: bytes) -> None:
        """Rename a file, atomically over what has its name where the server can."""
        if b"posix-rename@openssh.com" in self.extensions:
            self._asked(_EXTENDED, _text(b"posix-rename@openssh.com") + _text(path) + _text(new), _STATUS)
            return
        if self.stat(new) is not None:
            self.remove(new)
        self.rename_new(path, new)

    def link(self, path: bytes, new: bytes) -> bool:
        """Give a file a second name; return whether the server can."""
        if b"hardlink@openssh.com" not in self.extensions:
            return False
        try:
            self._asked(_EXTENDED, _text(b"hardlink@openssh.com") + _text(path) + _text(new), _STATUS)
        except RefusedError:
            return False
        return True

    def listed(self, path: bytes) -> dict[bytes, Attributes]:
        """Return the attributes of the entries of a folder, by name."""
        handle = self._asked(_OPENDIR, _text(path), _HANDLE).text()
        found: dict[bytes, Attributes] = {}
        while True:
            try:
                fields = self._asked(_READDIR, _text(handle), _NAME)
            except _EndError:
                break
            count = fields.number()
            if not count or len(found) + count > MOST_ENTRIES:
                raise self._broken("the host lists a folder without end")
            for _ in range(count):
                name, _long = fields.text(), fields.text()
                found[name] = _attributes(fields)
        self._asked(_CLOSE, _text(handle), _STATUS)
        return found

    def _content(self, handle: bytes, start: int, size: int) -> Iterator[bytes]:
        waiting, asked = deque[tuple[int, int]](), start
        while True:
            while asked < size and len(waiting) < _OUTSTANDING:
                length = min(_PIECE, size - asked)
                packed = struct.pack(">QI", asked, length)
                waiting.append((self._request(_READ, _text(handle) + packed), length))
                asked += length
            if not waiting:
                break
            number, length = waiting.popleft()
            piece = self._answer(number, _DATA).text()
            if len(piece) > length:
                raise self._broken("the server sends more than was asked for")
            yield piece
            if len(piece) < length:
                raise self._broken("the server sends less than was asked for")
        self._asked(_CLOSE, _text(handle), _STATUS)

    def _asked(self, kind: int, content: bytes, expected: int) -> _Fields:
        return self._answer(self._request(kind, content), expected)

    def _request(self, kind: int, content: bytes) -> int:
        self._number = (self._number + 1) % 2**32
        self._send(kind, struct.pack(">I", self._number) + content)
        return self._number

    def _answer(self, number: int, expected: int) -> _Fields:
        kind, content = self._packet()
        fields = _Fields(content)
        if fields.number() != number:
            raise self._broken("the server answers out of order")
        if kind == _STATUS:
            code = fields.number()
            if code == _OK and expected == _STATUS:
                return fields
            raise self._refusal(code)
        if kind != expected:
            raise self._broken("the server gives another answer than was asked for")
        return fields

    def _refusal(self, code: int) -> RemoteError:
        if code == _EOF:
            return _EndError(f"{self._of} ended early.")
        if code == _NO_FILE:
            return NoSuchError(f"{self._of} does not exist.")
        if code == _DENIED:
            return RemoteError(f"{self._of}: the host refuses access. Check the permissions of the folder.")
        return RefusedError(f"{self._of}: the host refuses the operation (status {code}).")

    def _send(self, kind: int, content: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        left = memoryview(struct.pack(">IB", len(content) + 1, kind) + content)
        try:
            while left:
                if not select.select([], [stream], [], self._seconds)[1]:
                    raise self._broken(f"the host has been silent for {self._seconds:g} seconds")
                left = left[os.write(stream.fileno(), left[:4096]) :]
        except (OSError, ValueError):
            raise self._broken("the connection failed") from None

    def _packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", self._received(4))
        if not 1 <= length <= _MOST_PACKET:
            raise self._broken("the host speaks no SFTP")
        content = self._received(length)
        return content[0], content[1:]

    def _received(self, length: int) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        content = bytearray()
        while len(content) < length:
            try:
                if not select.select([stream], [], [], self._seconds)[0]:
                    raise self._broken(f"the host has been silent for {self._seconds:g} seconds")
                block = os.read(stream.fileno(), length - len(content))
            except (OSError, ValueError):
                raise self._broken("the connection failed") from None
            if not block:
                raise self._broken("the connection was closed")
            content += block
        return bytes(content)

    def _broken(self, why: str) -> RemoteError:
        """Close the connection; return the error, with the last line that ``ssh`` wrote."""
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        try:
            self._errors.seek(0)
            lines = self._errors.read(64 * 1024).decode(errors="replace").strip().splitlines()
        except ValueError:
            lines = []
        self.close()
        said = f" (ssh: {printable(lines[-1])[:200]})" if lines else ""
        if code == 255 and any("denied" in line or "verification failed" in line for line in lines):
            return RemoteError(f"{self._of}: no access{said}. Try it with: ssh HOST")
        return PassingError(f"{self._of}: {why}{said}.")


class _EndError(PassingError):
    """The end of a file or of a list."""


class _Fields:
    """Reads the fields of a packet."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def number(self, size: int = 4) -> int:
        return int.from_bytes(self._take(size), "big")

    def text(self) -> bytes:
        return self._take(self.number())

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise PassingError("the host sends a packet of SFTP that is cut short.")
        self._at += size
        return self._content[self._at - size : self._at]


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut blocks into pieces that every server takes."""
    for block in blocks:
        for first in range(0, len(block), _PIECE):
            yield block[first : first + _PIECE]


def _text(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _attributes(fields: _Fields) -> Attributes:
    flags = fields.number()
    size = fields.number(8) if flags & 1 else 0
    if flags & 2:
        fields.number(8)
    mode = fields.number() if flags & 4 else 0
    modified = 0
    if flags & 8:
        fields.number()
        modified = fields.number()
    if flags & 0x80000000:
        for _ in range(min(fields.number(), 1000)):
            fields.text()
            fields.text()
    return Attributes(size, mode, modified)
