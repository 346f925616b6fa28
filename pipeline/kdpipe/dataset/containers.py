"""Encoded images inside of files that hold many: tar archives, and tables of Arrow and Parquet.

They are read in place, by offset or row; nothing is unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.names import Names
from kdpipe.dataset.offsets import OffsetFile
from kdpipe.dataset.registry import Indices, Records
from kdpipe.dataset.sources import LARGEST_FILE
from kdpipe.dataset.states import STATE, State, state_of
from kdpipe.errors import DatasetError
from kdpipe.reading import why_unread

_OPEN = 64
"""Files that a process keeps open at most."""


class Container(Protocol):
    """An open file that holds encoded images."""

    def content(self, place: int, size: int) -> bytes:
        """Return an encoded image; may be called from several threads.

        Raises:
            DatasetError: it cannot be read; the message lacks where.
        """
        ...


Open = Callable[[Path], Container]
"""Opens a file; a function of a module, or a part of one, so that it can be pickled."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Encoded images in files that hold many; see ``Blobs``."""

    paths: tuple[str, ...]
    """Absolute paths of the files."""
    open: Open
    files: npt.NDArray[np.int32]
    """Index in ``paths`` of each image, ``(n,)``."""
    places: npt.NDArray[np.int64]
    """Offset or row of each image in its file, ``(n,)``."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each image, ``(n,)``; zeros where the file knows them."""
    named: Names
    """The path of each image's file, and its name in it."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def take(self, indices: Indices) -> Parts:
        """Return the images at ``indices``, ``(k,)``."""
        chosen = self.files[indices], self.places[indices], self.sizes[indices], self.named.take(indices)
        return Parts(self.paths, self.open, *chosen)

    def names(self) -> Names:
        """Return the place of each image."""
        return self.named

    def states(self) -> tuple[Records, dict[int, str]]:
        """Return the state of each image's file, ``STATE`` ``(n,)``, and why some cannot be read."""
        states, lost = np.zeros(len(self.paths), dtype=STATE), {}
        for index in np.unique(self.files).tolist():
            try:
                states[index] = _state(self.paths[index])
            except DatasetError as error:
                lost[index] = str(error)
        broken = {int(at): lost[int(self.files[at])] for at in np.flatnonzero(np.isin(self.files, list(lost)))}
        return states[self.files], broken

    def content(self, index: int) -> bytes:
        """Return the bytes of an encoded image.

        Raises:
            DatasetError: it cannot be read.
        """
        return self.content_and_state(index)[0]

    def content_and_state(self, index: int) -> tuple[bytes, State]:
        """Return the bytes of an encoded image, and the state of its file."""
        path, size = self.paths[self.files[index]], int(self.sizes[index])
        state = _state(path)
        if size > LARGEST_FILE:
            raise DatasetError(
                f"{self.named[index]} cannot be read: it has {size:,} bytes, expected at most {LARGEST_FILE:,}"
            )
        try:
            return _opened(self.open, path, state).content(int(self.places[index]), size), state
        except DatasetError as error:
            raise DatasetError(f"{self.named[index]} {error}") from error


def parts(
    paths: Sequence[Path],
    open: Open,  # noqa: A002
    *,
    names: Sequence[Sequence[str]],
    places: Sequence[npt.ArrayLike],
    sizes: Sequence[npt.ArrayLike] | None = None,
) -> Parts:
    """Return images at some places of files, with their names in these; without ``sizes``, the files know them."""
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (Path.resolve would follow links)
    files = np.repeat(np.arange(len(paths), dtype=np.int32), list(map(len, names)))
    named = Names.below(list(zip(absolute, names, strict=True)))
    of_each = np.zeros(len(files), dtype=np.int64) if sizes is None else _joined(sizes)
    return Parts(tuple(absolute), open, files, _joined(places), of_each, named)


def _joined(values: Sequence[npt.ArrayLike]) -> Indices:
    return np.concatenate([np.asarray(each, dtype=np.int64) for each in values])


def _state(path: str) -> State:
    try:
        return state_of(os.stat(path))  # noqa: PTH116 (once for each image)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}; restore the file") from error


@lru_cache(maxsize=_OPEN)
def _opened(open: Open, path: str, state: State) -> Container:  # noqa: A002, ARG001 (a changed file is opened anew)
    return open(Path(path))


class RangeFile:
    """A file whose images are byte ranges; see ``Container``."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            DatasetError: it cannot be read.
        """
        try:
            self._file = OffsetFile(path)
        except OSError as error:
            raise DatasetError(f"cannot be read: {why_unread(error)}; restore the file") from error

    def content(self, place: int, size: int) -> bytes:
        """Return ``size`` bytes from the offset ``place`` on."""
        try:
            content = self._file.read(place, size)
        except OSError as error:
            raise DatasetError(f"cannot be read: {why_unread(error)}; restore the file") from error
        if len(content) != size:
            raise DatasetError("cannot be read: its file ends early; make it or download it again")
        return content
