"""Planes that the ranks of one machine share: one copy in memory, decoded by whichever rank needs it first.

A plane lies in a file without a name (``memfd_create``), which other ranks find among the open files of its holders and
map. Its memory is free once the last of them has left it, however they end. A socket's abstract name, which is free
again when its process ends, stands for the right to decode. Without such files and names, each rank has its own copy.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe.errors import StoreError

Arrays = list[npt.NDArray[Any]]
Layout = Sequence[tuple[tuple[int, ...], str]]
"""Shape and dtype of each array."""

PATIENCE = 900.0
"""Seconds that a rank waits for another to decode a plane."""
_POLL = 0.02
_ALIGNED = 64
_PROCESSES = Path("/proc")


def shares() -> bool:
    """Return whether a launcher such as torchrun has started several ranks on this machine, which can share planes."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return ranks.isdecimal() and int(ranks[:9]) > 1 and possible()


def possible() -> bool:
    """Return whether the processes of this machine can share planes."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS") and _PROCESSES.is_dir()


def shared(
    identity: Sequence[object], layout: Layout, fill: Callable[[Arrays], None], *, patience: float = PATIENCE
) -> Arrays:
    """Return arrays that other ranks of this machine have filled, or fill them for all.

    Writing to them changes this process's own copy of a page.

    Args:
        identity: equal for equal content.
        layout: the shape and dtype of each array.
        fill: writes all values; errors are raised in the rank that fills, and another one tries.
        patience: seconds to wait for another rank.

    Raises:
        StoreError: another rank has not decoded the plane in that time, or there is too little memory.
    """
    name = f"kdpipe-{os.getuid()}-{blake3(repr([*identity, *layout]).encode()).hexdigest(length=16)}"
    with _alone(name, patience=patience):
        size = _size(layout)
        descriptor = _held(name, size)
        if descriptor is None:
            descriptor = _made(name, size, layout, fill)
        try:
            return _arrays(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY), layout)
        finally:
            os.close(descriptor)  # the mapping keeps its own, by which others find it


@contextmanager
def _alone(name: str, *, patience: float) -> Iterator[None]:
    """Hold the right to look for a plane and to decode it."""
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as right:
        while True:
            try:
                right.bind(f"\0{name}")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # no such names here: several may decode it
                    break
                if time.monotonic() - began > patience:
                    raise StoreError(
                        f"waited {patience:g} s for another rank of this machine to decode a plane of the store."
                    ) from None
            time.sleep(_POLL)
        yield


def _held(name: str, size: int) -> int | None:
    """Open the finished plane of that name which a process of this user holds; ``None`` where there is none."""
    link = f"/memfd:{name} (deleted)"
    for process in _PROCESSES.iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):
            if process.stat().st_uid != os.getuid():
                continue
            for file in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(file.readlink()) == link and (found := _finished(file, size)) is not None:
                        return found
    return None


def _finished(file: Path, size: int) -> int | None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE and os.fstat(descriptor).st_size == size:
        return descriptor
    os.close(descriptor)
    return None


def _made(name: str, size: int, layout: Layout, fill: Callable[[Arrays], None]) -> int:
    """Fill a new plane and seal it: from then on, nobody can change it."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _reserve(descriptor, size)
        mapped = mmap.mmap(descriptor, size)
        arrays = _arrays(mapped, layout)
        fill(arrays)
        arrays.clear()
        mapped.close()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise StoreError(f"no memory for a plane of {size:,} bytes ({error.strerror}).") from None


def _size(layout: Layout) -> int:
    return max(1, sum(-(-_bytes(*each) // _ALIGNED) * _ALIGNED for each in layout))


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _arrays(mapped: mmap.mmap, layout: Layout) -> Arrays:
    """Return the arrays of a mapping, which they keep open."""
    found, start = [], 0
    for shape, dtype in layout:
        found.append(np.frombuffer(mapped, dtype, math.prod(shape), start).reshape(shape))
        start += -(-_bytes(shape, dtype) // _ALIGNED) * _ALIGNED
    return found
