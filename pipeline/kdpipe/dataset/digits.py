"""``digits``: the 1,797 handwritten digits that come with scikit-learn; needs no download."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.identity import sample_id
from kdpipe.dataset.items import ItemSource
from kdpipe.dataset.source import Listing

SCALE = 4
"""Each of the 8 x 8 pixels is shown as a square of this width."""


def list_digits(split: str) -> Listing:
    """List the digits of a split; keys hold the index in scikit-learn's order."""
    rows, labels = _members(split)
    return Listing(
        name="digits",
        classes=tuple("0123456789"),
        keys=tuple(f"digits/{split}/{row}" for row in rows),
        labels=labels.astype(np.int32),
        source=ItemSource(f"digits {split}", partial(open_digits, split)),
    )


def open_digits(split: str) -> list[tuple[npt.NDArray[np.uint8], int]]:
    """Return the pictures, uint8 ``(32, 32)``, and labels of a split.

    The levels 0..16 become 0..255, rounded.
    """
    from sklearn.datasets import load_digits

    rows, labels = _members(split)
    levels = load_digits().images[rows].astype(np.uint32)
    small = ((levels * 255 + 8) // 16).astype(np.uint8)
    pictures = small.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return [(picture, int(label)) for picture, label in zip(pictures, labels, strict=True)]


def _members(split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices and labels of a split: of each class, the fifth with the lowest hashes is test."""
    from sklearn.datasets import load_digits

    labels = np.asarray(load_digits().target, dtype=np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = sorted(np.flatnonzero(labels == label), key=lambda row: sample_id(f"digits/{row}"))
        in_test[members[: round(len(members) / 5)]] = True
    rows = np.flatnonzero(in_test == (split == "test"))
    return rows, labels[rows]
