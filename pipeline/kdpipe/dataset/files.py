"""Samples that are image files: their digests are remembered for as long as the files stay as they are."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kdpipe import durable
from kdpipe.dataset import decode, identity
from kdpipe.dataset.blocks import in_order, processors
from kdpipe.dataset.pixels import cache_directory
from kdpipe.dataset.source import Survey
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.progress import Progress

_STATE = struct.Struct("<QqqQ")
_FOUND = struct.Struct("<16sII")
_ENTRY_BYTES = identity.ID_BYTES + _STATE.size + _FOUND.size
_CHECK_BYTES = 32
_SETTLED_NS = 2_000_000_000

Memory = dict[bytes, bytes]
"""From the digest of a path to the packed state, content digest and image size of its file."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded with Pillow."""

    paths: tuple[str, ...]
    """Absolute path of each sample."""
    memory: str
    """Names the cache file in which digests are remembered: the dataset's root and its split."""

    parallel: bool = True

    def survey(self, rows: npt.NDArray[np.int64], *, what: str, progress: Progress) -> Survey:
        """Return digests and header sizes, reading only files that are not remembered or have changed."""
        path = cache_directory() / "digests" / f"{identity.sample_id(self.memory).hex()}.bin"
        known = _recall(path)
        now = time.time_ns()
        found: list[bytes] = []
        fresh: Memory = {}
        workers = min(32, 4 * processors())

        def look(index: int) -> tuple[bytes, bytes, bool]:
            return self._look(int(rows[index]), known)

        for block in in_order(look, len(rows), workers=workers, what=what, progress=progress):
            for name, entry, remembered in block:
                found.append(entry[_STATE.size :])
                if not remembered and _settled(entry, now):
                    fresh[name] = entry
        if fresh:
            _remember(path, {**known, **fresh})
        return _as_survey(found)

    def _look(self, row: int, known: Memory) -> tuple[bytes, bytes, bool]:
        path = self.paths[row]
        name = identity.bytes_digest(os.fsencode(path))
        try:
            info = Path(path).stat()
        except OSError as error:
            raise _lost(path, error) from error
        state = _STATE.pack(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        entry = known.get(name)
        if entry is not None and entry.startswith(state):
            return name, entry, True
        content = _content(path)
        size = decode.measure(content, path)
        return name, state + _FOUND.pack(identity.bytes_digest(content), *size), False

    def read(self, row: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The file is gone, broken, or not the one that was surveyed.
        """
        path = self.paths[row]
        content = _content(path)
        if identity.bytes_digest(content) != digest:
            raise DatasetError(f"{path} changed after the dataset was loaded; start again to use the new file")
        return decode.decode(content, path)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _lost(path, error) from error


def _lost(path: str, error: OSError) -> DatasetError:
    return DatasetError(f"{path} cannot be read: {error.strerror or error}; restore the file or its permissions")


def _settled(entry: bytes, now: int) -> bool:
    """Whether a file is old enough that a later edit must show in its times, however coarse the clock."""
    _, modified, changed, _ = _STATE.unpack_from(entry)
    return bool(max(modified, changed) < now - _SETTLED_NS)


def _as_survey(found: list[bytes]) -> Survey:
    packed = np.frombuffer(b"".join(found), dtype=np.dtype([("digest", "u1", 16), ("size", "<u4", 2)]))
    return Survey(packed["digest"].copy(), packed["size"].astype(np.int64))


def _recall(path: Path) -> Memory:
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    check, body = content[:_CHECK_BYTES], content[_CHECK_BYTES:]
    if len(body) % _ENTRY_BYTES or blake3(body).digest() != check:
        return {}
    cut = identity.ID_BYTES
    entries = (body[i : i + _ENTRY_BYTES] for i in range(0, len(body), _ENTRY_BYTES))
    return {entry[:cut]: entry[cut:] for entry in entries}


def _remember(path: Path, memory: Memory) -> None:
    """Write the memory; without a writable cache the files are simply read again next time."""
    body = b"".join(name + entry for name, entry in memory.items())
    with contextlib.suppress(OSError):
        durable.write_bytes(path, blake3(body).digest() + body)


def suggest_path(path: Path) -> str:
    """Return ``"; did you mean 'x'?"`` for the existing path nearest to a missing one, or an empty string."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    try:
        siblings = [child.name for child in missing.parent.iterdir()]
    except OSError:
        return ""
    near = did_you_mean(missing.name, siblings)
    return near.replace("'", f"'{missing.parent}/", 1) if near and str(missing.parent) != "." else near
