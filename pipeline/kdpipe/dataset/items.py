"""Sources of pixels, or of packed tensors, that are items of Python sequences.

Every item is looked at once to learn its digest and size. A sequence that gives digests or a fingerprint of its items
has this remembered in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import decode
from kdpipe.dataset.caching import cache_directory
from kdpipe.dataset.forms import Form, unit
from kdpipe.dataset.ids import ID_BYTES, array_digest, find_ids, sample_id
from kdpipe.dataset.registry import Indices, Records, Survey
from kdpipe.dataset.tables import Table
from kdpipe.dataset.workers import look_at, placed
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress

_FOUND = np.dtype([("digest", "u1", ID_BYTES), ("size", "<u4", 2), ("label", "<i8")])
_ENTRY = np.dtype([("name", "u1", ID_BYTES), ("found", _FOUND)])
_SLOW = 500e-6
"""Seconds for an item from which worker processes open the sequence, too; one in memory is quicker."""


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
    names: npt.NDArray[np.uint8] | None = None
    """16 bytes for each item that change with its content, ``(n, 16)``, by which it is remembered; None for none."""
    looked: Records = field(default_factory=lambda: np.empty(0, dtype=_FOUND))
    """Records of all items that were known before the survey."""
    form: Form | None = None
    """The form of items that are tensors, of the first one read; None for pictures, and before the survey."""
    settled: bool = False
    """Whether the form is known."""
    first: tuple[int, Any] | None = None
    """The item that the form was taken from, with its index, so that it is not read twice."""

    parallel: bool = False
    digests_pixels: bool = True
    """Whether content digests are those of pixels."""

    def item(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Return the pixels or the packed tensors, uint8 ``(3, height, width)``, and the label of one item.

        Raises:
            DatasetError: The item is not a pair of a picture, or of tensors of the form, and an integer.
        """
        pair = self._settle(index)
        try:
            return self._pixels(pair[0]), as_label(pair[1])
        except ValueError as error:
            raise DatasetError(f"{self.where}[{index}] cannot be used: {error}") from error

    def _pixels(self, item: Any) -> npt.NDArray[np.uint8]:
        return decode.from_picture(item) if self.form is None else self.form.pack(item)

    def _settle(self, index: int) -> Any:
        """Return one item as the sequence has it; the form of all is taken from the first."""
        if self.first is not None and self.first[0] == index:
            (_, pair), self.first = self.first, None
            return pair
        pair = self._pair(index)
        if not self.settled:
            try:
                self.form, self.settled = Form.of(pair[0]), True
            except ValueError as error:
                raise DatasetError(f"{self.where}[{index}] cannot be used: {error}") from error
        return pair

    def _pair(self, index: int) -> Any:
        if self.opened is None:
            self.opened = self.open()
        try:
            pair = self.opened[index]
        except Exception as error:  # the sequence is someone else's code
            raise DatasetError(f"{self.where}[{index}] raised {type(error).__name__}: {error}") from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            found = f"{len(pair)} values" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
            raise DatasetError(f"{self.where}[{index}] is {found}, expected a pair (item, class index)")
        return pair

    def labels(self, count: int, *, what: str, progress: Progress, processes: int = 1) -> npt.NDArray[np.int32]:
        """Return the labels of all items by reading each of them, for sequences that list no labels."""
        self.looked = self._look(np.arange(count), what=what, progress=progress, processes=processes)
        return as_labels(self.looked["label"])

    def survey(
        self,
        indices: Indices,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
        streamed_above: int | None = None,  # noqa: ARG002 (an item is decoded in any case)
    ) -> Survey:
        """Return digests and sizes; read each item that was not read before."""
        if len(self.looked):
            found = self.looked[indices]
            with progress(what, total=len(found), unit=unit(self.form)) as report:
                report(len(found))
            self.looked = self.looked[:0]
        else:
            found = self._look(indices, what=what, progress=progress, processes=processes)
        return Survey(found["digest"].copy(), found["size"].astype(np.int64))

    def _look(self, indices: Indices, *, what: str, progress: Progress, processes: int) -> Records:
        """Return digest, size and label of items, ``_FOUND`` ``(k,)``; read those that are not remembered."""
        name = sample_id(f"items 1 {self.where}").hex()
        table = Table(cache_directory() / "digests" / f"{name}.bin", _ENTRY)
        entries = np.zeros(len(indices), dtype=_ENTRY)
        new = np.arange(len(indices))
        if self.names is not None:
            entries["name"] = self.names[indices]
            known = table.read()
            rows = find_ids(entries["name"], known["name"])
            entries["found"][rows >= 0] = known["found"][rows[rows >= 0]]
            new = np.flatnonzero(rows < 0)
        # Packed tensors have a height of 1, and hardly a picture has.
        are_flat = len(indices) > 0 and bool((entries["found"]["size"][:, 0] == 1).all())
        if len(new) or are_flat:
            index = int(indices[new[0] if len(new) else 0])
            self.first = index, self._settle(index)
        self.settled = True
        shown = progress(what, total=len(indices), unit=unit(self.form))
        with shown as report, table.saving() as save:
            report(len(indices) - len(new))
            found = look_at(_found, (self, indices[new]), len(new), processes=processes, least=_SLOW)
            for places, block, _ in placed(found, new, report):
                entries["found"][places] = np.array(block, dtype=_FOUND)
                if self.names is not None:
                    save(entries[places])
        return entries["found"]

    def broken(self, *_: object, **__: object) -> dict[int, str]:
        """Return nothing: the survey has read every item."""
        return {}

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``.

        Raises:
            DatasetError: The item cannot be used, or is not the one that was surveyed.
        """
        pixels, _ = self.item(index)
        if array_digest(pixels) != digest:
            reason = "items must always be the same, leave augmentation to the recipe"
            if self.names is not None:
                reason = "items with the same digest, or in a sequence with the same fingerprint, must be the same"
            raise DatasetError(f"{self.where}[{index}] gave other pixels than before; {reason}")
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the opened sequence and what only the survey needs."""
        return {**self.__dict__, "opened": None, "looked": self.looked[:0], "names": None, "first": None}


def _found(items: tuple[ItemSource, Indices], index: int, _: bool) -> tuple[Any, ...]:
    """Return digest, size and label of an item, as ``_FOUND``."""
    source, indices = items
    pixels, label = source.item(int(indices[index]))
    return tuple(array_digest(pixels)), pixels.shape[1:], label


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
