"""Files that are read at offsets, by several threads at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from kdpipe.reading import open_regular


class OffsetFile:
    """A regular file that stays open until the object is deleted."""

    def __init__(self, path: Path) -> None:
        """Open the file, or the one that a link names.

        Raises:
            OSError: as for ``open_regular``.
        """
        with open_regular(path, follow=True) as file:
            self._descriptor = os.dup(file.fileno())

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` on, fewer where the file ends.

        Raises:
            OSError: the file cannot be read.
        """
        content = os.pread(self._descriptor, size, offset)
        while len(content) < size and (more := os.pread(self._descriptor, size - len(content), offset + len(content))):
            content += more
        return content

    def state(self) -> os.stat_result:
        """Return the state of the open file."""
        return os.fstat(self._descriptor)

    def __del__(self) -> None:
        """Close the file."""
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._descriptor)
