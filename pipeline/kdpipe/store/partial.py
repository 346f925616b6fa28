"""Stores of which a part is here: the manifest is whole, and ``present.json`` in the store names the planes.

A complete store has no such file. Files that it does not name may be here, too: of a plane that is being fetched.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe import durable
from kdpipe.errors import CorruptStoreError, KdpipeError, StoreError
from kdpipe.printable import printable_json
from kdpipe.reading import read_json
from kdpipe.store.sections import MAX_GROUPS, Digest
from kdpipe.store.tree import PIXELS, PRESENT, SIDE, SPLIT, segment_of

_MAX_BYTES = 16 * 1024**2

Supply = Callable[[Sequence[str]], None]
"""Fetches files of a store, by name; it raises RemoteError where it cannot."""


class Present(BaseModel):
    """The parts of a store that are here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    checksum: Digest
    """Checksum of the manifest."""
    source: Annotated[str, Field(max_length=4096)] | None = None
    """The address that the others can be pulled from, without credentials."""
    planes: Annotated[
        dict[
            Annotated[str, Field(pattern=rf"^{SPLIT}$")],
            Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(max_length=2**21, strict=False)],
        ],
        Field(max_length=MAX_GROUPS),
    ] = {}
    """Views of each group; the ids and labels of a group that is named are here, too."""

    def names(self, file: str) -> bool:
        """Return whether a file of the store has to be here."""
        group, view = place_of(file)
        if group not in self.planes:
            return False
        return view is None or view in self.planes[group]


def read(store: Path, checksum: Digest | None) -> Present | None:
    """Return which parts of a store are here; ``None`` for all of them.

    Raises:
        CorruptStoreError: the list is damaged, or of another manifest than that of the ``checksum``.
    """
    path = store / PRESENT
    if not os.path.lexists(path):
        return None
    found = read_json(path, Present, limit=_MAX_BYTES, error=CorruptStoreError)
    if found.checksum != checksum:
        raise CorruptStoreError(
            f"{path} is of another store. Remove it, and run: kdpipe verify {shlex.quote(str(store))}"
        )
    return found


def write(store: Path, present: Present | None) -> None:
    """Write which parts of a store are here; ``None`` for all of them.

    The temporary file stands beside the store, so that a kill leaves no foreign file in it.
    """
    path = store / PRESENT
    if present is None:
        path.unlink(missing_ok=True)
        durable.fsync_directory(store)
    else:
        content = printable_json(present.model_dump(mode="json", exclude_none=True)) + "\n"
        durable.write_bytes(path, content.encode(), temporary=store.with_name(f".{store.name}.{PRESENT}"))


def place_of(file: str) -> tuple[str, int | None]:
    """Return the group of a file of a store, and its view: ``None`` for those that all views need."""
    group, array, *chunk = [*file.split("/"), ""]
    if array in (*SIDE, PIXELS) or len(chunk) < 3:
        return group, None
    return group, int(chunk[1])


def refuse(store: Path, checksum: Digest | None, *, what: str) -> None:
    """Refuse an operation, ``what``, that needs all of a store, where only a part is here.

    Raises:
        StoreError: planes are absent; the message has the command that pulls them.
    """
    here = read(store, checksum)
    if here is not None:
        raise StoreError(f"{store} is here in part, and {what} needs all of it. Run: {_command(store, here.source)}")


def _command(store: Path, source: str | None) -> str:
    address = "URL/NAME@VERSION" if source is None else shlex.quote(source)
    return f"kdpipe pull {address} --out {shlex.quote(str(store))}"


class Absent:
    """The files of a store that are not here, and how to get them."""

    def __init__(self, store: Path, files: Collection[str], *, source: str | None, supply: Supply | None) -> None:
        """Remember which ``files`` are absent, which ``supply`` fetches, or the user, from ``source``."""
        self._store, self._files = store, set(files)
        self._source, self.supply = source, supply
        self._lock = threading.Lock()

    @property
    def address(self) -> str | None:
        """The address that absent files are fetched from, without credentials; ``None`` if they have to be pulled."""
        return None if self.supply is None else self._source

    def has(self, file: str) -> bool:
        """Return whether a file is absent."""
        return file in self._files

    def require(self, files: Iterable[str]) -> None:
        """Get files that are absent.

        Raises:
            StoreError: they have to be pulled; the message has the command.
            RemoteError: they cannot be fetched.
        """
        asked = self._files.intersection(files)
        if not asked:
            return
        with self._lock:
            wanted = {name for name in asked if not (self._store / name).is_file()}
            if wanted and self.supply is None:
                raise self._refusal(min(wanted, key=_order))
            if wanted and self.supply is not None:
                self.supply(sorted(wanted, key=_order))
            self._files -= asked

    def expect(self, files: Iterable[str]) -> None:
        """Begin to fetch files that will be needed, in another thread; ``require`` reports what goes wrong."""
        coming = self._files.intersection(files)
        if coming and self.supply is not None:
            threading.Thread(target=self._quietly, args=(coming,), daemon=True, name="kdpipe-ahead").start()

    def _quietly(self, files: set[str]) -> None:
        with suppress(KdpipeError):
            self.require(files)

    def _refusal(self, file: str) -> StoreError:
        group, view = place_of(file)
        split, _ = segment_of(group)
        what, more = (f"view {view} of {split}", f" --views {view}") if view else (split, "")
        command = f"{_command(self._store, self._source)} --split {split}{more}"
        return StoreError(f"{self._store}: {what} is not here. Run: {command}")


def _order(file: str) -> tuple[str, int, str]:
    group, view = place_of(file)
    return group, -1 if view is None else view, file
