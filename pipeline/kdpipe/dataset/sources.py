"""Sources of pixels: image files, and items of Python sequences.

Content digests of image files are remembered in the cache until a file changes.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import decode, samples
from kdpipe.dataset.caching import cache_directory, recall, remember
from kdpipe.dataset.pixels import in_order, processors
from kdpipe.dataset.registry import Survey
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.progress import Progress
from kdpipe.reading import open_regular

_STATE = struct.Struct("<QqqQ")
_FOUND = struct.Struct("<16sIIB")
_ENTRY_BYTES = samples.ID_BYTES + _STATE.size + _FOUND.size
_SETTLED_NS = 2_000_000_000
_LARGEST_FILE = 1024**3
"""Bytes of the largest image file that is read."""

Memory = dict[bytes, bytes]
"""From the digest of a path to the packed state, content digest and image size of its file."""


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files, decoded with Pillow."""

    paths: Sequence[str]
    """Absolute path of each sample."""
    memory: str
    """Name of the cache file of digests: the dataset's root and its split."""

    parallel: bool = True

    def survey(self, indices: npt.NDArray[np.int64], *, what: str, progress: Progress) -> Survey:
        """Return digests and header sizes; read only files that are new or have changed."""
        path = self._table("digests", "files 2")
        cut = samples.ID_BYTES
        known = {entry[:cut]: entry[cut:] for entry in recall(path, entry_bytes=_ENTRY_BYTES)}
        now = time.time_ns()
        found: list[bytes] = []
        broken: dict[int, str] = {}
        fresh: Memory = {}
        workers = min(32, 4 * processors())

        def look(index: int) -> tuple[bytes, bytes, bool] | DatasetError:
            try:
                return self._look(int(indices[index]), known)
            except DatasetError as error:
                return error

        for block in in_order(look, len(indices), workers=workers, what=what, progress=progress):
            for looked in block:
                if isinstance(looked, DatasetError):
                    broken[len(found)] = str(looked)
                    found.append(_FOUND.pack(b"", 1, 1, 0))
                    continue
                name, entry, remembered = looked
                found.append(entry[_STATE.size :])
                if not remembered and _settled(entry, now):
                    fresh[name] = entry
        if fresh:
            remember(path, [name + entry for name, entry in {**known, **fresh}.items()])
        return _as_survey(found, broken)

    def _table(self, folder: str, kind: str) -> Path:
        return cache_directory() / folder / f"{samples.sample_id(f'{kind} {self.memory}').hex()}.bin"

    def _look(self, index: int, known: Memory) -> tuple[bytes, bytes, bool]:
        path = self.paths[index]
        name = samples.bytes_digest(os.fsencode(path))
        try:
            info = Path(path).stat()
        except OSError as error:
            raise _lost(path, error) from error
        state = _STATE.pack(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        entry = known.get(name)
        if entry is not None and entry.startswith(state):
            return name, entry, True
        content = content_of(path)
        size = decode.measure(content, path)
        return name, state + _FOUND.pack(samples.bytes_digest(content), *size, decode.remark(content)), False

    def broken(
        self, indices: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], *, what: str, progress: Progress
    ) -> dict[int, str]:
        """Decode the files whose content was not decoded before; return why some cannot be, by their place."""
        path = self._table("decoded", decode.decoder_name())
        known = set(recall(path, entry_bytes=samples.ID_BYTES))
        new = [place for place, digest in enumerate(digests) if digest.tobytes() not in known]

        def fault(number: int) -> str | None:
            place = new[number]
            file = self.paths[int(indices[place])]
            try:
                decode.check(self._surveyed(file, digests[place].tobytes()), file)
            except DatasetError as error:
                return str(error)
            return None

        found: dict[int, str] = {}
        done = 0
        for block in in_order(fault, len(new), workers=processors(), what=what, progress=progress) if new else ():
            found |= {new[done + at]: reason for at, reason in enumerate(block) if reason is not None}
            done += len(block)
        if len(found) < len(new):
            remember(path, [*known, *(digests[place].tobytes() for place in new if place not in found)])
        return found

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The file is gone, broken, or not the one that was surveyed.
        """
        path = self.paths[index]
        return decode.decode(self._surveyed(path, digest), path)

    def _surveyed(self, path: str, digest: bytes) -> bytes:
        content = content_of(path)
        if samples.bytes_digest(content) != digest:
            raise DatasetError(f"{path} changed after the dataset was loaded; start again to use the new file")
        return content


def content_of(path: str) -> bytes:
    """Read an image file, or the file that a link names.

    Raises:
        DatasetError: it cannot be read, is no regular file, or is larger than any image.
    """
    try:
        with open_regular(Path(path), follow=True) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _LARGEST_FILE:
                return file.read(_LARGEST_FILE)
    except OSError as error:
        raise _lost(path, error) from error
    raise DatasetError(f"{path} cannot be read: it has {size:,} bytes, expected at most {_LARGEST_FILE:,}; remove it")


def _lost(path: str, error: OSError) -> DatasetError:
    return DatasetError(f"{path} cannot be read: {error.strerror or error}; restore the file or its permissions")


def _settled(entry: bytes, now: int) -> bool:
    """Return whether a file is so old that a later edit changes its times, however coarse the clock."""
    _, modified, changed, _ = _STATE.unpack_from(entry)
    return bool(max(modified, changed) < now - _SETTLED_NS)


def _as_survey(found: list[bytes], broken: dict[int, str]) -> Survey:
    packed = np.frombuffer(
        b"".join(found), dtype=np.dtype([("digest", "u1", 16), ("size", "<u4", 2), ("remark", "u1")])
    )
    return Survey(packed["digest"].copy(), packed["size"].astype(np.int64), broken, packed["remark"].copy())


class Items(Protocol):
    """A sequence of ``(picture, label)``."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """Return one item."""
        ...


@dataclass(eq=False)
class ItemSource:
    """Items of a sequence that is opened when first needed, and again in each worker."""

    where: str
    """The sequence's name in messages."""
    open: Callable[[], Items]
    """Opens it; pickles."""
    opened: Items | None = None
    looked: dict[int, tuple[bytes, tuple[int, int]]] = field(default_factory=dict)
    """Digest and size of the items that were read before the survey."""

    parallel: bool = False

    def item(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Return the pixels, uint8 ``(3, height, width)``, and the label of one item.

        Raises:
            DatasetError: The item is not a pair of a picture and an integer.
        """
        if self.opened is None:
            self.opened = self.open()
        try:
            pair = self.opened[index]
        except Exception as error:  # the sequence is someone else's code
            raise DatasetError(f"{self.where}[{index}] raised {type(error).__name__}: {error}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            found = f"{len(pair)} values" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
            raise DatasetError(f"{self.where}[{index}] is {found}, expected a pair (picture, class index)")
        try:
            return decode.from_picture(pair[0]), as_label(pair[1])
        except ValueError as error:
            raise DatasetError(f"{self.where}[{index}] cannot be used: {error}") from error

    def labels(self, count: int, *, what: str, progress: Progress) -> npt.NDArray[np.int32]:
        """Return the labels of all items by reading each of them, for sequences that list no labels."""
        labels = np.empty(count, dtype=np.int64)
        with progress(what, total=count) as report:
            for index in range(count):
                pixels, labels[index] = self.item(index)
                self.looked[index] = samples.array_digest(pixels), pixels.shape[1:]
                report(1)
        return as_labels(labels)

    def survey(self, indices: npt.NDArray[np.int64], *, what: str, progress: Progress) -> Survey:
        """Return digests and sizes; read each item that was not read before."""
        found = []
        with progress(what, total=len(indices)) as report:
            for index in map(int, indices):
                if index not in self.looked:
                    pixels, _ = self.item(index)
                    self.looked[index] = samples.array_digest(pixels), pixels.shape[1:]
                found.append(self.looked[index])
                report(1)
        self.looked.clear()
        digests = samples.as_digests(b"".join(digest for digest, _ in found))
        return Survey(digests, np.asarray([size for _, size in found], dtype=np.int64))

    def broken(self, *_: object, **__: object) -> dict[int, str]:
        """Return nothing: the survey has read every item."""
        return {}

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The item cannot be used, or is not the one that was surveyed.
        """
        pixels, _ = self.item(index)
        if samples.array_digest(pixels) != digest:
            raise DatasetError(
                f"{self.where}[{index}] gave other pixels than before; "
                "items must always be the same, leave augmentation to the recipe"
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the opened sequence."""
        return {**self.__dict__, "opened": None}


def as_label(value: Any) -> int:
    """Return a label as an int.

    Raises:
        ValueError: It is not an integer.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"its label is {value!r}, expected an integer class index")
    return int(value)


def as_labels(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return labels as int32; a label that does not fit stays out of range instead of wrapping around."""
    return np.clip(values, -(2**31), 2**31 - 1).astype(np.int32)


def check_labels(labels: npt.NDArray[np.int32], classes: int, *, where: str) -> None:
    """Check that each label is a class index or -1.

    Raises:
        DatasetError: A label is below -1, or not below ``classes``.
    """
    wrong = np.flatnonzero((labels < -1) | (labels >= classes))
    if len(wrong):
        index = int(wrong[0])
        raise DatasetError(
            f"{where}[{index}] has the label {labels[index]}, expected 0..{classes - 1} "
            f"for its {classes} classes, or -1 for none ({len(wrong)} such samples)"
        )


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
