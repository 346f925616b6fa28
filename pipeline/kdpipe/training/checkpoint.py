"""Checkpoints on disk: the newest and the one before it, each complete or absent."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kdpipe import durable
from kdpipe.errors import RunError

State = dict[str, Any]
"""Tensors, numbers, strings, and dictionaries and lists of them."""


def before(path: Path) -> Path:
    """Return the path of the checkpoint before the newest, which is at ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether there is something to resume from."""
    return path.is_file() or before(path).is_file()


def remove(path: Path) -> None:
    """Remove both checkpoints, and an unfinished one."""
    for file in (path, before(path), *path.parent.glob(f".{path.name}.*tmp"), path.with_name(f".{path.name}.tmp")):
        file.unlink(missing_ok=True)


def write(path: Path, state: State) -> None:
    """Write ``state`` to ``path`` and keep the checkpoint before it; a kill at any time leaves at least one."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            _serialize(state, file)
        durable.fsync_file(temporary)
        if path.is_file():
            path.replace(before(path))

    durable.replace(path, fill)


class _Stream:
    """A file to write to that keeps the error of the disk, which torch reports as one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as failure:
            self.failure = failure
            raise

    def flush(self) -> None:
        self._file.flush()


def _serialize(state: State, file: BinaryIO) -> None:
    """Write a state; raises ``OSError`` where the disk is full or fails."""
    stream = _Stream(file)
    try:
        torch.save(state, stream)  # type: ignore[arg-type]
    except RuntimeError:
        if stream.failure is None:
            raise
        raise stream.failure from None


def read(path: Path, *, say: Callable[[str], None]) -> State:
    """Read the newest undamaged checkpoint onto the CPU, running none of its code.

    A damaged newest one is removed and ``say`` is told.

    Raises:
        RunError: neither can be read.
    """
    state, fault = _load(path)
    if state is not None:
        return state
    older = before(path)
    state, fault_before = _load(older)
    if state is None:
        raise RunError(
            f"no checkpoint can be read: {path} {fault}, {older} {fault_before}. Start the run without --resume."
        )
    say(f"{path} {fault}; going on from {older}, the checkpoint before it.")
    path.unlink(missing_ok=True)
    return state


def read_earlier(path: Path) -> State | None:
    """Read the checkpoint before the newest; ``None`` where it is missing or damaged."""
    return _load(before(path))[0]


def _load(path: Path) -> tuple[State | None, str]:
    """Return a checkpoint, or ``None`` and its fault; each entry's CRC-32 is compared."""
    if not path.is_file():
        return None, "is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        state: State | None = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError):
        state = None
    return state, "is damaged"
