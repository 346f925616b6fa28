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
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import BaseContext, get_spawning_popen
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.pixels import BLOCK, in_blocks

T = TypeVar("T")
Task = TypeVar("Task")
Result = TypeVar("Result")

_PRELOADED = "kdpipe.views.rendering"
"""Module that worker processes import first. One fork server serves all, so it is named here, in another room."""
_SMALLEST = 4096
"""Bytes of the smallest array that is shared."""
_ALIGNMENT = 64

_TRIAL = 1.0
"""Seconds after which the rest of the work is estimated."""
_WORTHWHILE = 15.0
"""Seconds of work for which processes are started."""
_PIECE = 0.3
"""Seconds of work that a process takes at a time."""


def worker_context() -> BaseContext:
    """Return the context of worker processes: forks of a process that has imported what they need and done nothing.

    A fork of this process, after it has decoded Zarr, would deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def prepare_workers() -> None:
    """Let worker processes be ready sooner: import what they need, in another process and meanwhile."""
    worker_context()
    forkserver.ensure_running()


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


def in_processes(
    function: Callable[[T, Task], Result], value: T, tasks: Iterable[Task], *, processes: int
) -> Iterator[Result]:
    """Yield ``function(value, task)`` for each task in order, from worker processes that share ``value``.

    Tasks are drawn as the processes take them. The processes end with this one, however it ends, and leave Ctrl-C to
    it.

    Raises:
        BrokenProcessPool: a process died.
    """
    pool = ProcessPoolExecutor(
        processes, mp_context=worker_context(), initializer=_begin, initargs=(function, Shared(value))
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(_run, task))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(
    function: Callable[[T, int, bool], Result],
    value: T,
    count: int,
    *,
    flag: Callable[[], bool] = lambda: True,
    threads: int = 1,
    processes: int = 1,
    least: float = 0,
) -> Iterator[tuple[list[Result], bool]]:
    """Yield ``function(value, index, flag())`` for the indices 0 to ``count - 1`` in lists, each with its flag.

    Begins in this process, in up to ``threads``. Where an index takes ``least`` seconds or more, and all together much
    longer than ``processes`` take to start, these go on; if one of them dies, this process does the rest.
    """

    def here(first: int) -> Generator[list[Result], None, None]:
        return in_blocks(lambda index: function(value, first + index, flag()), count - first, workers=threads)

    blocks = here(0)
    done, seconds = 0, 0.0
    while done < count:
        flagged, began = flag(), time.perf_counter()
        block = next(blocks)
        taken = time.perf_counter() - began
        done, seconds, each = done + len(block), seconds + taken, taken / len(block)
        yield block, flagged
        if processes > 1 and seconds > _TRIAL and each >= least and each * (count - done) > _WORTHWHILE:
            blocks.close()
            size = max(1, min(BLOCK, int(_PIECE / each)))
            pieces = ((range(start, min(start + size, count)), flag()) for start in range(done, count, size))
            try:
                for piece in in_processes(_look_at, (function, value), pieces, processes=processes):
                    done += len(piece[0])
                    yield piece
            except BrokenProcessPool:
                processes = 1
                blocks = here(done)


def placed(
    blocks: Iterable[tuple[list[Result], bool]], places: npt.NDArray[np.int64], report: Callable[[int], None]
) -> Iterator[tuple[npt.NDArray[np.int64], list[Result], bool]]:
    """Yield the lists of ``look_at`` with the places ``(n,)`` that its indices stand for, and report each as done."""
    done = 0
    for block, flagged in blocks:
        yield places[done : done + len(block)], block, flagged
        done += len(block)
        report(len(block))


def _look_at(
    looked: tuple[Callable[[T, int, bool], Result], T], piece: tuple[range, bool]
) -> tuple[list[Result], bool]:
    (function, value), (indices, flagged) = looked, piece
    return [function(value, index, flagged) for index in indices], flagged


_work: Callable[[Any], Any]
"""The function that a worker process applies to a task."""


def _begin(function: Callable[[T, Task], Result], shared: Shared[T]) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    value = shared.value
    _work = lambda task: function(value, task)  # noqa: E731


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Any) -> Any:
    return _work(task)
