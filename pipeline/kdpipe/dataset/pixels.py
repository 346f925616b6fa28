"""Decoded pixels: one flat uint8 buffer, memory-mapped from a cache file when there can be one.

A cache file is named after the dataset's fingerprint and the decoder, holds a header, the size of each image
and then all pixels, and is checked against its own digest before it is used. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset.blocks import in_order
from kdpipe.dataset.decode import decoder_name
from kdpipe.progress import Progress

_MAGIC = b"kdpixel1"
_HEADER_BYTES = 64

Read = Callable[[int], npt.NDArray[np.uint8]]


def cache_directory() -> Path:
    """Return where caches are kept: ``$KDPIPE_CACHE``, ``$XDG_CACHE_HOME/kdpipe`` or ``~/.cache/kdpipe``."""
    if own := os.environ.get("KDPIPE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kdpipe"


@dataclass(frozen=True, eq=False)
class PixelBuffer:
    """The pixels of ``n`` images, one after the other, each as uint8 ``(3, height, width)``."""

    flat: npt.NDArray[np.uint8]
    """All pixels, uint8 ``(bytes,)``."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""
    starts: npt.NDArray[np.int64]
    """Where each image begins in ``flat``, ``(n + 1,)``."""
    path: Path | None
    """The cache file that ``flat`` is mapped from; None when the pixels are in RAM only."""

    def image(self, row: int) -> torch.Tensor:
        """Return one image, uint8 ``(3, height, width)``, sharing the buffer."""
        height, width = self.sizes[row]
        part = self.flat[self.starts[row] : self.starts[row + 1]]
        return torch.from_numpy(part.reshape(3, int(height), int(width)))


def byte_starts(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each image of ``sizes`` ``(n, 2)`` begins, and at last the total number of bytes."""
    return np.concatenate([[0], np.cumsum(3 * sizes[:, 0] * sizes[:, 1])]).astype(np.int64)


def cache_path(fingerprint: str) -> Path:
    """Return the cache file for the pixels of the dataset with this fingerprint."""
    return cache_directory() / "pixels" / f"{fingerprint}-{decoder_name()}.bin"


def open_cache(path: Path, sizes: npt.NDArray[np.int64], *, check: bool = True) -> PixelBuffer | None:
    """Map a cache file; None when it is missing, damaged, or made for other images than ``sizes``."""
    starts = byte_starts(sizes)
    table = sizes.astype("<u4").tobytes()
    body = _HEADER_BYTES + len(table)
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            stored = file.read(len(table))
        if head[:8] != _MAGIC or stored != table or path.stat().st_size != body + starts[-1]:
            return None
        flat = np.memmap(path, dtype=np.uint8, mode="c", offset=body, shape=(int(starts[-1]),))
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
    path: Path, sizes: npt.NDArray[np.int64], *, read: Read, workers: int, what: str, progress: Progress
) -> PixelBuffer:
    """Decode every image into the cache file, or into RAM where the cache cannot be written.

    ``read(i)`` returns image ``i``; it is called from up to ``workers`` threads.

    Raises:
        DatasetError: As ``read`` does.
    """
    with contextlib.suppress(OSError):
        durable.replace(
            path,
            lambda file: _write(file, sizes, read=read, workers=workers, what=what, progress=progress),
        )
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
    file: Path, sizes: npt.NDArray[np.int64], *, read: Read, workers: int, what: str, progress: Progress
) -> None:
    """Write with plain writes, not through a map: on a full disk that is an error and not a crash."""
    table = sizes.astype("<u4").tobytes()
    digest = blake3(table)
    with file.open("wb") as out:
        out.write(bytes(_HEADER_BYTES) + table)
        for block in in_order(read, len(sizes), workers=workers, what=what, progress=progress):
            joined = b"".join(image.tobytes() for image in block)
            digest.update(joined)
            out.write(joined)
        out.seek(0)
        out.write((_MAGIC + digest.digest()).ljust(_HEADER_BYTES, b"\0"))
