"""Sources of pixels that are image files.

What was found out about them is remembered in the cache, while it is found out, until a file changes: its content
digest and size, and that it can be decoded.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import decode, samples
from kdpipe.dataset.caching import cache_directory
from kdpipe.dataset.names import Names
from kdpipe.dataset.pixels import processors
from kdpipe.dataset.registry import LOOKED, STATE, Survey
from kdpipe.dataset.tables import Table
from kdpipe.dataset.workers import look_at
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.progress import Progress
from kdpipe.reading import open_regular

Records = npt.NDArray[Any]
Digests = npt.NDArray[np.uint8]

_NAME = ("name", "u1", samples.ID_BYTES)
_FOUND = np.dtype([("digest", "u1", samples.ID_BYTES), ("size", "<u4", 2), ("remarks", "u1")])
_PACKED_STATE, _PACKED_FOUND = struct.Struct("<QqqQ"), struct.Struct("<16sIIB")
"""The layouts of ``STATE`` and ``_FOUND``."""
_FILES = np.dtype([_NAME, ("state", STATE), ("found", _FOUND)])
"""An entry of the table of files; its name is the digest of the path."""
_DECODED = np.dtype([_NAME])
"""An entry of the table of images that can be decoded; its name is the content digest."""
_PIXELS = np.dtype([_NAME, ("pixels", "u1", samples.ID_BYTES)])
"""An entry of the table of pixel digests; its name is the content digest."""

_SETTLED_NS = 2_000_000_000
_UNKNOWN = bytes(samples.ID_BYTES)
"""Content digest of an image that was not read yet."""
_LARGEST_FILE = 1024**3
"""Bytes of the largest image file that is read."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded with Pillow."""

    paths: Sequence[str]
    """Absolute path of each sample."""
    memory: str
    """Name of the cache file of digests: the dataset's root and its split."""

    parallel: bool = True

    def survey(
        self,
        indices: npt.NDArray[np.int64],
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
        streamed_above: int | None = None,
    ) -> Survey:
        """Return digests and header sizes; read only files that are new or have changed.

        As soon as the pixels of all images exceed ``streamed_above`` bytes, so that they will be streamed, files are
        decoded when they are read, which saves ``broken`` to read them again.
        """
        paths, now = Names.of(self.paths).take(indices), time.time_ns()
        files, decoded = self._table("digests", "files 3", _FILES), self._decoded()
        entries, broken = _states(paths)
        known = _recall(entries, files.read())
        known[list(broken)] = True
        new = np.flatnonzero(~known)
        times = entries["state"]
        # A file that was written just now may be written again without a change of its times.
        settled = np.maximum(times["modified"], times["changed"]) < now - _SETTLED_NS
        pixels = _pixel_bytes(entries) - _pixel_bytes(entries[new])

        def streamed() -> bool:
            return streamed_above is not None and pixels > streamed_above

        with progress(what, total=len(entries)) as report, files.saving() as save, decoded.saving() as save_decoded:
            report(len(entries) - len(new))
            done = 0
            for block, tried in look_at(
                _look, paths.take(new), len(new), flag=streamed, threads=_readers(), processes=processes
            ):
                places = new[done : done + len(block)]
                done += len(block)
                good = places[[isinstance(looked, bytes) for looked in block]]
                broken |= {
                    int(at): str(why) for at, why in zip(places, block, strict=True) if not isinstance(why, bytes)
                }
                packed = b"".join(looked for looked in block if isinstance(looked, bytes))
                entries["found"][good] = np.frombuffer(packed, dtype=_FOUND)
                pixels += _pixel_bytes(entries[good])
                save(entries[good[settled[good]]])
                if tried:
                    save_decoded(_named(entries["found"]["digest"][good]))
                report(len(block))
        found = entries["found"]
        return Survey(found["digest"].copy(), found["size"].astype(np.int64), broken, found["remarks"].copy())

    def broken(
        self,
        indices: npt.NDArray[np.int64],
        digests: Digests,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
    ) -> dict[int, str]:
        """Decode the files whose content was not decoded before; return why some cannot be, by their place."""
        table, found = self._decoded(), dict[int, str]()
        known = table.read()["name"]
        if np.array_equal(digests, known):
            return found
        new = np.flatnonzero(samples.find_ids(digests, known) < 0)
        if not len(new):
            return found
        tasks = Names.of(self.paths).take(indices[new]), digests[new]
        with progress(what, total=len(new)) as report, table.saving() as save:
            done = 0
            for block, _ in look_at(_try, tasks, len(new), threads=processors(), processes=processes):
                places = new[done : done + len(block)]
                done += len(block)
                found |= {int(at): str(why) for at, why in zip(places, block, strict=True) if why is not None}
                save(_named(digests[places[[why is None for why in block]]]))
                report(len(block))
        return found

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The file is gone, broken, or not the one that was surveyed.
        """
        path = self.paths[index]
        return decode.decode(_surveyed(path, digest), path)

    def look(self, index: int, digest: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Return one image as ``read`` does, and what was learned of it, ``LOOKED``."""
        path, found = self.paths[index], np.zeros((), dtype=LOOKED)
        content, info = _read(path)
        own = samples.bytes_digest(content)
        if digest == _UNKNOWN:
            pixels, found["remarks"] = decode.look(content, path)
            found["state"] = info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
        elif own != digest:
            raise _changed(path)
        else:
            pixels = decode.decode(content, path)
        found["digest"], found["size"] = np.frombuffer(own, dtype=np.uint8), pixels.shape[1:]
        found["pixels"] = np.frombuffer(samples.array_digest(pixels), dtype=np.uint8)
        return pixels, found

    def recall(self, indices: npt.NDArray[np.int64]) -> Survey:
        """Return what is remembered of images, without reading one; digests and sizes of zeros where nothing is."""
        known, count = self._table("digests", "files 3", _FILES).read(), len(indices)
        if not len(known):
            sizes = np.zeros((count, 2), dtype=np.int64)
            return Survey(np.zeros((count, samples.ID_BYTES), np.uint8), sizes, remarks=np.zeros(count, np.uint8))
        entries, _ = _states(Names.of(self.paths).take(indices))
        entries["found"][~_recall(entries, known)] = 0
        found = entries["found"]
        return Survey(found["digest"].copy(), found["size"].astype(np.int64), remarks=found["remarks"].copy())

    @contextlib.contextmanager
    def remembering(self) -> Iterator[Callable[[npt.NDArray[np.int64], Records], None]]:
        """Yield a function that remembers what was learned of images at some indices, ``LOOKED``."""
        paths, settled = Names.of(self.paths), time.time_ns() - _SETTLED_NS
        with self._table("digests", "files 3", _FILES).saving() as save, self._decoded().saving() as save_decoded:

            def add(indices: npt.NDArray[np.int64], looked: Records) -> None:
                entries = np.zeros(len(indices), dtype=_FILES)
                entries["name"], entries["state"] = samples.digests_of(paths.take(indices)), looked["state"]
                for name in ("digest", "size", "remarks"):
                    entries["found"][name] = looked[name]
                save(entries[np.maximum(looked["state"]["modified"], looked["state"]["changed"]) < settled])
                save_decoded(_named(looked["digest"]))

            yield add

    def pixel_digests(
        self,
        indices: npt.NDArray[np.int64],
        digests: Digests,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
    ) -> Digests:
        """Return the digests of the pixels of images; decode those that were not decoded for it before."""
        table = self._table("decoded", f"pixels {decode.decoder_name()}", _PIXELS)
        known, entries = table.read(), np.zeros(len(indices), dtype=_PIXELS)
        entries["name"] = digests
        rows = samples.find_ids(digests, known["name"])
        entries["pixels"][rows >= 0] = known["pixels"][rows[rows >= 0]]
        new = np.flatnonzero(rows < 0)
        tasks = Names.of(self.paths).take(indices[new]), digests[new]
        with progress(what, total=len(indices)) as report, table.saving() as save:
            report(len(indices) - len(new))
            done = 0
            for block, _ in look_at(_pixels, tasks, len(new), threads=processors(), processes=processes):
                places = new[done : done + len(block)]
                done += len(block)
                entries["pixels"][places] = samples.as_digests(b"".join(block))
                save(entries[places])
                report(len(block))
        return entries["pixels"]

    def _table(self, folder: str, kind: str, entry: np.dtype[Any]) -> Table:
        name = samples.sample_id(f"{kind} {self.memory}").hex()
        return Table(cache_directory() / folder / f"{name}.bin", entry)

    def _decoded(self) -> Table:
        return self._table("decoded", f"decoded {decode.decoder_name()}", _DECODED)


def _readers() -> int:
    """Return the number of threads that read files, of which many wait for the disk."""
    return min(32, 4 * processors())


def _states(paths: Names) -> tuple[Records, dict[int, str]]:
    """Return the entries of files, ``(n,)``, with their names and states, and why some cannot be read."""
    entries = np.zeros(len(paths), dtype=_FILES)
    entries["found"]["size"] = 1
    entries["name"] = samples.digests_of(paths)
    states, broken = bytearray(len(paths) * _PACKED_STATE.size), {}
    for place, path in enumerate(paths):
        try:
            info = os.stat(path)  # noqa: PTH116 (a Path for each of a million files takes longer than the call)
        except OSError as error:
            broken[place] = str(_lost(path, error))
            continue
        state = info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino
        _PACKED_STATE.pack_into(states, place * _PACKED_STATE.size, *state)
    entries["state"] = np.frombuffer(states, dtype=STATE)
    return entries, broken


def _recall(entries: Records, known: Records) -> npt.NDArray[np.bool_]:
    """Fill in what is known of files whose state is as it was, and return which these are, ``(n,)``."""
    if np.array_equal(entries["name"], known["name"]):
        rows = np.arange(len(entries))
    else:
        rows = samples.find_ids(entries["name"], known["name"])
    at = np.flatnonzero(rows >= 0)
    at = at[known["state"][rows[at]] == entries["state"][at]]
    entries["found"][at] = known["found"][rows[at]]
    found = np.zeros(len(entries), dtype=bool)
    found[at] = True
    return found


def _pixel_bytes(entries: Records) -> int:
    return 3 * int(entries["found"]["size"].astype(np.int64).prod(axis=1).sum())


def _named(digests: Digests) -> Records:
    entries = np.zeros(len(digests), dtype=_DECODED)
    entries["name"] = digests
    return entries


def _look(paths: Names, index: int, decoded: bool) -> bytes | DatasetError:
    """Return what a file holds, as ``_FOUND``, or why it cannot be used."""
    path = paths[index]
    try:
        content = content_of(path)
        height, width, remarks = decode.describe(content, path)
        if decoded:
            decode.check(content, path)
    except DatasetError as error:
        return error
    return _PACKED_FOUND.pack(samples.bytes_digest(content), height, width, remarks)


def _try(files: tuple[Names, Digests], index: int, _decoded: bool) -> DatasetError | None:
    """Return why a file cannot be decoded."""
    paths, digests = files
    path = paths[index]
    try:
        decode.check(_surveyed(path, digests[index].tobytes()), path)
    except DatasetError as error:
        return error
    return None


def _pixels(files: tuple[Names, Digests], index: int, _decoded: bool) -> bytes:
    """Return the digest of a file's pixels."""
    paths, digests = files
    path = paths[index]
    return samples.array_digest(decode.decode(_surveyed(path, digests[index].tobytes()), path))


def _surveyed(path: str, digest: bytes) -> bytes:
    content = content_of(path)
    if digest not in (_UNKNOWN, samples.bytes_digest(content)):
        raise _changed(path)
    return content


def _changed(path: str) -> DatasetError:
    return DatasetError(f"{path} changed after the dataset was loaded; start again to use the new file")


def content_digest_of(path: Path) -> bytes:
    """Return the digest of an image file's bytes.

    Raises:
        DatasetError: it cannot be read.
    """
    return samples.bytes_digest(content_of(str(path)))


def pixel_digest_of(path: Path) -> bytes:
    """Return the digest of shape and pixels of an image file.

    Raises:
        DatasetError: it cannot be read or decoded.
    """
    return samples.array_digest(decode.decode(content_of(str(path)), str(path)))


def content_of(path: str) -> bytes:
    """Read an image file, or the file that a link names.

    Raises:
        DatasetError: it cannot be read, is no regular file, or is larger than any image.
    """
    return _read(path)[0]


def _read(path: str) -> tuple[bytes, os.stat_result]:
    """Read a file; return its content, and its state before."""
    try:
        with open_regular(Path(path), follow=True) as file:
            info = os.fstat(file.fileno())
            size = info.st_size
            if size <= _LARGEST_FILE:
                content = file.read(size + 1)
                return content if len(content) <= size else content + file.read(_LARGEST_FILE), info
    except OSError as error:
        raise _lost(path, error) from error
    raise DatasetError(f"{path} cannot be read: it has {size:,} bytes, expected at most {_LARGEST_FILE:,}; remove it")


def _lost(path: str, error: OSError) -> DatasetError:
    return DatasetError(f"{path} cannot be read: {error.strerror or error}; restore the file or its permissions")


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
