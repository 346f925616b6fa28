"""The files and folders of a store on disk: listed without following a link, and removed only if kdpipe wrote them.

A store may come from someone else. A link in it may lead anywhere, and opening a FIFO waits for its writer, so
nothing but regular files is opened, and nothing that has another name than the files of format 1 is removed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdpipe.errors import CorruptStoreError

SIDE = ("labels", "sample_id", "content_digest", "probe_row", "probe_hash")
"""Side arrays: those known before the teacher runs. The others are written shard by shard."""

PIXELS = "pixel_digest"
"""The array of the digests of decoded images, written with the shards of the plain view."""
CONTENTS = "content_digest"
"""The side array of content digests, which a build may learn with the shards of the plain view."""

SHOWN = 5
"""Faults of one kind that are printed; of the others only the number."""

SPLIT = r"(?:train|test)(?:\.[1-9][0-9]{0,3})?"
"""Pattern of the names of groups: splits, and their further segments."""
_ARRAY = rf"(?:codes|row_max|{PIXELS}|features|(?:features|attention|hidden|heads)-[A-Za-z0-9_-]+|{'|'.join(SIDE)})"
_CHUNK = "c(?:/[0-9]+){1,4}"
FILE = rf"(?:{SPLIT}/)?zarr\.json|{SPLIT}/{_ARRAY}/(?:zarr\.json|{_CHUNK})"
"""Pattern of the names of a store's files, relative to the store."""
_PARTIAL = rf"(?:{SPLIT}/)?(?:{_ARRAY}/)?zarr\.[0-9a-f]+\.partial|{SPLIT}/{_ARRAY}/{_CHUNK}\.[0-9a-f]+\.partial"
"""Files that a kill leaves of a write by Zarr."""
COMPANIONS = ("README.md", "croissant.json", "LICENSE", "CITATION", "CITATION.cff", "manifest.sig")
"""Files that may lie in a store beside its own: for people, catalogs and tools. No digest covers them."""
PRESENT = "present.json"
"""The list of the parts that are here, in a store that lacks others; see ``partial``."""
_COMPANION = "|".join(map(re.escape, (*COMPANIONS, PRESENT)))
_OWN_FILE = re.compile(rf"{FILE}|{_PARTIAL}|{_COMPANION}")
_OWN_FOLDER = re.compile(rf"{SPLIT}(?:/{_ARRAY}(?:/c(?:/[0-9]+){{0,2}})?)?")


def segment_of(group: str) -> tuple[str, int]:
    """Return the split of a group and its number among the split's segments: ``train.2`` is ``("train", 2)``."""
    split, _, number = group.partition(".")
    return split, int(number or 0)


def group_name(split: str, number: int) -> str:
    """Return the group of a split's segment; see ``segment_of``."""
    return f"{split}.{number}" if number else split


_KINDS = {
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
    stat.S_IFDIR: "folder",
}


@dataclass(frozen=True)
class Found:
    """One file, folder or other entry below a store."""

    name: str
    """Relative to the store, with forward slashes."""
    mode: int
    """Its own mode: that of a link, not of the link's target."""
    size: int
    empty: bool = False
    """Whether it is a folder without entries."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def own(self) -> bool:
        """Whether kdpipe writes entries of this name and kind into a store."""
        pattern = _OWN_FILE if self.is_file else _OWN_FOLDER
        return (self.is_file or self.is_folder) and pattern.fullmatch(self.name) is not None

    def __str__(self) -> str:
        """Return the name, with the kind of anything but a file."""
        kind = _KINDS.get(stat.S_IFMT(self.mode))
        return self.name if kind is None else f"{self.name} ({'empty folder' if self.empty else kind})"


def walk(store: Path) -> Iterator[Found]:
    """List everything below a store, following no link; entries that a writer removes meanwhile are left out."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(store / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    is_folder = stat.S_ISDIR(status.st_mode)
                    yield Found(name, status.st_mode, status.st_size, empty=is_folder and _is_empty(store / name))
                    if is_folder:
                        waiting.append(name)


def _is_empty(folder: Path) -> bool:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return next(entries, None) is None
    return True


def strangers(found: Collection[Found], files: Collection[str]) -> list[str]:
    """Return the entries that do not belong to a store of these ``files``, as lines, in order.

    A folder belongs to it if a file of the store is below it, or if it is one of an array without chunks.
    """
    parts = [name.split("/") for name in files]
    known = {"/".join(part[:count]) for part in parts for count in range(1, len(part))}
    return [str(each) for each in sorted(found, key=lambda each: each.name) if not _belongs(each, files, known)]


def _belongs(each: Found, files: Collection[str], folders: Collection[str]) -> bool:
    if not each.is_folder:
        return each.is_file and each.name in files
    if not each.empty or each.name in folders:
        return True
    split, array, *chunks = [*each.name.split("/"), ""]
    return each.own and f"{split}/{array}" in folders and (array in SIDE or chunks == ["c", ""])


def refuse_strangers(store: Path, *, what: str) -> None:
    """Refuse a folder of a store with entries that kdpipe never writes, before ``what`` is done to it.

    Raises:
        CorruptStoreError: there are such entries; all are left alone.
    """
    foreign = sorted(str(each) for each in walk(store) if not each.own)
    if foreign:
        raise CorruptStoreError(
            f"{store} holds {listed(foreign)}, not written by kdpipe: {what} would lose or follow them. "
            "Move them elsewhere, and run this again."
        )


def remove(folder: Path) -> None:
    """Remove a store, or what a kill left of one; of a link the link alone.

    Raises:
        CorruptStoreError: it holds something that kdpipe never writes; nothing is removed.
    """
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode):
        refuse_strangers(folder, what="removing it")
        shutil.rmtree(folder)
    else:
        folder.unlink()


def remove_group(store: Path, group: str) -> None:
    """Remove a group of a store, if it is there.

    Raises:
        CorruptStoreError: it holds something that kdpipe never writes; nothing is removed.
    """
    below = [each for each in walk(store) if each.name.split("/")[0] == group]
    foreign = sorted(str(each) for each in below if not each.own)
    if foreign:
        raise CorruptStoreError(f"{store} holds {listed(foreign)}, not written by kdpipe. Move them elsewhere.")
    if below:
        shutil.rmtree(store / group)


def listed(names: Sequence[str]) -> str:
    """Return a few of the names in one line, with the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def first_few(faults: Sequence[str], *, more: str) -> list[str]:
    """Return a few of the lines, and one with the number of the others, which are ``more``."""
    left = len(faults) - SHOWN
    return [*faults[:SHOWN], *([f"and {left:,} more {more}"] if left > 0 else [])]
