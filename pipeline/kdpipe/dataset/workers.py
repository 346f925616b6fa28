"""Worker processes: how they start, and the memory that they share.

An object with arrays of a million samples takes hundreds of megabytes. Pickled into each worker it would exist once per
worker, and be written into one pipe after the other. Here all arrays are written once into a file in memory, which
every worker maps.
"""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Sequence
from multiprocessing.context import BaseContext, get_spawning_popen
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PRELOADED = "kdpipe.views.rendering"
"""What worker processes need: there is one fork server for all, so it is named here, though it is of another room."""
_SMALLEST = 4096
"""Bytes of the smallest array that is shared."""
_ALIGNMENT = 64


def worker_context() -> BaseContext:
    """Return the context of worker processes: forks of a process that has imported what they need and done nothing.

    A fork of this process, after it has decoded Zarr, would deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


class Shared(Generic[T]):
    """An object, whose arrays the worker processes that it is passed to map from one copy in memory, to read only.

    Pickled in any other way it is copied as a whole.
    """

    def __init__(self, value: T) -> None:
        """Share ``value``, which must not change any more once a process was started with it."""
        self.value = value
        self._packed: tuple[bytes, int, tuple[tuple[int, int], ...]] | None = None

    def __reduce__(self) -> Any:
        """Share the memory with a process that is being started."""
        if get_spawning_popen() is None:
            return Shared, (self.value,)
        if self._packed is None:
            self._packed = _pack(self.value)
        head, descriptor, places = self._packed
        return _mapped, (head, DupFd(descriptor), places)

    def __del__(self) -> None:
        """Give the memory back, once the workers have ended, too."""
        if self._packed is not None:
            os.close(self._packed[1])


def _pack(value: object) -> tuple[bytes, int, tuple[tuple[int, int], ...]]:
    """Return a pickle without the arrays, a file in memory that holds them, and the place of each in it."""
    arrays: list[pickle.PickleBuffer] = []

    def in_band(array: pickle.PickleBuffer) -> bool:
        with array.raw() as raw:
            if raw.nbytes < _SMALLEST:
                return True
        arrays.append(array)
        return False

    head = io.BytesIO()
    ForkingPickler(head, pickle.HIGHEST_PROTOCOL, True, in_band).dump(value)
    descriptor = _memory()
    places, end = [], 0
    for array in arrays:
        with array.raw() as raw:
            _write(descriptor, raw, end)
            places.append((end, end + raw.nbytes))
            end += -(-raw.nbytes // _ALIGNMENT) * _ALIGNMENT
    return head.getvalue(), descriptor, tuple(places)


def _memory() -> int:
    """Return the descriptor of a new file without a name: in memory where the system has such, else on disk."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kdpipe", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _mapped(head: bytes, descriptor: Any, places: Sequence[tuple[int, int]]) -> Shared[Any]:
    """Return the object in a worker process."""
    opened = descriptor.detach()
    try:
        memory = memoryview(mmap.mmap(opened, 0, access=mmap.ACCESS_READ)) if places else memoryview(b"")
    finally:
        os.close(opened)
    return Shared(pickle.loads(head, buffers=[memory[start:stop] for start, stop in places]))
