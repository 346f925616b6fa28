"""The catalog of a shared place, ``index.json``: one row for each version of a store that was published there.

A row names the checksum of the version's manifest. Versions are never changed or removed by kdpipe, so that a catalog
that lacks a row that was there before is an older one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from kdpipe.encoding.fidelity import Fidelity
from kdpipe.errors import StoreError
from kdpipe.reading import parse_json, validated
from kdpipe.sharing.address import NAME, VERSION, version_order
from kdpipe.store.manifest import Manifest, digest_json
from kdpipe.store.sections import Digest, Size

INDEX = "index.json"
MAX_INDEX_BYTES = 64 * 1024**2

Text = Annotated[str, Field(max_length=4096)]
_Short = Annotated[str, Field(max_length=1024)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Losses = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")],
        Annotated[float, Field(ge=0, allow_inf_nan=False)],
    ],
    Field(max_length=64),
]


class Readable(Protocol):
    """A place of files; see ``kdpipe.sharing.remote.Folder``."""

    def describe(self) -> str:
        """Return the place for messages, without credentials."""

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of a file of at most ``limit`` bytes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RowTeacher(_Strict):
    """The teacher of a version."""

    name: _Short
    top1: Annotated[float, Field(ge=0, le=1)] | None = None
    """Its test accuracy; ``None`` where it is not known."""


class RowClasses(_Strict):
    """The classes of a version."""

    count: Annotated[int, Field(gt=0, le=2**20)]
    digest: Digest
    """Digest of their names, in the order of the logits."""


class Row(_Strict):
    """One version of a store: what a reader has to know to choose it."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    version: Annotated[str, Field(pattern=rf"^{VERSION}$")]
    checksum: Digest
    """Checksum of the manifest: it covers everything about the version."""
    digest: Digest
    """Digest of the store: equal work, equal digest."""
    size: Size
    """Bytes of all files of the store."""
    files: _Count
    title: Text | None = None
    license: _Short
    contact: _Short | None = None
    teacher: RowTeacher
    classes: RowClasses
    samples: Annotated[dict[_Short, _Count], Field(max_length=16)]
    """Samples by split."""
    views: _Count
    """Augmented views of ``train``."""
    recipe: _Short
    encoding: _Short
    kl: _Losses | None = None
    """Mean KL of the training rows by temperature; ``None`` where it is not known."""
    signer: Annotated[str, Field(max_length=256)] | None = None
    """Fingerprint of the key that signed the manifest; ``None`` for an unsigned version."""
    created: Annotated[str, Field(max_length=64)]
    """Time of the publication, ISO 8601 in UTC."""
    derived_from: Digest | None = None
    """Digest of the store that this one was derived from by withholding a part."""
    withheld: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=16, strict=False)] = ()
    """Parts of that store that were withheld, such as ``labels``."""

    @property
    def address(self) -> str:
        """``NAME@VERSION``."""
        return f"{self.name}@{self.version}"


def _order(row: Row) -> tuple[str, tuple[int, int, str]]:
    return row.name, version_order(row.version)


class Catalog(_Strict):
    """All versions at a place, sorted by name and version."""

    format: Literal[1] = 1
    versions: Annotated[tuple[Row, ...], Field(max_length=100_000, strict=False)] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({row.address for row in self.versions}) < len(self.versions):
            raise ValueError("a version is listed twice")
        return self

    def of(self, name: str) -> tuple[Row, ...]:
        """Return the versions of a store, the oldest first: words by their order, then ``v1``, ``v2`` and so on."""
        return tuple(sorted((row for row in self.versions if row.name == name), key=_order))

    def find(self, name: str, version: str | None) -> Row | None:
        """Return a version, or without ``version`` the newest; ``None`` where there is none."""
        rows = self.of(name)
        if version is None:
            return max(rows, key=lambda row: (row.created, _order(row)), default=None)
        return next((row for row in rows if row.version == version), None)

    def with_row(self, row: Row) -> Catalog:
        """Return the catalog with another row, in its place.

        Raises:
            StoreError: it has that version, with another manifest.
        """
        there = self.find(row.name, row.version)
        if there is not None and there.checksum != row.checksum:
            raise StoreError(
                f"{row.address} is published already, with another manifest. A version never changes: use another."
            )
        rows = (each for each in self.versions if each.address != row.address)
        return Catalog(versions=tuple(sorted((*rows, there or row), key=_order)))

    def to_bytes(self) -> bytes:
        """Return the content of ``index.json``."""
        rows = [_plain(row) for row in self.versions]
        return (json.dumps({"format": self.format, "versions": rows}, indent=1, ensure_ascii=False) + "\n").encode()


def _plain(row: Row) -> dict[str, JsonValue]:
    """Return a row without its empty entries."""
    plain: dict[str, JsonValue] = row.model_dump(mode="json", exclude_none=True)
    return {key: value for key, value in plain.items() if key != "withheld" or value}


def parse(content: bytes, *, place: str) -> Catalog:
    """Return the catalog of the bytes of an ``index.json``; ``place`` is for messages.

    Raises:
        StoreError: it is damaged, or not made by kdpipe.
    """
    where = Path(INDEX)
    try:
        found = validated(parse_json(content, of=where, error=StoreError), Catalog, of=where, error=StoreError)
    except StoreError as error:
        raise StoreError(f"{place}: {error}") from None
    return Catalog(versions=tuple(sorted(found.versions, key=_order)))


def read(folder: Readable) -> Catalog:
    """Return the catalog of a place.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    return parse(folder.read(INDEX, limit=MAX_INDEX_BYTES), place=folder.describe())


def row_of(found: Manifest, *, name: str, version: str, created: str, signer: str | None = None) -> Row:
    """Return the row of a sealed store's manifest."""
    assert found.checksum is not None
    assert found.digest is not None
    top1 = found.about.get("teacher_test_top1")
    known = float(top1) if isinstance(top1, int | float) and 0 <= top1 <= 1 else None
    measured, origin = found.fidelity_of("train" if "train" in found.names else found.names[0]), found.derived_from
    train = found.segments("train")
    return Row(
        name=name,
        version=version,
        checksum=found.checksum,
        digest=found.digest,
        size=sum(file.size for file in found.files.values()),
        files=len(found.files),
        title=_cut(found.provenance.title, 4096),
        license=_cut(found.provenance.license, 1024) or "",
        contact=_cut(found.provenance.contact, 1024),
        teacher=RowTeacher(name=found.fingerprint.teacher.name[:1024], top1=known),
        classes=RowClasses(count=len(found.classes), digest=digest_json(list(found.classes))),
        samples={split: found.samples(split) for split in found.names},
        views=found.splits[train[0]].planes - 1 if train else 0,
        recipe=found.fingerprint.recipe.name,
        encoding=found.fingerprint.encoding,
        kl=None if measured is None else means(measured),
        signer=signer,
        created=created,
        derived_from=None if origin is None else origin.digest,
        withheld=() if origin is None else origin.withheld,
    )


def means(measured: Fidelity) -> dict[str, float]:
    """Return the mean KL of some rows by temperature, as it is written in catalogs and manifests."""
    return {f"{each:g}": measured.mean(each) for each in measured.temperatures}


def _cut(text: str | None, most: int) -> str | None:
    return text if text is None else text[:most]


def newest_first(rows: Iterable[Row]) -> list[Row]:
    """Return rows by name, the newest version of each first."""
    ordered = sorted(rows, key=_order, reverse=True)
    return sorted(ordered, key=lambda row: row.name)
