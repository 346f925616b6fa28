"""Publishing of a version: its files, then its manifest, then the catalog, so that readers see it whole or not at all.

A version never changes. Its publisher first claims it by a file beside its folder, ``NAME/VERSION.claim``, that names
the manifest; whoever publishes the same manifest goes on where a killed process stopped, and anyone else is refused.
Files that the last version has are copied at the place itself, where it can do so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kdpipe.errors import (
    CorruptStoreError,
    KdpipeError,
    ParamsError,
    RemoteChangedError,
    RemoteError,
    RemoteExistsError,
    RemoteMissingError,
    StoreError,
)
from kdpipe.printable import printable_json
from kdpipe.progress import Progress, in_bytes, silent
from kdpipe.reading import MEGABYTE, parse_json, read_bytes, validated
from kdpipe.sharing import catalog, remembered, signature
from kdpipe.sharing.address import Address
from kdpipe.sharing.card import card
from kdpipe.sharing.catalog import INDEX, Catalog, Row
from kdpipe.sharing.croissant import croissant
from kdpipe.sharing.page import page
from kdpipe.sharing.published import several
from kdpipe.sharing.remote import Folder, Report
from kdpipe.sharing.withholding import Derived
from kdpipe.store import manifest
from kdpipe.store.manifest import Manifest
from kdpipe.store.sections import Digest, File

PAGE = "index.html"
_ATTEMPTS = 50
"""Attempts to add a row to a catalog that others change at the same time."""
_COPIED = ("LICENSE", "CITATION", "CITATION.cff")
"""Companions that are published as they lie in the store."""


class Claim(BaseModel):
    """Content of the file that claims a version."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    checksum: Digest


@dataclass(frozen=True)
class Moved:
    """Bytes of a publication, by the way they took."""

    uploaded: int = 0
    copied: int = 0
    """Copied at the place from an earlier version."""
    there: int = 0
    """There already, from a publication that was interrupted."""


def refuse_undescribed(found: Manifest, *, store: Path) -> None:
    """Refuse a store without a license or a contact.

    Raises:
        ParamsError: it lacks one of them.
    """
    said = found.provenance
    lacking = [flag for flag, text in (("--license", said.license), ("--contact", said.contact)) if not text]
    if lacking:
        raise ParamsError(
            f"{store} says nothing of its {' and '.join(flag[2:] for flag in lacking)}, and receivers need both. Pass "
            f"{' and '.join(lacking)}, such as --license CC-BY-4.0 --contact team@example.org."
        )


def listed(folder: Folder) -> Catalog:
    """Return the catalog of a place, empty where there is none yet.

    Raises:
        RemoteError: it cannot be read.
        StoreError: it is damaged.
    """
    try:
        return catalog.read(folder)
    except RemoteMissingError:
        return Catalog()


def publish(
    derived: Derived,
    store: Path,
    address: Address,
    folder: Folder,
    *,
    signed: bytes | None = None,
    say: Callable[[str], object] = lambda _: None,
    progress: Progress = silent,
) -> tuple[Row, Moved]:
    """Publish a sealed store at ``address``; ``folder`` is its place, opened for writing.

    ``signed`` is the signature over the checksum of the store's manifest.

    Raises:
        StoreError: the version is there, with another manifest; or a file of the store is damaged.
        RemoteError: the place cannot be read or written.
    """
    found, version = derived.manifest, address.folder
    assert address.version is not None
    assert found.checksum is not None
    before = listed(folder)
    for line in remembered.notice(remembered.place_of(folder), before):
        say(line)
    signer = None if signed is None else signature.signer_of(found.checksum, signed)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    row = catalog.row_of(found, name=address.name, version=address.version, created=created, signer=signer)
    there = before.find(row.name, row.version)
    before.with_row(row)  # refuses another manifest
    if there is not None and there.signer != signer:
        raise StoreError(
            f"{folder.describe(version)} is published already, {_signed(there.signer)}. Publish another version to "
            f"have it {_signed(signer)}."
        )
    _claim(folder, address, found.checksum)
    moved = _move(derived, folder, version, before.find(address.name, None), progress=progress)
    for name, content in _companions(found, row, store, signed).items():
        folder.replace(f"{version}/{name}", content)
    _seal(folder, f"{version}/zarr.json", manifest.document(found))
    row = enlist(folder, row)
    return row, moved


def _claim(folder: Folder, address: Address, checksum: str) -> None:
    name = f"{address.folder}.claim"
    content = (printable_json(Claim(checksum=checksum).model_dump()) + "\n").encode()
    try:
        folder.create(name, content)
    except RemoteExistsError:
        written = parse_json(folder.read(name, limit=4096), of=Path(name), error=StoreError)
        if validated(written, Claim, of=Path(name), error=StoreError).checksum != checksum:
            raise StoreError(
                f"{folder.describe(address.folder)} was begun with another manifest, by you or by someone else. A "
                f"version never changes: publish another, such as {address.name}@{_next(address.version or 'v1')}."
            ) from None


def _next(version: str) -> str:
    return f"v{int(version[1:]) + 1}" if version[:1] == "v" and version[1:].isdecimal() else f"{version}.1"


def _signed(signer: str | None) -> str:
    return "unsigned" if signer is None else f"signed by {signer}"


def _move(derived: Derived, folder: Folder, version: str, last: Row | None, *, progress: Progress) -> Moved:
    """Bring all files of the store to the place: those that are there stay, those of the last version are copied."""
    files = derived.manifest.files
    there = _present(folder, version)
    known = {} if last is None or f"{last.name}/{last.version}" == version else _known(folder, last)
    ways: list[tuple[str, int]] = []

    def one(name: str, report: Report) -> None:
        file, target = files[name], f"{version}/{name}"
        size = there.get(target) if there is not None else folder.size(target)
        if size == file.size:
            ways.append(("there", file.size))
        elif (file.digest, file.size) in known and folder.copy(known[file.digest, file.size], target):
            ways.append(("copied", file.size))
        else:
            _upload(derived.files[name], file, folder, target)
            ways.append(("uploaded", file.size))
        report(file.size)

    with in_bytes(progress, "publishing", sum(file.size for file in files.values())) as report:
        several(one, sorted(files), report)
    return Moved(**{way: sum(size for each, size in ways if each == way) for way in ("uploaded", "copied", "there")})


def _upload(path: Path, file: File, folder: Folder, target: str) -> None:
    if manifest.digest_file(path) != file.digest:
        raise CorruptStoreError(f"{path} does not match its digest: it was damaged. Run kdpipe verify on its store.")
    folder.upload(path, target)


def _present(folder: Folder, version: str) -> Mapping[str, int] | None:
    """Return the sizes of the files of a version that are there; ``None`` where the place cannot be listed."""
    with suppress(RemoteError):
        return folder.names(version)
    return None


def _known(folder: Folder, last: Row) -> dict[tuple[str, int], str]:
    """Return the files of the last version by digest and size, none where its manifest cannot be used."""
    with suppress(KdpipeError):
        content = folder.read(f"{last.name}/{last.version}/zarr.json", limit=manifest.MAX_MANIFEST_BYTES)
        earlier = manifest.parse(content, root=Path("zarr.json"))
        if earlier.checksum == last.checksum:
            return {
                (file.digest, file.size): f"{last.name}/{last.version}/{name}" for name, file in earlier.files.items()
            }
    return {}


def _companions(found: Manifest, row: Row, store: Path, signed: bytes | None) -> dict[str, bytes]:
    files = {"README.md": card(found, row).encode(), "croissant.json": croissant(found, row).encode()}
    for name in _COPIED:
        if (store / name).is_file():
            files[name] = read_bytes(store / name, limit=MEGABYTE, error=StoreError)
    return files if signed is None else files | {signature.FILE: signed}


def _seal(folder: Folder, name: str, content: bytes) -> None:
    try:
        folder.create(name, content)
    except RemoteExistsError:
        if folder.read(name, limit=manifest.MAX_MANIFEST_BYTES) != content:
            raise StoreError(f"{folder.describe(name)} is there with other content. Publish another version.") from None


def enlist(folder: Folder, row: Row) -> Row:
    """Add a row to the catalog of a place and write its page, while others may do the same; return the row there.

    Raises:
        StoreError: the version is listed with another manifest.
        RemoteError: the catalog cannot be written.
    """
    for attempt in range(_ATTEMPTS):
        current = folder.read_version(INDEX, limit=catalog.MAX_INDEX_BYTES)
        before = Catalog() if current is None else catalog.parse(current[0], place=folder.describe())
        after = before.with_row(row)
        if after == before:  # also where a place without compare-and-swap was asked to write it
            folder.replace(PAGE, page(after).encode())
            if listed(folder) == after:
                remembered.notice(remembered.place_of(folder), after)
                return after.find(row.name, row.version) or row
            continue
        try:
            if current is None:
                folder.create(INDEX, after.to_bytes())
            else:
                folder.replace(INDEX, after.to_bytes(), expected=current[1])
        except (RemoteChangedError, RemoteExistsError):
            time.sleep(min(1.0, 0.02 * (attempt + 1)))
    raise RemoteError(
        f"{folder.describe(INDEX)} is changed by others all the time. Run this again: all files of {row.address} are "
        "there."
    )
