"""Files in a folder of this machine, or of a file server that is mounted."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kdpipe import durable
from kdpipe.errors import RemoteChangedError, RemoteError, RemoteExistsError, RemoteMissingError
from kdpipe.printable import printable
from kdpipe.reading import hashed, open_regular, why_unread
from kdpipe.sharing.place import BLOCK, Expected, Stream

_PATIENCE = 30.0
"""Seconds to wait for another process that replaces the same file."""


@dataclass(frozen=True)
class Disk:
    """Files below a folder."""

    root: Path

    def describe(self, name: str = "") -> str:
        """Return the path."""
        return printable(self.root / name)

    def size(self, name: str) -> int | None:
        """Return the bytes of a regular file."""
        try:
            with open_regular(self.root / name) as file:
                return os.fstat(file.fileno()).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as failure:
            raise self._unread(name, failure) from failure

    def open(self, name: str, start: int) -> Stream:
        """Open a regular file."""
        try:
            file = open_regular(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            raise RemoteMissingError(f"{self.describe(name)} does not exist.") from None
        except OSError as failure:
            raise self._unread(name, failure) from failure
        total = os.fstat(file.fileno()).st_size
        return Stream(min(start, total), total, None, self._blocks(name, file, start))

    def put(self, name: str, content: Path | bytes, expected: Expected | None) -> None:
        """Write a temporary file, flush and rename it."""
        path = self.root / name

        def write(temporary: Path) -> None:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)

        if expected is None:
            durable.replace(path, write, temporary=self._temporary(name))
        elif expected.version is None:
            self._create(name, write)
        else:
            with durable.locked(path.with_name(f".{path.name}.lock"), _busy(self.describe(name)), patience=_PATIENCE):
                found = hashed(path).hexdigest(length=16) if path.exists() else None
                if found != expected.version:
                    raise RemoteChangedError(f"{self.describe(name)} was changed by another process meanwhile.")
                durable.replace(path, write, temporary=self._temporary(name))

    def copy(self, name: str, new_name: str) -> bool:
        """Link the file under a new name where the disk can, or else copy it."""
        path, new = self.root / name, self.root / new_name
        if not path.is_file():
            return False
        with durable.writing(new):
            new.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                new.unlink()
            try:
                os.link(path, new, follow_symlinks=False)
                durable.fsync_directory(new.parent)
            except OSError:
                temporary = self._temporary(new_name)
                durable.replace(new, lambda file: shutil.copyfile(path, file), temporary=temporary)
        return True

    def names(self, prefix: str) -> dict[str, int]:
        """List the regular files; links are not followed."""
        found = {}
        for folder, _, files in os.walk(self.root / prefix):
            for file in files:
                path = Path(folder, file)
                if path.is_file() and not path.is_symlink():
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    def _temporary(self, name: str) -> Path:
        """Return a path at which a kill may leave a file: not in a store, which has the files of its manifest alone."""
        return self.root / f".{Path(name).name}.{secrets.token_hex(4)}.tmp"

    def _create(self, name: str, write: Callable[[Path], None]) -> None:
        path = self.root / name
        temporary = self._temporary(name)
        with durable.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(temporary)
                durable.fsync_file(temporary)
                os.link(temporary, path)
                durable.fsync_directory(path.parent)
            except FileExistsError:
                raise RemoteExistsError(f"{self.describe(name)} exists already.") from None
            finally:
                temporary.unlink(missing_ok=True)

    def _blocks(self, name: str, file: BinaryIO, start: int) -> Iterator[bytes]:
        with file:
            try:
                file.seek(start)
                while block := file.read(BLOCK):
                    yield block
            except OSError as failure:
                raise self._unread(name, failure) from failure

    def _unread(self, name: str, failure: OSError) -> RemoteError:
        return RemoteError(f"{self.describe(name)} cannot be read: {why_unread(failure)}.")


def _busy(name: str) -> Callable[[str], RemoteError]:
    return lambda holder: RemoteError(
        f"{name} is being replaced by process {holder}. Wait for it to end, and run this again."
    )
