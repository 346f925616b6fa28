"""What every kind of dataset gives, and the dataset itself: identity first, pixels on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import identity, statistics
from kdpipe.dataset.pixels import PixelBuffer, open_cache
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of some samples once their content has been looked at."""

    digests: npt.NDArray[np.uint8]
    """Content digests, ``(n, 16)``."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""


class Source(Protocol):
    """Where pixels come from. Pickles without them, so that workers open it anew."""

    @property
    def parallel(self) -> bool:
        """Whether ``read`` may be called from several threads at once."""
        ...

    def survey(self, rows: npt.NDArray[np.int64], *, what: str, progress: Progress) -> Survey:
        """Return content digests and image sizes of ``rows``."""
        ...

    def read(self, row: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``, if its content still has this digest.

        Raises:
            DatasetError: The image cannot be decoded, or has changed.
        """
        ...


@dataclass(frozen=True, eq=False)
class Listing:
    """All samples of a split, before any pixels are looked at."""

    name: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    source: Source


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The samples of one split in a fixed order; all arrays have one row for each sample.

    Pickles without the pixels: a worker maps the cache again, or decodes from the source where there is none.
    """

    spec: str
    """What it was loaded from, as given to ``load``."""
    name: str
    split: str
    """``train`` or ``test``."""
    classes: tuple[str, ...]
    keys: tuple[str, ...]
    """The stable name of each sample."""
    labels: npt.NDArray[np.int32]
    """Class index of each sample, ``(n,)``; -1 for none."""
    sample_ids: npt.NDArray[np.uint8]
    """BLAKE3-128 of each key, ``(n, 16)``."""
    content_digests: npt.NDArray[np.uint8]
    """BLAKE3-128 of each file's bytes, or of each array and its shape, ``(n, 16)``."""
    fingerprint: str
    """32 hex digits over ids, content digests and class names, in order."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""
    source: Source
    source_rows: npt.NDArray[np.int64]
    """Which row of ``source`` each sample is, ``(n,)``."""
    buffer: PixelBuffer | None
    """The decoded pixels, when in memory."""
    buffer_rows: npt.NDArray[np.int64]
    """Which image of ``buffer`` each sample is, ``(n,)``."""
    origin: Dataset | None = None
    """The loaded dataset that a subset was taken from, whose ``buffer`` it shares; None in a loaded one."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def __repr__(self) -> str:
        """Say which samples these are, in one line."""
        return f"Dataset({self.spec!r}, {self.split!r}, {len(self)} samples, fingerprint {self.fingerprint})"

    @property
    def whole(self) -> Dataset:
        """The dataset that this one was taken from by ``subset``, however often; itself where it was not."""
        return self if self.origin is None else self.origin

    @property
    def in_memory(self) -> bool:
        """Whether images are sliced from decoded pixels rather than decoded at each use."""
        return self.buffer is not None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width when all images have the same, else None."""
        if (self.sizes != self.sizes[0]).any():
            return None
        return int(self.sizes[0, 0]), int(self.sizes[0, 1])

    @property
    def pixels(self) -> torch.Tensor | None:
        """All images as uint8 ``(n, 3, height, width)``, or None when streaming or of mixed sizes.

        Shares the memory map when the samples lie in it without gaps; other subsets are copied at each call.
        Treat it as read-only: a write would be seen by this process, though never by the cache.
        """
        if self.buffer is None or self.image_size is None:
            return None
        first, count = int(self.buffer_rows[0]), len(self)
        if np.array_equal(self.buffer_rows, np.arange(first, first + count)):
            begin, end = self.buffer.starts[first], self.buffer.starts[first + count]
            return torch.from_numpy(self.buffer.flat[begin:end].reshape(count, 3, *self.image_size))
        return torch.stack([self.buffer.image(int(row)) for row in self.buffer_rows])

    def image(self, index: int) -> torch.Tensor:
        """Return one image, uint8 ``(3, height, width)``; may be called from several threads for files.

        Raises:
            DatasetError: When streaming, if the image cannot be decoded, or has changed since the loading.
        """
        if self.buffer is not None:
            return self.buffer.image(int(self.buffer_rows[index]))
        digest = self.content_digests[index].tobytes()
        return torch.from_numpy(self.source.read(int(self.source_rows[index]), digest))

    def images(self, indices: Sequence[int] | npt.NDArray[Any]) -> list[torch.Tensor]:
        """Return several images, each as ``image`` does."""
        return [self.image(int(index)) for index in indices]

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Dataset:
        """Return the dataset of these samples, in this order; each keeps its key, id and pixels.

        Raises:
            DatasetError: No index is given, or one is given twice.
            IndexError: An index is out of range.
        """
        rows = np.arange(len(self))[np.asarray(indices, dtype=np.int64)]
        return _take(self, rows)

    def statistics(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return mean and standard deviation of each channel, in 0..1.

        The published ones for CIFAR; otherwise those of all pixels, or of 10,000 samples chosen by their ids
        where there are more; rounded to four digits. The deviation is never 0.
        """
        return statistics.channel_statistics(self.spec, self.sample_ids, image=self.image)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the pixels out; remember where they are mapped from. A subset shares them with its origin."""
        if self.origin is not None and self.buffer is self.origin.buffer:
            return {**self.__dict__, "buffer": None}
        path = self.buffer.path if self.buffer is not None else None
        sizes = self.buffer.sizes if self.buffer is not None and path is not None else None
        return {**self.__dict__, "buffer": (path, sizes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pixels again, or decode from the source from now on."""
        if state["buffer"] is None:
            buffer = state["origin"].buffer
        else:
            path, sizes = state["buffer"]
            buffer = open_cache(path, sizes, check=False) if path is not None else None
        self.__dict__.update(state, buffer=buffer)


def _take(dataset: Dataset, rows: npt.NDArray[np.int64]) -> Dataset:
    if len(rows) == 0:
        raise DatasetError(f"a subset of {dataset.spec} would be empty; give at least one index")
    keys = tuple(dataset.keys[row] for row in rows)
    ids = identity.sample_ids(keys)
    digests = dataset.content_digests[rows]
    return Dataset(
        spec=dataset.spec,
        name=dataset.name,
        split=dataset.split,
        classes=dataset.classes,
        keys=keys,
        labels=dataset.labels[rows],
        sample_ids=ids,
        content_digests=digests,
        fingerprint=identity.fingerprint(ids, digests, classes=dataset.classes),
        sizes=dataset.sizes[rows],
        source=dataset.source,
        source_rows=dataset.source_rows[rows],
        buffer=dataset.buffer,
        buffer_rows=dataset.buffer_rows[rows],
        origin=dataset.whole,
    )
