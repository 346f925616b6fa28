"""The check that a run directory is still the one in which the run began."""

from __future__ import annotations

from pathlib import Path

from kdpipe import durable
from kdpipe.errors import RunError


class Place:
    """The directory at a path, recognized by its inode."""

    def __init__(self) -> None:
        """Recognize nothing before ``settle``."""
        self._identity: tuple[int, int] | None = None

    def settle(self, path: Path) -> None:
        """Make the directory at ``path`` where there is none, and remember which one it is.

        Raises:
            UnwritableError: it cannot be made.
        """
        with durable.writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._identity = _identity(path)

    def kept(self, path: Path) -> bool:
        """Whether the directory at ``path`` is the remembered one; true where none is remembered."""
        return self._identity is None or _identity(path) == self._identity

    def check(self, path: Path) -> None:
        """Refuse to go on where the directory was deleted or moved away.

        Raises:
            RunError: ``path`` is missing, or another directory.
        """
        if not self.kept(path):
            raise RunError(
                f"{path} was deleted, moved or replaced while it was being written. Move it back and run the same "
                "command with --resume, or start the run again."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
