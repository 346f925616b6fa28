"""The samples of a split: keys, labels and digests, and pixels on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.choice import balanced_indices
from kdpipe.dataset.forms import Form, unit
from kdpipe.dataset.ids import array_digest, as_digests, identity
from kdpipe.dataset.names import Names
from kdpipe.dataset.pixels import PixelBuffer, open_cache
from kdpipe.dataset.registry import LOOKED, Channels, Looking, Source
from kdpipe.errors import DatasetError, UnreadError
from kdpipe.progress import Progress, silent

if TYPE_CHECKING:
    import torch

STATISTICS_SAMPLES = 10_000
"""The statistics of a larger dataset are those of this many of its samples."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The samples of one split in a fixed order; all arrays have one entry for each sample.

    Pickles without the pixels: a worker maps the cache again, or decodes from the source where there is none.
    """

    spec: str
    """The spec that was given to ``load``."""
    name: str
    split: str
    """``train`` or ``test``."""
    classes: tuple[str, ...]
    keys: Sequence[str]
    """The stable name of each sample; equal to a tuple of them."""
    labels: npt.NDArray[np.int32]
    """Class index of each sample, ``(n,)``; -1 for none."""
    sample_ids: npt.NDArray[np.uint8]
    """BLAKE3-128 of each key, ``(n, 16)``; of a file that was moved since a store was made, the store's."""
    content_digests: npt.NDArray[np.uint8]
    """BLAKE3-128 of each file's bytes, or of each array and its shape, ``(n, 16)``; zeros where it is unknown yet."""
    fingerprint: str
    """32 hex digits over ids, content digests and class names, in order."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""
    source: Source
    source_indices: npt.NDArray[np.int64]
    """Index of each sample in ``source``, ``(n,)``."""
    buffer: PixelBuffer | None
    """The decoded pixels, when in memory."""
    buffer_indices: npt.NDArray[np.int64]
    """Index of each sample in ``buffer``, ``(n,)``."""
    origin: Dataset | None = None
    """The loaded dataset that a subset was taken from, whose ``buffer`` it shares; None in a loaded one."""
    published_statistics: tuple[Channels, Channels] | None = None
    """Mean and standard deviation of each channel, where the dataset's kind has published ones."""
    notes: tuple[str, ...] = ()
    """Lines for the user on the images that were loaded."""
    workers: int | None = None
    """Worker processes that read and decode streamed images; None for one for each processor."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.keys)

    def __repr__(self) -> str:
        """Return spec, split, number of samples and fingerprint in one line."""
        return f"Dataset({self.spec!r}, {self.split!r}, {len(self)} samples, fingerprint {self.fingerprint})"

    @property
    def whole(self) -> Dataset:
        """The dataset that this one was taken from by one or more ``subset``; itself if by none."""
        return self if self.origin is None else self.origin

    @property
    def in_memory(self) -> bool:
        """Whether images are slices of decoded pixels, rather than decoded at each use."""
        return self.buffer is not None

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width when all images have the same, else None.

        Raises:
            UnreadError: the images were not read yet.
        """
        if not self.sizes.all():
            raise UnreadError(f"the sizes of the images of {self.spec} are unknown until they are read")
        if (self.sizes != self.sizes[0]).any():
            return None
        return int(self.sizes[0, 0]), int(self.sizes[0, 1])

    @property
    def pixels(self) -> torch.Tensor | None:
        """All images as uint8 ``(n, 3, height, width)``, or None when streaming or of mixed sizes.

        Shares the memory map when the samples lie in it without gaps; other subsets are copied at each call.
        Treat it as read-only: a write changes the pixels of this process, though not the cache.
        """
        import torch

        if self.buffer is None or self.image_size is None:
            return None
        first, count = int(self.buffer_indices[0]), len(self)
        if np.array_equal(self.buffer_indices, np.arange(first, first + count)):
            begin, end = self.buffer.starts[first], self.buffer.starts[first + count]
            return torch.from_numpy(self.buffer.flat[begin:end].reshape(count, 3, *self.image_size))
        return torch.stack([torch.from_numpy(self.buffer.image(int(index))) for index in self.buffer_indices])

    @property
    def form(self) -> Form | None:
        """The form of the items where they are tensors, whose images are packed tensors; None for images."""
        found: Form | None = getattr(self.source, "form", None)
        return found

    @property
    def unit(self) -> str:
        """The word for several of its items: images, or samples where they are tensors."""
        return unit(self.form)

    def image(self, index: int) -> torch.Tensor:
        """Return one image, uint8 ``(3, height, width)``; may be called from several threads for files.

        Raises:
            DatasetError: When streaming, if the image cannot be decoded, or has changed since it was loaded.
        """
        import torch

        return torch.from_numpy(self._array(index))

    def images(self, indices: Sequence[int] | npt.NDArray[Any]) -> list[torch.Tensor]:
        """Return several images, each as ``image`` does."""
        return [self.image(int(index)) for index in indices]

    def look(self, indices: Sequence[int] | npt.NDArray[Any]) -> tuple[list[torch.Tensor], npt.NDArray[Any]]:
        """Return several images as ``images`` does, and what was learned of each, ``LOOKED`` ``(k,)``."""
        import torch

        images, looked = [], np.zeros(len(indices), dtype=LOOKED)
        for place, index in enumerate(indices):
            pixels, looked[place] = self._look(int(index))
            images.append(torch.from_numpy(pixels))
        return images, looked

    def _look(self, index: int) -> tuple[npt.NDArray[np.uint8], Any]:
        digest = self.content_digests[index]
        look = getattr(self.source, "look", None)  # isinstance takes as long as decoding a small image
        if self.buffer is None and look is not None:
            pixels, found = look(int(self.source_indices[index]), digest.tobytes())
            return pixels, found
        pixels = self._array(index)
        of_pixels = digest if self.digests_pixels else np.frombuffer(array_digest(pixels), dtype=np.uint8)
        found = np.zeros((), dtype=LOOKED)
        found["digest"], found["size"], found["pixels"] = digest, pixels.shape[1:], of_pixels
        return pixels, found

    @property
    def digests_pixels(self) -> bool:
        """Whether content digests are those of pixels, as those of arrays are."""
        return bool(getattr(self.source, "digests_pixels", False))

    def pixel_digests(self, indices: npt.NDArray[np.int64], *, progress: Progress = silent) -> npt.NDArray[np.uint8]:
        """Return the digest of shape and pixels of some decoded images, uint8 ``(k, 16)``.

        Those of streamed files are remembered; the others are decoded.

        Raises:
            DatasetError: as for ``image``.
        """
        if self.digests_pixels:
            return self.content_digests[indices]
        if self.buffer is None and isinstance(self.source, Looking):
            return self.source.pixel_digests(
                self.source_indices[indices],
                self.content_digests[indices],
                what=f"decoding {self.split}",
                progress=progress,
                processes=self.workers or 1,
            )
        return as_digests(b"".join(array_digest(self._array(int(index))) for index in indices))

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Dataset:
        """Return the dataset of these samples, in this order; each keeps its key, id and pixels.

        Raises:
            DatasetError: No index is given, or one is given twice.
            IndexError: An index is out of range.
        """
        return _take(self, np.arange(len(self))[np.asarray(indices, dtype=np.int64)])

    def statistics(self) -> tuple[Channels, Channels]:
        """Return mean and standard deviation of each channel, in 0..1.

        The published ones for CIFAR; otherwise those of all pixels, or of 10,000 samples chosen by their ids
        where there are more; rounded to four digits. The deviation is never 0.
        """
        return self.published_statistics or _channel_statistics(self.sample_ids, self._array)

    def _array(self, index: int) -> npt.NDArray[np.uint8]:
        if self.buffer is not None:
            return self.buffer.image(int(self.buffer_indices[index]))
        return self.source.read(int(self.source_indices[index]), self.content_digests[index].tobytes())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without pixels, with the file they are mapped from. A subset shares its origin's."""
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


def _take(dataset: Dataset, indices: npt.NDArray[np.int64]) -> Dataset:
    if len(indices) == 0:
        raise DatasetError(f"a subset of {dataset.spec} would be empty; give at least one index")
    chosen, first = np.unique(indices, return_index=True)
    if len(chosen) < len(indices):
        key = dataset.keys[indices[np.setdiff1d(np.arange(len(indices)), first)[0]]]
        raise DatasetError(f"two samples have the key {key!r} in a subset of {dataset.spec}; give each index once")
    ids = dataset.sample_ids[indices]
    digests = dataset.content_digests[indices]
    return Dataset(
        spec=dataset.spec,
        name=dataset.name,
        split=dataset.split,
        classes=dataset.classes,
        keys=Names.of(dataset.keys).take(indices),
        labels=dataset.labels[indices],
        sample_ids=ids,
        content_digests=digests,
        fingerprint=identity(ids, digests, classes=dataset.classes),
        sizes=dataset.sizes[indices],
        source=dataset.source,
        source_indices=dataset.source_indices[indices],
        buffer=dataset.buffer,
        buffer_indices=dataset.buffer_indices[indices],
        origin=dataset.whole,
        published_statistics=dataset.published_statistics,
        workers=dataset.workers,
    )


def _channel_statistics(
    ids: npt.NDArray[np.uint8], image: Callable[[int], npt.NDArray[np.uint8]]
) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel, in 0..1, rounded to four digits.

    Sums are exact integers, so the result does not depend on how the pixels are kept or ordered.
    """
    chosen = balanced_indices(ids, np.zeros(len(ids), dtype=np.int32), limit=STATISTICS_SAMPLES)
    levels = np.arange(256, dtype=np.int64)
    counts = np.zeros((3, 256), dtype=np.int64)
    for index in chosen:
        pixels = image(int(index))
        for channel in range(3):
            counts[channel] += np.bincount(pixels[channel].reshape(-1), minlength=256)
    total = counts.sum(axis=1)
    mean = (counts @ levels) / total
    variance = np.maximum((counts @ levels**2) / total - mean**2, 0)
    deviation = np.maximum(np.sqrt(variance), 1.0)
    return _rounded(mean), _rounded(deviation)


def _rounded(levels: npt.NDArray[np.float64]) -> Channels:
    red, green, blue = (round(float(level) / 255, 4) for level in levels)
    return red, green, blue
