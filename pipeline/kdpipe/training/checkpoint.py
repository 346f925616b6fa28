"""Checkpoints on disk: the newest and the one before it, each complete or absent."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kdpipe import durable
from kdpipe.errors import RunError
from kdpipe.reading import open_regular

State = dict[str, Any]
"""Tensors, numbers, strings, and dictionaries and lists of them."""


def before(path: Path) -> Path:
    """Return the path of the checkpoint before the newest, which is at ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether there is something to resume from."""
    return os.path.lexists(path) or os.path.lexists(before(path))


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
            f"no checkpoint can be read: {path} {fault}, {older} {fault_before}. Start the run without --resume "
            "and with --overwrite."
        )
    say(f"{path} {fault}; going on from {older}, the checkpoint before it.")
    path.unlink(missing_ok=True)
    return state


def peek(path: Path) -> State | None:
    """Read the newest checkpoint; ``None`` where it is missing or damaged."""
    return _load(path)[0]


def read_earlier(path: Path) -> State | None:
    """Read the checkpoint before the newest; ``None`` where it is missing or damaged."""
    return _load(before(path))[0]


def refuse_odd(state: State, *, version: int) -> None:
    """Refuse a state whose position cannot be one of a training.

    Raises:
        RunError: another version of kdpipe wrote it, or none did.
    """
    if not isinstance(state, dict) or state.get("format") != version:
        raise RunError(
            "the checkpoint was written by another version of kdpipe. Start the run without --resume and with "
            "--overwrite."
        )
    history, step, sums = (state.get(name) for name in ("history", "step", "sums"))
    fits = (
        isinstance(history, list)
        and all(_is_row(row, epoch=number) for number, row in enumerate(history, start=1))
        and type(step) is int
        and step >= 0
        and isinstance(sums, dict)
        and all(isinstance(each, torch.Tensor) and each.numel() == 1 for each in sums.values())
        and _is_finite(state.get("seconds"))
    )
    if not fits:
        raise unfit("its history, step or sums are not those of a training")


def unfit(reason: str) -> RunError:
    """Return the error of a checkpoint whose content does not fit the run."""
    return RunError(
        f"the checkpoint is damaged or not made by this run: {reason}. Start the run without --resume and with "
        "--overwrite."
    )


def _is_row(row: object, *, epoch: int) -> bool:
    if not isinstance(row, dict) or row.get("epoch") != epoch:
        return False
    figures = all(isinstance(name, str) and _is_finite(value) for name, value in row.items())
    return figures and all(row.get(name, 0) > 0 for name in ("seconds", "images_per_second"))


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _load(path: Path) -> tuple[State | None, str]:
    """Return a checkpoint, or ``None`` and its fault; each entry's CRC-32 is compared."""
    try:
        with open_regular(path) as file:
            with zipfile.ZipFile(file) as archive:
                # torch compresses nothing; a compressed entry could fill the memory.
                stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
                whole = stored and archive.testzip() is None
            file.seek(0)
            state: Any = torch.load(file, map_location="cpu", weights_only=True) if whole else None
    except FileNotFoundError:
        return None, "is missing"
    except Exception:  # a damaged archive or pickle can raise anything
        state = None
    return (state, "") if isinstance(state, dict) else (None, "is damaged")
