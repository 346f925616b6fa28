"""The image files below a folder: links are followed, but into no circle, and only regular files are images."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kdpipe.dataset.decode import image_extensions
from kdpipe.errors import DatasetError

LEFT_BEHIND = frozenset(
    {"@eaDir", "__MACOSX", "#recycle", "#snapshot", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
"""Folders that operating systems and network disks add; they are passed over like hidden ones."""

_THUMBNAILS = frozenset({"thumbs", "thumbnails"})
"""Folders inside a class folder that hold small copies of its images, in lower case."""

_MAX_LINKED_FOLDERS = 10_000
"""Folders of one class that may be reached through links: links to links can multiply without end."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def images(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the path inside ``folder`` and the absolute path of each image below it.

    Raises:
        DatasetError: an image is no regular file, or links lead in a circle; the message names it.
    """
    linked = 0
    pending = [(folder.absolute(), "", frozenset[tuple[int, int]](), False)]
    while pending:
        place, inner, above, by_link = pending.pop()
        info = place.stat()
        here = (info.st_dev, info.st_ino)
        if here in above:
            raise _circle(place)
        linked += by_link
        if linked > _MAX_LINKED_FOLDERS:
            raise DatasetError(
                f"'{folder}' has more than {_MAX_LINKED_FOLDERS:,} folders behind links to folders; remove the links"
            )
        with os.scandir(place) as entries:
            for entry in entries:
                if _left_out(entry.name):
                    continue
                if entry.is_dir():
                    if entry.is_symlink():
                        refuse_upward(Path(entry.path))
                    behind = by_link or entry.is_symlink()
                    pending.append((Path(entry.path), f"{inner}{entry.name}/", above | {here}, behind))
                elif Path(entry.name).suffix.lower() in image_extensions():
                    if not entry.is_file():
                        raise _no_file(entry)
                    yield inner + entry.name, entry.path


def refuse_upward(link: Path) -> None:
    """Refuse a link to a folder that the link itself is in.

    Raises:
        DatasetError: it is one.
    """
    if link.parent.resolve().is_relative_to(link.resolve()):
        raise _circle(link)


def _left_out(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND or name.lower() in _THUMBNAILS


def _circle(link: Path) -> DatasetError:
    return DatasetError(f"'{link}' links to a folder above it, so that its images would repeat; remove the link")


def _no_file(entry: os.DirEntry[str]) -> DatasetError:
    try:
        mode = stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return DatasetError(f"'{entry.path}' is a link to nothing; restore the image that it names, or remove the link")
    link = "a link to " if entry.is_symlink() else ""
    kind = _KINDS.get(mode, "something else")
    return DatasetError(f"'{entry.path}' is {link}{kind}, expected an image file; remove it")
