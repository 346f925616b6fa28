"""Decoded pixels in one flat uint8 buffer, memory-mapped from a cache file, or in RAM where none can be written.

A cache file is named after the dataset's fingerprint and the decoder. It holds a header, the size of each image and all
pixels, and is checked against its digest before it is used. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset import caching
from kdpipe.dataset.caching import cache_directory
from kdpipe.dataset.decode import decoder_name
from kdpipe.progress import Progress
from kdpipe.reading import open_regular

_MAGIC = b"kdpixel1"
_HEADER_BYTES = 64

BLOCK = 1024
"""Most indices in a list of ``in_order``."""
_FIRST = 16
"""Indices in the first list."""
_PIECE = 8
"""Indices that a thread takes at a time."""
_SLOW_SECONDS = 300e-6
"""Time for an index above which threads are used."""

T = TypeVar("T")
Read = Callable[[int], npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class PixelBuffer:
    """The pixels of ``n`` images, one after the other, each as uint8 ``(3, height, width)``."""

    flat: npt.NDArray[np.uint8]
    """All pixels, uint8 ``(bytes,)``."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""
    starts: npt.NDArray[np.int64]
    """Offset of each image in ``flat``, and at last its length, ``(n + 1,)``."""
    path: Path | None
    """The cache file that ``flat`` is mapped from; None when the pixels are in RAM only."""

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``, sharing the buffer."""
        height, width = self.sizes[index]
        part = self.flat[self.starts[index] : self.starts[index + 1]]
        return part.reshape(3, int(height), int(width))


def byte_starts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the offset of each image of ``sizes`` ``(n, 2)``, and at last the total number of bytes."""
    return np.concatenate([[0], np.cumsum(3 * sizes[:, 0] * sizes[:, 1])]).astype(np.int64)


def cache_path(fingerprint: str) -> Path:
    """Return the cache file for the pixels of the dataset with this fingerprint."""
    return cache_directory() / "pixels" / f"{fingerprint}-{decoder_name()}.bin"


def open_cache(path: Path, sizes: npt.NDArray[np.int64], *, check: bool = True) -> PixelBuffer | None:
    """Map a cache file; None if it is missing, damaged, or made for images of other sizes."""
    starts = byte_starts(sizes)
    table = sizes.astype("<u4").tobytes()
    body = _HEADER_BYTES + len(table)
    try:
        with open_regular(path) as file:
            head = file.read(_HEADER_BYTES)
            stored = file.read(len(table))
            size = os.fstat(file.fileno()).st_size
            if head[:8] != _MAGIC or stored != table or size != body + starts[-1]:
                return None
            if not caching.trusted(file.fileno(), path):
                return None
            caching.touch(file.fileno())
            flat = np.memmap(file, dtype=np.uint8, mode="c", offset=body, shape=(int(starts[-1]),))
    except (OSError, ValueError):
        return None
    if check and _digest(table, flat) != head[8:40]:
        return None
    return PixelBuffer(flat, sizes, starts, path)


def _digest(table: bytes, flat: npt.NDArray[np.uint8]) -> bytes:
    digest = blake3(table, max_threads=blake3.AUTO)
    digest.update(flat.data)
    return digest.digest()


def fill(
    path: Path,
    sizes: npt.NDArray[np.int64],
    *,
    name: str = "",
    read: Read,
    workers: int,
    what: str,
    progress: Progress,
) -> PixelBuffer:
    """Decode every image into the cache file, or into RAM where the cache cannot be written.

    ``read(i)`` returns image ``i``; it is called from up to ``workers`` threads.

    Raises:
        DatasetError: As ``read`` does.
    """
    limit = caching.limit_bytes()
    with contextlib.suppress(OSError):
        if byte_starts(sizes)[-1] > limit:
            raise OSError(errno.EFBIG, "larger than all caches may be")
        caching.prepare(path)
        durable.replace(
            path,
            lambda file: _write(file, sizes, name=name, read=read, workers=workers, what=what, progress=progress),
        )
        caching.prune(limit, keep=path)
        if (mapped := open_cache(path, sizes, check=False)) is not None:
            return mapped
    starts = byte_starts(sizes)
    flat = np.empty(int(starts[-1]), dtype=np.uint8)
    done = 0
    for block in in_order(read, len(sizes), workers=workers, what=what, progress=progress):
        for image in block:
            flat[starts[done] : starts[done + 1]] = image.reshape(-1)
            done += 1
    return PixelBuffer(flat, sizes, starts, None)


def _write(
    file: Path, sizes: npt.NDArray[np.int64], *, name: str, read: Read, workers: int, what: str, progress: Progress
) -> None:
    """Write with plain writes, not through a map: on a full disk that is an error and not a crash."""
    table = sizes.astype("<u4").tobytes()
    digest = blake3(table)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # by which caching.prune sees that its writer lives
        out.write(bytes(_HEADER_BYTES) + table)
        for block in in_order(read, len(sizes), workers=workers, what=what, progress=progress):
            joined = b"".join(image.tobytes() for image in block)
            digest.update(joined)
            out.write(joined)
        out.seek(0)
        head = _MAGIC + digest.digest() + name.encode(errors="replace")[: _HEADER_BYTES - 40]
        out.write(head.ljust(_HEADER_BYTES, b"\0"))


def processors(*, of_rank: bool = False) -> int:
    """Return the number of processors that this process may use; ``of_rank`` only its share among local ranks."""
    affinity = getattr(os, "sched_getaffinity", None)
    found = len(affinity(0)) if affinity else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, found // max(1, int(ranks[:9]))) if of_rank and ranks.isdecimal() else found


def in_order(
    function: Callable[[int], T], count: int, *, workers: int, what: str, progress: Progress
) -> Iterator[list[T]]:
    """Yield ``function(0)`` to ``function(count - 1)`` in lists of up to ``BLOCK``; report each list as done."""
    with progress(what, total=count) as report:
        for block in in_blocks(function, count, workers=workers):
            yield block
            report(len(block))


def in_blocks(function: Callable[[int], T], count: int, *, workers: int) -> Generator[list[T], None, None]:
    """Yield ``function(0)`` to ``function(count - 1)`` in lists of up to ``BLOCK``, and about a second's work.

    It begins as a plain loop, and uses threads once an index takes long enough. Measured on two cores over 50,000 JPEG
    files of 32 x 32, handing the interpreter lock back and forth makes threads 2.5 times slower than a loop; for
    photographs and slow disks they are faster. A loop that is slow without computing or waiting for a disk shares its
    processor with others, and gains nothing.
    """
    slow = False
    size = _FIRST
    with ThreadPoolExecutor(workers) as pool:
        begin = 0
        while begin < count:
            indices = range(begin, min(begin + size, count))
            started, cpu, waits = time.perf_counter(), time.thread_time(), _waits()
            if slow:
                pieces = [indices[i : i + _PIECE] for i in range(0, len(indices), _PIECE)]
                parts = pool.map(lambda piece: [function(index) for index in piece], pieces)
                block = [value for part in parts for value in part]
            else:
                block = [function(index) for index in indices]
            each = (time.perf_counter() - started) / len(indices)
            if begin > 0 and workers > 1 and each > _SLOW_SECONDS:
                slow = (
                    slow
                    or time.thread_time() - cpu > _SLOW_SECONDS * len(indices)
                    or _waits() - waits > len(indices) / 4
                )
            yield block
            begin = indices.stop
            size = min(BLOCK, max(_FIRST, int(1 / each) if each else BLOCK))


def _waits() -> int:
    """Return how often this thread has waited for something, such as a disk."""
    return resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)).ru_nvcsw
