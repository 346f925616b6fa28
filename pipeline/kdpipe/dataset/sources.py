"""Image files, and their content."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.dataset import decode
from kdpipe.dataset.ids import array_digest, bytes_digest
from kdpipe.dataset.names import Names
from kdpipe.dataset.registry import Indices, Records
from kdpipe.dataset.states import PACKED, STATE, State, state_of
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.reading import open_regular

LARGEST_FILE = 1024**3
"""Bytes of the largest encoded image that is read."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files, one for each sample; see ``Blobs``."""

    paths: Names
    """Absolute path of each."""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def take(self, indices: Indices) -> Files:
        """Return the files at ``indices``, ``(k,)``."""
        return Files(self.paths.take(indices))

    def names(self) -> Names:
        """Return their paths."""
        return self.paths

    def states(self) -> tuple[Records, dict[int, str]]:
        """Return the state of each file, ``STATE`` ``(n,)``, and why some cannot be read."""
        states, broken = bytearray(len(self.paths) * PACKED.size), {}
        for place, path in enumerate(self.paths):
            try:
                info = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes longer than the call)
            except OSError as error:
                broken[place] = str(_lost(path, error))
                continue
            PACKED.pack_into(states, place * PACKED.size, *state_of(info))
        return np.frombuffer(states, dtype=STATE), broken

    def content(self, index: int) -> bytes:
        """Return the bytes of a file.

        Raises:
            DatasetError: as for ``content_of``.
        """
        return content_of(self.paths[index])

    def content_and_state(self, index: int) -> tuple[bytes, State]:
        """Return the bytes of a file, and its state before it was read."""
        content, info = _read(self.paths[index])
        return content, state_of(info)


def content_digest_of(path: Path) -> bytes:
    """Return the digest of an image file's bytes.

    Raises:
        DatasetError: it cannot be read.
    """
    return bytes_digest(content_of(str(path)))


def pixel_digest_of(path: Path) -> bytes:
    """Return the digest of shape and pixels of an image file.

    Raises:
        DatasetError: it cannot be read or decoded.
    """
    return array_digest(decode.decode(content_of(str(path)), str(path)))


def content_of(path: str) -> bytes:
    """Read an image file, or the file that a link names.

    Raises:
        DatasetError: it cannot be read, is no regular file, or is larger than any image.
    """
    return _read(path)[0]


def _read(path: str) -> tuple[bytes, os.stat_result]:
    """Read a file; return its content, and its state before."""
    try:
        with open_regular(Path(path), follow=True) as file:
            info = os.fstat(file.fileno())
            size = info.st_size
            if size <= LARGEST_FILE:
                content = file.read(size + 1)
                return content if len(content) <= size else content + file.read(LARGEST_FILE), info
    except OSError as error:
        raise _lost(path, error) from error
    raise DatasetError(f"{path} cannot be read: it has {size:,} bytes, expected at most {LARGEST_FILE:,}; remove it")


def _lost(path: str, error: OSError) -> DatasetError:
    return DatasetError(f"{path} cannot be read: {error.strerror or error}; restore the file or its permissions")


def suggest_path(path: Path) -> str:
    """Return ``"; did you mean 'x'?"`` for the existing path nearest to a missing one, or an empty string."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        siblings = [child.name for child in missing.parent.iterdir()]
    except OSError:
        return ""
    near = did_you_mean(missing.name, siblings)
    return near.replace("'", f"'{missing.parent}/", 1) if near and str(missing.parent) != "." else near
