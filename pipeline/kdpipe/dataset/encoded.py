"""Sources of pixels that are encoded images: files, or parts of files that hold many.

What was found out about them is remembered in the cache, while it is found out, until their file changes: content
digest and size, and that they can be decoded.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import decode
from kdpipe.dataset.caching import cache_directory
from kdpipe.dataset.ids import ID_BYTES, array_digest, as_digests, bytes_digest, digests_of, find_ids, sample_id
from kdpipe.dataset.names import Names
from kdpipe.dataset.pixels import processors
from kdpipe.dataset.registry import LOOKED, Digests, Indices, Records, Survey
from kdpipe.dataset.states import STATE, State, settled_before
from kdpipe.dataset.tables import Table
from kdpipe.dataset.workers import look_at, placed
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress

_NAME = ("name", "u1", ID_BYTES)
_FOUND = np.dtype([("digest", "u1", ID_BYTES), ("size", "<u4", 2), ("remarks", "u1")])
_PACKED_FOUND = struct.Struct("<16sIIB")
"""The layout of ``_FOUND``."""
_FILES = np.dtype([_NAME, ("state", STATE), ("found", _FOUND)])
"""An entry of the table of encoded images; its name is the digest of where it is."""
_DECODED = np.dtype([_NAME])
"""An entry of the table of images that can be decoded; its name is the content digest."""
_PIXELS = np.dtype([_NAME, ("pixels", "u1", ID_BYTES)])
"""An entry of the table of pixel digests; its name is the content digest."""

_UNKNOWN = bytes(ID_BYTES)
"""Content digest of an image that was not read yet."""


class Blobs(Protocol):
    """Encoded images by index. Pickles, so that each worker opens its files anew."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def take(self, indices: Indices) -> Blobs:
        """Return the images at ``indices``, ``(k,)``, which share what can be shared."""
        ...

    def names(self) -> Names:
        """Return the absolute place of each image, by which it is remembered and named in messages."""
        ...

    def states(self) -> tuple[Records, dict[int, str]]:
        """Return the state of each image's file, ``STATE`` ``(n,)``, and why some images cannot be read."""
        ...

    def content(self, index: int) -> bytes:
        """Return the bytes of an encoded image; may be called from several threads.

        Raises:
            DatasetError: it cannot be read.
        """
        ...

    def content_and_state(self, index: int) -> tuple[bytes, State]:
        """Return what ``content`` does, and the state of the file before it was read."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedSource:
    """Encoded images, decoded with Pillow."""

    blobs: Blobs
    """The encoded image of each sample."""
    memory: str
    """Name of the cache file of digests: the dataset's root and its split."""

    parallel: bool = True
    held: Records = field(default_factory=lambda: np.empty(0, dtype=_FILES))
    """Records of an earlier survey in this process that were not saved."""

    def survey(
        self,
        indices: Indices,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
        streamed_above: int | None = None,
    ) -> Survey:
        """Return digests and header sizes; read only images that are new or whose file has changed.

        As soon as the pixels of all images exceed ``streamed_above`` bytes, so that they will be streamed, images are
        decoded when they are read, which saves ``broken`` to read them again.
        """
        blobs, before = self.blobs.take(indices), settled_before()
        files, decoded = self._files(), self._decoded()
        entries, broken = _states(blobs)
        known = _recall(entries, files.read()) | _recall(entries, self.held)
        known[list(broken)] = True
        new = np.flatnonzero(~known)
        settled = _last_written(entries["state"]) < before
        pixels = _pixel_bytes(entries) - _pixel_bytes(entries[new])

        def streamed() -> bool:
            return streamed_above is not None and pixels > streamed_above

        with progress(what, total=len(entries)) as report, files.saving() as save, decoded.saving() as save_decoded:
            report(len(entries) - len(new))
            found = look_at(_look, blobs.take(new), len(new), flag=streamed, threads=_readers(), processes=processes)
            for places, block, tried in placed(found, new, report):
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
        return _survey(entries["found"], broken)

    def broken(
        self,
        indices: Indices,
        digests: Digests,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
    ) -> dict[int, str]:
        """Decode the images whose content was not decoded before; return why some cannot be, by their place."""
        table, found = self._decoded(), dict[int, str]()
        known = table.read()["name"]
        if np.array_equal(digests, known):
            return found
        new = np.flatnonzero(find_ids(digests, known) < 0)
        if not len(new):
            return found
        tasks = self.blobs.take(indices[new]), digests[new]
        with progress(what, total=len(new)) as report, table.saving() as save:
            tried = look_at(_try, tasks, len(new), threads=processors(), processes=processes)
            for places, block, _ in placed(tried, new, report):
                found |= {int(at): str(why) for at, why in zip(places, block, strict=True) if why is not None}
                save(_named(digests[places[[why is None for why in block]]]))
        return found

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The file is gone, broken, or not the one that was surveyed.
        """
        return decode.decode(_surveyed(self.blobs, index, digest), self.blobs.names()[index])

    def look(self, index: int, digest: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Return one image as ``read`` does, and what was learned of it, ``LOOKED``."""
        where, found = self.blobs.names()[index], np.zeros((), dtype=LOOKED)
        content, state = self.blobs.content_and_state(index)
        own = bytes_digest(content)
        if digest == _UNKNOWN:
            pixels, found["remarks"] = decode.look(content, where)
            found["state"] = state
        elif own != digest:
            raise _changed(where)
        else:
            pixels = decode.decode(content, where)
        found["digest"], found["size"] = np.frombuffer(own, dtype=np.uint8), pixels.shape[1:]
        found["pixels"] = np.frombuffer(array_digest(pixels), dtype=np.uint8)
        return pixels, found

    def recall(self, indices: Indices) -> Survey:
        """Return what is remembered of images, without reading one; digests and sizes of zeros where nothing is."""
        known, count = self._files().read(), len(indices)
        if not len(known) and not len(self.held):
            return _survey(np.zeros(count, dtype=_FOUND))
        entries, _ = _states(self.blobs.take(indices))
        entries["found"][~(_recall(entries, known) | _recall(entries, self.held))] = 0
        return _survey(entries["found"])

    @contextlib.contextmanager
    def remembering(self) -> Iterator[Callable[[Indices, Records], None]]:
        """Yield a function that remembers what was learned of images at some indices, ``LOOKED``."""
        names, before = self.blobs.names(), settled_before()
        with self._files().saving() as save, self._decoded().saving() as save_decoded:

            def add(indices: Indices, looked: Records) -> None:
                entries = np.zeros(len(indices), dtype=_FILES)
                entries["name"], entries["state"] = digests_of(names.take(indices)), looked["state"]
                for name in ("digest", "size", "remarks"):
                    entries["found"][name] = looked[name]
                save(entries[_last_written(looked["state"]) < before])
                save_decoded(_named(looked["digest"]))

            yield add

    def pixel_digests(
        self,
        indices: Indices,
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
        rows = find_ids(digests, known["name"])
        entries["pixels"][rows >= 0] = known["pixels"][rows[rows >= 0]]
        new = np.flatnonzero(rows < 0)
        tasks = self.blobs.take(indices[new]), digests[new]
        with progress(what, total=len(indices)) as report, table.saving() as save:
            report(len(indices) - len(new))
            found = look_at(_pixels, tasks, len(new), threads=processors(), processes=processes)
            for places, block, _ in placed(found, new, report):
                entries["pixels"][places] = as_digests(b"".join(block))
                save(entries[places])
        return entries["pixels"]

    def holding(self, found: Survey) -> EncodedSource:
        """Return the source with what a survey of all its images found, so that none is read again for the next."""
        entries, _ = _states(self.blobs)
        entries["found"]["digest"], entries["found"]["size"] = found.digests, found.sizes
        entries["found"]["remarks"] = 0 if found.remarks is None else found.remarks
        return replace(self, held=np.delete(entries, list(found.broken)))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what only the next survey needs."""
        return {**self.__dict__, "held": self.held[:0]}

    def _table(self, folder: str, kind: str, entry: np.dtype[Any]) -> Table:
        name = sample_id(f"{kind} {self.memory}").hex()
        return Table(cache_directory() / folder / f"{name}.bin", entry)

    def _files(self) -> Table:
        return self._table("digests", "files 3", _FILES)

    def _decoded(self) -> Table:
        return self._table("decoded", f"decoded {decode.decoder_name()}", _DECODED)


def _readers() -> int:
    """Return the number of threads that read files, of which many wait for the disk."""
    return min(32, 4 * processors())


def _survey(found: Records, broken: Mapping[int, str] | None = None) -> Survey:
    """Return records, ``_FOUND`` ``(n,)``, as a survey."""
    sizes = found["size"].astype(np.int64)
    return Survey(found["digest"].copy(), sizes, broken or {}, found["remarks"].copy())


def _states(blobs: Blobs) -> tuple[Records, dict[int, str]]:
    """Return the entries of images, ``(n,)``, with their names and states, and why some cannot be read."""
    entries = np.zeros(len(blobs), dtype=_FILES)
    entries["found"]["size"] = 1
    entries["name"] = digests_of(blobs.names())
    entries["state"], broken = blobs.states()
    return entries, broken


def _last_written(states: Records) -> npt.NDArray[np.int64]:
    """Return when files were last written, ``(n,)``, from their ``STATE``."""
    times: npt.NDArray[np.int64] = np.maximum(states["modified"], states["changed"])
    return times


def _recall(entries: Records, known: Records) -> npt.NDArray[np.bool_]:
    """Fill in what is known of files whose state is as it was, and return which these are, ``(n,)``."""
    if np.array_equal(entries["name"], known["name"]):
        rows = np.arange(len(entries))
    else:
        rows = find_ids(entries["name"], known["name"])
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


def _look(blobs: Blobs, index: int, decoded: bool) -> bytes | DatasetError:
    """Return what an encoded image holds, as ``_FOUND``, or why it cannot be used."""
    where = blobs.names()[index]
    try:
        content = blobs.content(index)
        height, width, remarks = decode.describe(content, where)
        if decoded:
            decode.check(content, where)
    except DatasetError as error:
        return error
    return _PACKED_FOUND.pack(bytes_digest(content), height, width, remarks)


def _try(known: tuple[Blobs, Digests], index: int, _decoded: bool) -> DatasetError | None:
    """Return why an image cannot be decoded."""
    blobs, digests = known
    try:
        decode.check(_surveyed(blobs, index, digests[index].tobytes()), blobs.names()[index])
    except DatasetError as error:
        return error
    return None


def _pixels(known: tuple[Blobs, Digests], index: int, _decoded: bool) -> bytes:
    """Return the digest of an image's pixels."""
    blobs, digests = known
    content = _surveyed(blobs, index, digests[index].tobytes())
    return array_digest(decode.decode(content, blobs.names()[index]))


def _surveyed(blobs: Blobs, index: int, digest: bytes) -> bytes:
    content = blobs.content(index)
    if digest not in (_UNKNOWN, bytes_digest(content)):
        raise _changed(blobs.names()[index])
    return content


def _changed(where: str) -> DatasetError:
    return DatasetError(f"{where} changed after the dataset was loaded; start again to use the new file")
