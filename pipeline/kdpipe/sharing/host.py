"""Files on a host that is reached by ``ssh``, through its SFTP server."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from kdpipe.errors import ParamsError, RemoteChangedError, RemoteError, RemoteExistsError
from kdpipe.printable import printable
from kdpipe.sharing.place import BLOCK, Expected, PassingError, Stream, timeout
from kdpipe.sharing.sftp import MOST_ENTRIES, Connection, NoSuchError, RefusedError

SSH = "KDPIPE_SSH"
"""The environment variable with the command that connects: ``ssh`` and its options."""
_OLD_LOCK = 120
"""Seconds after which the lock of a process that ended is taken over."""


@dataclass(frozen=True)
class Host:
    """Files below a folder of a host."""

    address: str
    command: tuple[str, ...]
    root: str
    idle: list[Connection] = field(default_factory=list)
    """Connections that are used again."""

    @classmethod
    def of(cls, url: str) -> Host:
        """Parse ``ssh://USER@HOST:PORT/PATH``; ``/~/PATH`` is below the user's home.

        Raises:
            ParamsError: it holds a password, or a host that is none.
        """
        parts = urlsplit(url)
        host, user = parts.hostname or "", parts.username
        if parts.password is not None or parts.query or parts.fragment:
            raise ParamsError(f"ssh://{printable(host)}: passwords and options belong in ssh's own settings.")
        if any(not re.fullmatch(r"[A-Za-z0-9_:.%][A-Za-z0-9_:.%-]*", part) for part in (host, user or "u")):
            raise ParamsError(f"ssh://{printable(host)[:100]} names no host.")
        path = unquote(parts.path).rstrip("/")
        if "\0" in path:
            raise ParamsError(f"ssh://{printable(host)}: the path is none.")
        root = path.removeprefix("/~/") if path.startswith("/~/") else path
        seconds = max(1, round(timeout()))
        port = ("-p", str(parts.port)) if parts.port is not None else ()
        name = host if user is None else f"{user}@{host}"
        options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={seconds}", "-o", "ServerAliveInterval=15")
        command = (*shlex.split(os.environ.get(SSH, "ssh")), *options, *port, "-s", "--", name, "sftp")
        netloc = parts.netloc
        return cls(printable(f"ssh://{netloc}{path}"), command, root)

    def describe(self, name: str = "") -> str:
        """Return the URL."""
        return f"{self.address}/{name}" if name else self.address

    def size(self, name: str) -> int | None:
        """Return the bytes of a regular file."""
        with self._connected(name) as connection:
            found = connection.stat(self._path(name))
        return found.size if found is not None and found.is_file else None

    def open(self, name: str, start: int) -> Stream:
        """Open a file from any byte on."""
        connection = self._taken(name)
        try:
            found, content = connection.read(self._path(name), start)
        except BaseException:
            connection.close()
            raise
        if not found.is_file:
            connection.close()
            raise RemoteError(f"{self.describe(name)} is no regular file.")
        return Stream(min(start, found.size), found.size, None, self._blocks(connection, content))

    def put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        """Write a temporary file beside it, flush and rename it."""
        path = self._path(name)
        folder, _, last = path.rpartition(b"/")
        temporary = folder + b"/." + last + b"." + secrets.token_hex(4).encode() + b".tmp"
        with self._connected(name) as connection:
            try:
                try:
                    connection.write(temporary, _content(content))
                except NoSuchError:
                    self._make_folders(connection, folder)
                    connection.write(temporary, _content(content))
                if expected is None:
                    connection.rename_over(temporary, path)
                elif expected.version is None:
                    self._rename_new(connection, temporary, name)
                else:
                    with self._alone(connection, name, temporary):
                        if self._version(connection, path) != expected.version:
                            raise RemoteChangedError(f"{self.describe(name)} was changed by another process meanwhile.")
                        connection.rename_over(temporary, path)
            except PassingError:
                raise
            except RemoteError:
                with suppress(RemoteError):
                    connection.remove(temporary)
                raise

    def copy(self, name: str, new_name: str) -> bool:
        """Link the file under a new name where the host can."""
        path, new = self._path(name), self._path(new_name)
        with self._connected(name) as connection:
            if connection.stat(path) is None:
                return False
            if connection.stat(new) is not None:
                connection.remove(new)
            with suppress(NoSuchError):
                return connection.link(path, new)
            self._make_folders(connection, new.rpartition(b"/")[0])
            return connection.link(path, new)

    def names(self, prefix: str) -> dict[str, int]:
        """List the regular files; links are not followed."""
        found: dict[str, int] = {}
        folders = [prefix]
        with self._connected(prefix) as connection:
            while folders:
                folder = folders.pop()
                for raw, each in connection.listed(self._path(folder)).items():
                    if raw in (b".", b"..") or b"/" in raw or not raw.isascii():
                        continue
                    name = f"{folder}/{raw.decode()}".lstrip("/")
                    if each.is_folder:
                        folders.append(name)
                    elif each.is_file:
                        found[name] = each.size
                if len(found) + len(folders) > MOST_ENTRIES:
                    raise RemoteError(f"{self.describe(prefix)} has more than {MOST_ENTRIES:,} files.")
        return found

    def _path(self, name: str) -> bytes:
        return f"{self.root}/{name}".rstrip("/").encode() if self.root else f"./{name}".encode()

    def _taken(self, name: str) -> Connection:
        with suppress(IndexError):  # other threads take connections, too
            while True:
                connection = self.idle.pop()
                if connection.is_open:
                    return connection.about(self.describe(name))
                connection.close()
        return Connection(self.command, seconds=timeout(), of=self.describe(name))

    @contextmanager
    def _connected(self, name: str) -> Iterator[Connection]:
        """Take a connection for one operation; one that failed is not used again."""
        connection = self._taken(name)
        try:
            yield connection
        except PassingError:
            connection.close()
            raise
        except BaseException as failure:
            if isinstance(failure, RemoteError) and connection.is_open:
                self.idle.append(connection)
            else:
                connection.close()
            raise
        self.idle.append(connection)

    def _blocks(self, connection: Connection, content: Iterator[bytes]) -> Iterator[bytes]:
        done = False
        try:
            yield from content
            done = True
        finally:
            if done:
                self.idle.append(connection)
            else:
                connection.close()

    def _make_folders(self, connection: Connection, folder: bytes) -> None:
        parts = folder.split(b"/")
        for depth in range(1, len(parts) + 1):
            with suppress(RefusedError, NoSuchError):
                if part := b"/".join(parts[:depth]):
                    connection.make_folder(part)

    def _rename_new(self, connection: Connection, temporary: bytes, name: str) -> None:
        try:
            connection.rename_new(temporary, self._path(name))
        except RefusedError:
            if connection.stat(self._path(name)) is None:
                raise
            raise RemoteExistsError(f"{self.describe(name)} exists already.") from None

    def _version(self, connection: Connection, path: bytes) -> str | None:
        try:
            _, content = connection.read(path, 0)
        except NoSuchError:
            return None
        hasher = blake3()
        for block in content:
            hasher.update(block)
        return hasher.hexdigest(length=16)

    @contextmanager
    def _alone(self, connection: Connection, name: str, temporary: bytes) -> Iterator[None]:
        """Hold a lock file beside a file; the host's clock tells how old another's is."""
        folder, _, last = self._path(name).rpartition(b"/")
        lock = folder + b"/." + last + b".lock"
        deadline = time.monotonic() + 2 * timeout()
        while True:
            try:
                connection.write(lock, iter(()))
                break
            except RefusedError:
                held, own = connection.stat(lock), connection.stat(temporary)
                if held is not None and own is not None and own.modified - held.modified > _OLD_LOCK:
                    with suppress(NoSuchError):
                        connection.remove(lock)
                if time.monotonic() > deadline:
                    raise RemoteError(f"{self.describe(name)} is being replaced by another process.") from None
                time.sleep(0.2)
        try:
            yield
        finally:
            with suppress(RemoteError):
                connection.remove(lock)


def _content(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
