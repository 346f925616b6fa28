"""Datasets whose images are only listed at first, and are learned of by the pass that reads them.

Reading and hashing all files before a teacher's pass reads them costs a second read. Here content digests and sizes
are zeros until an image is read; what is learned is remembered at once, as it is where files are read before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.ids import find_ids, identity
from kdpipe.dataset.names import Names
from kdpipe.dataset.registry import LOOKED, Digests, Indices, Looking, Records, Source, Survey
from kdpipe.dataset.samples import Dataset
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress, silent

_TRIED = 64
"""Images whose headers tell whether all of them fit in memory."""
_BLANK = (3, 32, 32)
"""Shape of the black image that stands for one that was removed."""


def is_unread(dataset: Dataset) -> bool:
    """Return whether the content of some images is unknown yet."""
    return not bool(dataset.content_digests.any(axis=1).all())


def unread_survey(source: Source, indices: Indices, *, streamed_above: int | None, progress: Progress) -> Survey | None:
    """Return what is remembered of images that will be streamed, without reading them.

    ``None`` where all is known, or the images must be read first: because the source learns nothing as it reads, or
    because their pixels, by the headers of some of them, take at most ``streamed_above`` bytes.
    """
    if streamed_above is None or not isinstance(source, Looking):
        return None
    found = source.recall(indices)
    unknown = np.flatnonzero(~found.digests.any(axis=1))
    if not len(unknown):
        return None
    if streamed_above >= 0:
        places = unknown[np.linspace(0, len(unknown) - 1, min(_TRIED, len(unknown))).astype(np.int64)]
        tried = source.survey(indices[places], what="trying images", progress=progress)
        if tried.broken:
            return None
        known = float(found.sizes.prod(axis=1).sum())
        if 3 * (known + float(tried.sizes.prod(axis=1).mean()) * len(unknown)) <= streamed_above:
            return None
    return found


def surveyed(dataset: Dataset, indices: Indices, *, progress: Progress = silent) -> Dataset:
    """Read the images at ``indices`` whose content is unknown, and return the dataset with what they hold.

    Raises:
        DatasetError: one of them cannot be used.
    """
    there = dataset.source_indices[indices] >= 0
    unknown = indices[there & ~dataset.content_digests[indices].any(axis=1)]
    if not len(unknown):
        return dataset
    found = dataset.source.survey(
        dataset.source_indices[unknown],
        what=f"checking {dataset.split}",
        progress=progress,
        processes=dataset.workers or 1,
    )
    for reason in found.broken.values():
        raise DatasetError(reason)
    learned = Learned(dataset)
    learned.digests[unknown], learned.sizes[unknown] = found.digests, found.sizes
    return learned.dataset()


class Learned:
    """Digests, sizes and remarks of a dataset's images, as they are read."""

    def __init__(self, dataset: Dataset) -> None:
        """Begin with what is known of ``dataset``."""
        self._dataset = dataset
        self.digests, self.sizes = dataset.content_digests.copy(), dataset.sizes.copy()
        self.remarks = np.zeros(len(dataset), dtype=np.uint8)

    def add(self, indices: Indices, looked: Records, remember: Callable[[Indices, Records], None]) -> None:
        """Add what was learned of the images at ``indices``, ``LOOKED``, and remember what is new."""
        new = ~self.digests[indices].any(axis=1) & looked["digest"].any(axis=1)
        self.digests[indices], self.sizes[indices] = looked["digest"], looked["size"]
        self.remarks[indices] |= looked["remarks"]
        if new.any():
            remember(self._dataset.source_indices[indices[new]], looked[new])

    def dataset(self) -> Dataset:
        """Return the dataset with what is known of it now."""
        own = self._dataset
        known = identity(own.sample_ids, self.digests, classes=own.classes)
        return replace(own, content_digests=self.digests, sizes=self.sizes, fingerprint=known)


@dataclass(frozen=True, eq=False)
class _PartlyGone:
    """A source some of whose images were removed: those at the index -1 are black, and have no content."""

    source: Looking

    parallel: bool = True

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image; see ``Source``."""
        return np.zeros(_BLANK, dtype=np.uint8) if index < 0 else self.source.read(index, digest)  # type: ignore[attr-defined]

    def look(self, index: int, digest: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Return one image and what was learned of it; see ``Looking``."""
        if index >= 0:
            return self.source.look(index, digest)
        found = np.zeros((), dtype=LOOKED)
        found["size"] = _BLANK[1:]
        return np.zeros(_BLANK, dtype=np.uint8), found

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the source, which is only called for images that exist."""
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


def arranged(dataset: Dataset, ids: Digests) -> Dataset | None:
    """Return a dataset with the samples ``ids``, ``(n, 16)``, in their order; ``None`` if it lacks most of them.

    Those that it lacks are black images without a label, whose content digest stays zero, so that no image is ever
    taken for them.
    """
    index = find_ids(ids, dataset.sample_ids)
    gone = index < 0
    if 2 * int(gone.sum()) > len(ids):
        return None
    if not gone.any():
        in_order = np.array_equal(index, np.arange(len(dataset)))
        return dataset if in_order else replace(dataset.subset(index), origin=None)
    assert isinstance(dataset.source, Looking)
    names: Sequence[str] = [
        f"removed {key.tobytes().hex()}" if away else dataset.keys[at]
        for key, away, at in zip(ids, gone, index.tolist(), strict=True)
    ]
    digests = np.where(gone[:, None], np.uint8(0), dataset.content_digests[index])
    return replace(
        dataset,
        keys=Names.of(names),
        labels=np.where(gone, -1, dataset.labels[index]).astype(np.int32),
        sample_ids=ids,
        content_digests=digests,
        fingerprint=identity(ids, digests, classes=dataset.classes),
        sizes=np.where(gone[:, None], 1, dataset.sizes[index]),
        source=_PartlyGone(dataset.source),
        source_indices=np.where(gone, -1, dataset.source_indices[index]),
        buffer=None,
        buffer_indices=np.arange(len(ids)),
        origin=None,
    )
