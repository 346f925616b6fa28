"""Versions that this user has seen at shared places, with their checksums and signers.

It is kept in the user's configuration folder, one file for each place. A catalog that lacks a version that was there
before is an older one; a version with another manifest, or a store with another signer, is not what it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdpipe import durable
from kdpipe.errors import StoreError, StoreLockedError, UntrustedStoreError
from kdpipe.reading import read_json
from kdpipe.sharing.address import NAME, VERSION
from kdpipe.sharing.catalog import Catalog, Readable
from kdpipe.store import tree
from kdpipe.store.manifest import digest_bytes
from kdpipe.store.sections import Digest

_LIMIT = 64 * 1024**2
_PATIENCE = 30.0
"""Seconds to wait for another process that writes the same file."""


def config_directory() -> Path:
    """Return the user's configuration: ``$KDPIPE_CONFIG``, ``$XDG_CONFIG_HOME/kdpipe`` or ``~/.config/kdpipe``."""
    if own := os.environ.get("KDPIPE_CONFIG"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "kdpipe"


class Remembered(BaseModel):
    """The record of one place."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    place: Annotated[str, Field(max_length=4096)]
    signers: Annotated[
        dict[Annotated[str, Field(pattern=rf"^{NAME}$")], Annotated[str, Field(max_length=256)]],
        Field(max_length=100_000),
    ] = {}
    """Fingerprint of the key that signed a store when it was seen first, by name."""
    versions: Annotated[
        dict[Annotated[str, Field(pattern=rf"^{NAME}@{VERSION}$")], Digest], Field(max_length=1_000_000)
    ] = {}
    """Checksum of each version, by ``NAME@VERSION``."""


def place_of(folder: Readable) -> str:
    """Return the name by which a place is remembered: its URL without credentials, or its absolute path."""
    described = folder.describe()
    return described if "://" in described else str(Path(described).resolve())


def file_of(place: str) -> Path:
    """Return the file of a place; a local one is given by its absolute path."""
    return config_directory() / "places" / f"{digest_bytes(place.encode())}.json"


def remembered(place: str) -> Remembered:
    """Return what was seen at a place.

    Raises:
        StoreError: the file is damaged.
    """
    path = file_of(place)
    if not path.exists():
        return Remembered(place=place[:4096])
    return read_json(path, Remembered, limit=_LIMIT, error=StoreError)


def notice(place: str, found: Catalog) -> list[str]:
    """Compare a catalog with those that were seen before, and remember it; return a warning of what it lacks.

    Raises:
        UntrustedStoreError: a version has another manifest than before.
    """
    rows = {row.address: row.checksum for row in found.versions}
    known = remembered(place).versions
    changed = sorted(each for each, checksum in rows.items() if known.get(each, checksum) != checksum)
    if changed:
        raise UntrustedStoreError(
            f"{place}: {changed[0]} has another manifest than when it was seen first, and versions never change: "
            f"it was replaced. Ask its publisher; if all is well, remove {file_of(place)}."
        )
    if rows.items() - known.items():
        _update(place, lambda before: before.model_copy(update={"versions": rows | before.versions}))
    lacking = sorted(known.keys() - rows.keys())
    if not lacking:
        return []
    return [
        f"warning: the catalog of {place} lacks {tree.listed(lacking)}, seen there before: it is an older one, or "
        f"versions were removed. If that is right, remove {file_of(place)}."
    ]


def pin(place: str, name: str, signer: str) -> None:
    """Remember the signer of a store.

    Raises:
        UntrustedStoreError: it had another signer before.
    """

    def change(before: Remembered) -> Remembered:
        refuse_another_signer(place, name, signer)
        return before.model_copy(update={"signers": before.signers | {name: signer}})

    _update(place, change)


def refuse_another_signer(place: str, name: str, signer: str | None) -> None:
    """Compare the fingerprint of a store's signer, ``None`` for an unsigned store, with the one that was seen first.

    Raises:
        UntrustedStoreError: it is another one.
    """
    known = remembered(place).signers.get(name)
    if known is not None and signer != known:
        found = "is not signed" if signer is None else f"is signed by {signer}"
        raise UntrustedStoreError(
            f"{place}/{name} {found}, and was signed by {known} when it was seen first. Ask its publisher; if the "
            f"key has changed, remove the entry from {file_of(place)}."
        )


def _update(place: str, change: Callable[[Remembered], Remembered]) -> None:
    def refuse(holder: str) -> StoreLockedError:
        return StoreLockedError(f"{path} is being written by process {holder}. Run this again.")

    path = file_of(place)
    with durable.writing(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with durable.locked(path.with_suffix(".lock"), refuse, patience=_PATIENCE):
        before = remembered(place)
        after = change(before)
        if after != before:
            durable.write_json(path, after.model_dump(mode="json"))
