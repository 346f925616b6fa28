"""Image files below a folder.

Links to folders are followed, but into no circle, and only regular files are images.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kdpipe.dataset.decode import image_extensions
from kdpipe.errors import DatasetError

_LEFT_BEHIND = frozenset(
    {"@eaDir", "__MACOSX", "#recycle", "#snapshot", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
"""Folders that operating systems and network disks add; they are passed over like hidden ones."""

_THUMBNAILS = frozenset({"thumbs", "thumbnails"})
"""Folders inside a class folder that hold small copies of its images, in lower case."""

_MAX_LINKED_FOLDERS = 10_000
"""Folders of one class that may be reached through links: links to links can multiply without end."""

_MOST_ENDINGS = 1_000
"""Spellings of endings that are remembered: names without a dot are endings, too."""

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def images(folder: Path) -> list[str]:
    """Return the path inside ``folder`` of each image below it, in no order.

    Raises:
        DatasetError: an image is no regular file, or links lead in a circle; the message names it.
    """
    root, linked, found = str(folder.absolute()), 0, list[str]()
    is_image, add = _IS_IMAGE, found.append
    pending = [("", tuple[str, ...](), False)]
    while pending:
        inner, above, by_link = pending.pop()
        if by_link:
            linked += 1
            if any(Path(root, inner).samefile(Path(root, each)) for each in above):
                raise _circle(Path(f"{root}/{inner}"))
        if linked > _MAX_LINKED_FOLDERS:
            raise DatasetError(
                f"'{folder}' has more than {_MAX_LINKED_FOLDERS:,} folders behind links to folders; remove the links"
            )
        with os.scandir(f"{root}/{inner}") as entries:
            for entry in entries:
                name = entry.name
                if entry.is_file(follow_symlinks=False):
                    if is_image[name[name.rfind(".") :]] and name[0] != ".":
                        add(inner + name)
                elif entry.is_dir():
                    if is_hidden(name) or name.lower() in _THUMBNAILS:
                        continue
                    if entry.is_symlink():
                        refuse_upward(Path(entry.path))
                    pending.append((f"{inner}{name}/", (*above, inner), by_link or entry.is_symlink()))
                elif is_image[name[name.rfind(".") :]] and name[0] != ".":
                    if not entry.is_file():
                        raise _no_file(entry)
                    add(inner + name)
    return found


class _Endings(dict[str, bool]):
    """Whether files with an ending, as it is spelled, are images; a million files have few of them."""

    def __missing__(self, ending: str) -> bool:
        known = ending.lower() in image_extensions()
        if len(self) < _MOST_ENDINGS:
            self[ending] = known
        return known


_IS_IMAGE = _Endings()


def refuse_upward(link: Path) -> None:
    """Refuse a link to a folder that the link itself is in.

    Raises:
        DatasetError: it is one.
    """
    if link.parent.resolve().is_relative_to(link.resolve()):
        raise _circle(link)


def is_hidden(name: str) -> bool:
    """Return whether a folder of this name is hidden, or one that operating systems add."""
    return name.startswith(".") or name in _LEFT_BEHIND


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
