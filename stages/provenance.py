"""Provenance of a result: its time, versions of the libraries, and the revision of the repository."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata

_LIBRARIES = ("torch", "torchvision", "zarr", "numcodecs", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of kdpipe, Python and the libraries that affect results."""
    import kdpipe

    found = {"kdpipe": kdpipe.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _LIBRARIES}


def now() -> str:
    """Return the present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_revision() -> str | None:
    """Return the commit of the working directory, with ``+changes`` if some are uncommitted; None outside git."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        revision, status = (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+changes" if status else "")
