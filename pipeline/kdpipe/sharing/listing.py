"""The stores at a place as rows: those of its catalog, or of the stores in a local folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdpipe.errors import KdpipeError, RemoteMissingError, StoreError
from kdpipe.sharing import catalog, remembered
from kdpipe.sharing.catalog import Row, newest_first
from kdpipe.sharing.remote import connect, is_url
from kdpipe.store import manifest

_DEPTH = 2
"""Folders below a local folder in which stores are looked for."""
_MOST = 1_000
"""Stores of a local folder that are listed."""


@dataclass(frozen=True)
class Covered:
    """The samples of a dataset that a store has, by split."""

    covered: dict[str, int]
    samples: dict[str, int]

    @property
    def share(self) -> float:
        """The share of all samples."""
        return sum(self.covered.values()) / max(1, sum(self.samples.values()))


@dataclass(frozen=True)
class Listed:
    """A store, how it is called, and how much of a dataset it covers."""

    place: str
    """Address for ``kdpipe pull``, or the path of a local store."""
    store: str
    """Address or path for ``open_store``."""
    name: str
    """Its name in the list: ``NAME@VERSION``, or a path."""
    row: Row
    covered: Covered | None = None
    """``None`` where no dataset is given, or nothing can be told."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        found: dict[str, Any] = {"place": self.place, **self.row.model_dump(mode="json")}
        if self.covered is not None:
            found["covered"] = self.covered.covered
            found["of"] = self.covered.samples
            found["share"] = self.covered.share
        return found


def stores_of(place: str, *, say: Callable[[str], object] = lambda _: None) -> list[Listed]:
    """Return the stores at a URL, or in a folder with or without a catalog: by name, the newest version of each first.

    ``say`` is called with warnings: a catalog that is older than one seen before, stores that cannot be read.

    Raises:
        StoreError: there are none, or the catalog is damaged.
        UntrustedStoreError: a version has another manifest than when it was seen first.
        RemoteError: the place cannot be read.
    """
    folder = connect(place)
    try:
        found = catalog.read(folder)
    except RemoteMissingError:
        if is_url(place):
            raise RemoteMissingError(
                f"{folder.describe()} has no {catalog.INDEX}: nothing was published there with kdpipe publish."
            ) from None
        return _local(Path(place), say=say)
    for line in remembered.notice(remembered.place_of(folder), found):
        say(line)
    return [_published(place.rstrip("/"), row) for row in newest_first(found.versions)]


def _published(place: str, row: Row) -> Listed:
    address = f"{place}/{row.address}"
    return Listed(address, address if is_url(place) else f"{place}/{row.name}/{row.version}", row.address, row)


def _local(folder: Path, *, say: Callable[[str], object]) -> list[Listed]:
    listed = []
    for path in _folders(folder):
        try:
            found = manifest.read(path)
            if found.state != "sealed" or found.is_part:
                say(f"{path} is not sealed, and left out.")
                continue
            created = found.about.get("created")
            row = catalog.row_of(found, name="local", version="v1", created=str(created or "")[:64])
        except KdpipeError as error:
            say(f"warning: {error}")
            continue
        listed.append(Listed(str(path), str(path), path.relative_to(folder).as_posix(), row))
    if not listed:
        raise StoreError(f"{folder} has neither {catalog.INDEX} nor a sealed store NAME.zarr.")
    return listed


def _folders(folder: Path) -> list[Path]:
    """Return the stores below a folder, without following links."""
    found: list[Path] = []
    waiting = [(folder, 0)]
    while waiting and len(found) < _MOST:
        here, depth = waiting.pop()
        try:
            entries = sorted(entry.name for entry in os.scandir(here) if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        found += [here / name for name in entries if name.endswith(".zarr") and not name.startswith(".")]
        if depth < _DEPTH:
            waiting += [
                (here / name, depth + 1) for name in entries if not name.endswith(".zarr") and not name.startswith(".")
            ]
    return sorted(found)[:_MOST]


def by_coverage(listed: Iterable[Listed], covered: Callable[[Listed], Covered | None]) -> list[Listed]:
    """Return stores with the samples that they cover, those that cover most first; unknown ones come last."""
    measured = [replace(each, covered=covered(each)) for each in listed]
    return sorted(measured, key=lambda each: -1.0 if each.covered is None else each.covered.share, reverse=True)
