"""Tar archives of samples in the layout of WebDataset: the index of their members, remembered in the cache.

Members of one sample have the same name up to the first dot: ``0001.jpg`` and ``0001.cls``. Archives are never
unpacked: names are only names, links are refused, and members are read at their offsets.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpipe import durable
from kdpipe.dataset.caching import cache_directory, prepare, touch, trusted
from kdpipe.dataset.decode import image_extensions
from kdpipe.dataset.ids import sample_id
from kdpipe.dataset.labels import SUPPORTED
from kdpipe.dataset.names import nfc
from kdpipe.dataset.offsets import OffsetFile
from kdpipe.dataset.states import settled_before, state_of
from kdpipe.errors import DatasetError
from kdpipe.printable import first_line
from kdpipe.reading import open_regular, parse_json, why_unread

_LARGEST_HEADER = 1024**2
"""Bytes of an archive's extended header, such as a long name, at most."""
_LARGEST_LABEL = 1024**2
_LARGEST_INDEX = 4 * 1024**3
_FIELDS = ("label", "cls")
"""Fields of a ``.json`` member that may hold a label, the preferred one first."""
_ROOT = re.compile(r"^(?:\.{0,2}/)+")
"""Prefixes of a name without meaning: ``/``, ``./`` and ``../``."""
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"\xfd7": "unxz", b"BZ": "bunzip2", b"(\xb5": "unzstd"}
"""First bytes of compressed files, and the program that decompresses them."""


class TarIndex(BaseModel):
    """The samples of an archive: name, label, and place of the image of each."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    state: list[int]
    """Size, times and inode of the archive when it was indexed."""
    names: list[str]
    images: list[str]
    """The name of each image."""
    offsets: list[int]
    sizes: list[int]
    labels: list[int | str | None]


def tar_index(path: Path, *, image: str | None, label: str | None) -> TarIndex:
    """Return the index of an archive, from the cache where it was made before and the archive has not changed.

    ``image`` is the extension of images where samples have several; ``label`` that of labels, or ``json.FIELD``.

    Raises:
        DatasetError: the archive is missing, damaged, or a sample has no image, or several.
    """
    try:
        file = OffsetFile(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {why_unread(error)}") from error
    state = list(state_of(file.state()))
    name = sample_id(f"tar 2 {os.fsencode(path.absolute())!r} {image} {label}").hex()
    remembered = cache_directory() / "indexes" / f"{name}.json"
    found = _recall(remembered)
    if found is not None and found.state == state:
        return found
    with open_regular(path, follow=True) as opened:
        members = _samples(opened, path)
    rows = [_sample(key, parts, file, path, image=image, label=label) for key, parts in members.items()]
    names, images, offsets, sizes, labels = (list(each) for each in zip(*rows, strict=True)) if rows else ([],) * 5
    index = TarIndex(state=state, names=names, images=images, offsets=offsets, sizes=sizes, labels=labels)
    if max(state[1:3]) < settled_before():
        _remember(remembered, index)
    return index


Members = dict[str, tuple[str, int, int]]
"""The name, offset and size of a sample's members by their extension."""


def _samples(opened: BinaryIO, path: Path) -> dict[str, Members]:
    """Return the members of each sample, in the order of the archive."""
    found: dict[str, Members] = {}
    head = opened.read(2)
    opened.seek(0)
    if head in _COMPRESSED:
        raise DatasetError(
            f"{path} is compressed, so that its images cannot be read at random; run: {_COMPRESSED[head]} {path}"
        )
    for member in _members(opened, path):
        name = nfc(_ROOT.sub("", member.name))
        folder, _, base = name.rpartition("/")
        if member.isdir() or base.startswith(".") or "__MACOSX" in folder:
            continue
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise DatasetError(f"the name of the member {name!r} of {path} is not valid UTF-8; rename it")
        if not member.isreg() or member.issparse():
            raise DatasetError(f"'{name}' of {path} is a link or a special file, expected plain members; remove it")
        stem, _, ending = base.partition(".")
        sample = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if ending.lower() in sample:
            raise DatasetError(f"{path} has two members '{name}'; remove one")
        sample[ending.lower()] = name, member.offset_data, member.size
    return found


def _members(opened: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    end = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    try:
        # Only headers are read through ``_Headers``; "r:" takes no compressed archive.
        with tarfile.open(fileobj=_Headers(opened), mode="r:", tarinfo=tarfile.TarInfo) as archive:  # type: ignore[call-overload]
            before = -1
            while (member := archive.next()) is not None:
                if member.size < 0 or member.offset <= before or member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"its member '{member.name}' ends behind it")
                before = member.offset
                archive.members.clear()  # they would all be kept
                yield member
            opened.seek(archive.offset)
            if opened.read(512) != bytes(512):
                raise tarfile.ReadError("it ends early")
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{path} is damaged, or no tar archive: {first_line(error)}; make it or download it again"
        ) from error


class _Headers:
    """A file of which only headers may be read, which are small."""

    def __init__(self, opened: BinaryIO) -> None:
        self._opened = opened
        self.seek, self.tell = opened.seek, opened.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"it has a header of {size:,} bytes, expected at most {_LARGEST_HEADER:,}")
        return self._opened.read(size)


def _sample(
    key: str, members: Members, file: OffsetFile, path: Path, *, image: str | None, label: str | None
) -> tuple[str, str, int, int, int | str | None]:
    """Return name, image's name, offset and size, and label of a sample."""
    endings = [ending for ending in members if f".{ending.rpartition('.')[2]}" in image_extensions()]
    chosen = endings if image is None else [ending for ending in members if ending == image.lower()]
    if len(chosen) != 1:
        found = ", ".join(f".{ending}" for ending in members)
        advice = "choose one with ,image=EXTENSION" if len(chosen) > 1 else "expected one image"
        raise DatasetError(f"the sample '{key}' of {path} has the members {found}; {advice}")
    name, offset, size = members[chosen[0]]
    return key, name, offset, size, _label(key, members, file, path, label)


def _label(key: str, members: Members, file: OffsetFile, path: Path, asked: str | None) -> int | str | None:
    ending, field = asked or "", ""
    if ending.startswith("json."):
        ending, field = "json", ending.removeprefix("json.")
    if not asked:
        ending = next((ending for ending in ("cls", "json") if ending in members), "")
    if ending not in members:
        if asked:
            raise DatasetError(f"the sample '{key}' of {path} has no label: no member .{ending}")
        return None
    name, offset, size = members[ending]
    if size > _LARGEST_LABEL:
        raise DatasetError(f"'{name}' of {path} has {size:,} bytes, expected at most {_LARGEST_LABEL:,} for a label")
    content = file.read(offset, size)
    if ending != "json":
        try:
            text = nfc(content.decode().strip())
        except UnicodeDecodeError:
            raise DatasetError(f"'{name}' of {path} is not text in UTF-8; {SUPPORTED}") from None
        return text or None
    values = parse_json(content, of=Path(f"{path}/{name}"), error=DatasetError)
    fields = [field] if field else [each for each in _FIELDS if isinstance(values, dict) and each in values]
    if not isinstance(values, dict) or not fields or fields[0] not in values:
        if field:
            raise DatasetError(f"'{name}' of {path} has no field '{field}' for the label")
        return None
    return _plain(values[fields[0]], where=f"the field '{fields[0]}' of '{name}' of {path}")


def _plain(value: Any, *, where: str) -> int | str | None:
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise DatasetError(f"{where} is {value!r:.60}; {SUPPORTED}")


def _recall(path: Path) -> TarIndex | None:
    try:
        with open_regular(path) as file:
            if not trusted(file.fileno(), path) or os.fstat(file.fileno()).st_size > _LARGEST_INDEX:
                return None
            touch(file.fileno())
            digest, body = file.read(32), file.read()
    except OSError:
        return None
    if blake3(body).digest() != digest:
        return None
    try:
        return TarIndex.model_validate_json(body)
    except ValidationError:
        return None


def _remember(path: Path, index: TarIndex) -> None:
    body = index.model_dump_json().encode()
    with contextlib.suppress(OSError):
        prepare(path)
        durable.write_bytes(path, blake3(body).digest() + body)
