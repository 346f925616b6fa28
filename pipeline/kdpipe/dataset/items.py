"""Samples that are items of a Python sequence: published datasets and those of a user's function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import identity
from kdpipe.dataset.decode import from_picture
from kdpipe.dataset.source import Survey
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress


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
    """A sequence that is opened when it is first needed, and again in each worker."""

    where: str
    """How messages call the sequence."""
    open: Callable[[], Items]
    """Opens it; pickles."""
    opened: Items | None = None
    looked: dict[int, tuple[bytes, tuple[int, int]]] = field(default_factory=dict)
    """Digest and size of the items that were read before the survey."""

    parallel: bool = False

    def item(self, row: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Return the pixels, uint8 ``(3, height, width)``, and the label of one item.

        Raises:
            DatasetError: The item is not a pair of a picture and an integer.
        """
        if self.opened is None:
            self.opened = self.open()
        try:
            pair = self.opened[row]
        except Exception as error:  # the sequence is someone else's code
            raise DatasetError(f"{self.where}[{row}] raised {type(error).__name__}: {error}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            found = f"{len(pair)} values" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
            raise DatasetError(f"{self.where}[{row}] is {found}, expected a pair (picture, class index)")
        try:
            return from_picture(pair[0]), as_label(pair[1])
        except ValueError as error:
            raise DatasetError(f"{self.where}[{row}] cannot be used: {error}") from error

    def labels(self, count: int, *, what: str, progress: Progress) -> npt.NDArray[np.int32]:
        """Return the labels of all items by reading each of them, for sequences that do not list theirs."""
        labels = np.empty(count, dtype=np.int64)
        with progress(what, total=count) as report:
            for row in range(count):
                pixels, labels[row] = self.item(row)
                self.looked[row] = identity.array_digest(pixels), pixels.shape[1:]
                report(1)
        return as_labels(labels)

    def survey(self, rows: npt.NDArray[np.int64], *, what: str, progress: Progress) -> Survey:
        """Return digests and sizes, reading each item that was not read before."""
        found = []
        with progress(what, total=len(rows)) as report:
            for row in map(int, rows):
                if row not in self.looked:
                    pixels, _ = self.item(row)
                    self.looked[row] = identity.array_digest(pixels), pixels.shape[1:]
                found.append(self.looked[row])
                report(1)
        self.looked.clear()
        digests = identity.rows_of_digests(b"".join(digest for digest, _ in found))
        return Survey(digests, np.asarray([size for _, size in found], dtype=np.int64))

    def read(self, row: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The item cannot be used, or is not the one that was surveyed.
        """
        pixels, _ = self.item(row)
        if identity.array_digest(pixels) != digest:
            raise DatasetError(
                f"{self.where}[{row}] gave other pixels than before; "
                "items must always be the same, leave augmentation to the recipe"
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Leave the opened sequence out."""
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
    """Return labels as int32; what does not fit is kept out of range rather than wrapped."""
    return np.clip(values, -(2**31), 2**31 - 1).astype(np.int32)


def check_labels(labels: npt.NDArray[np.int32], classes: int, *, where: str) -> None:
    """Refuse labels that name no class.

    Raises:
        DatasetError: A label is below -1, or not below ``classes``.
    """
    wrong = np.flatnonzero((labels < -1) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DatasetError(
            f"{where}[{row}] has the label {labels[row]}, expected 0..{classes - 1} "
            f"for its {classes} classes, or -1 for none ({len(wrong)} such samples)"
        )
