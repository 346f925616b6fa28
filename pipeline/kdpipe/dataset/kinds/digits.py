"""``digits``: scikit-learn's handwritten digits."""

from __future__ import annotations

import gzip
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.ids import sample_id
from kdpipe.dataset.items import ItemSource
from kdpipe.dataset.registry import Listing, Request, register

SCALE = 4
"""Side of the square that each of the 8 x 8 pixels becomes."""


@register("digits", source="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html")
def list_digits(request: Request) -> Listing:
    """The 1,797 handwritten digits of scikit-learn, 32 x 32, for trying things out; needs no download.

    Keys hold the index in scikit-learn's order.
    """
    split = request.split
    indices, labels = _members(split)
    return Listing(
        name="digits",
        classes=tuple("0123456789"),
        keys=tuple(f"digits/{split}/{index}" for index in indices),
        labels=labels.astype(np.int32),
        source=ItemSource(f"digits {split}", partial(open_digits, split)),
    )


def open_digits(split: str) -> list[tuple[npt.NDArray[np.uint8], int]]:
    """Return the pictures, uint8 ``(32, 32)``, and labels of a split.

    The levels 0..16 become 0..255, rounded.
    """
    indices, labels = _members(split)
    levels = _published()[indices, :64].reshape(-1, 8, 8).astype(np.uint32)
    small = ((levels * 255 + 8) // 16).astype(np.uint8)
    pictures = small.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return [(picture, int(label)) for picture, label in zip(pictures, labels, strict=True)]


def _members(split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the indices and labels of a split: the fifth of each class with the lowest hashes is test."""
    labels = _published()[:, 64].astype(np.int64)
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = sorted(np.flatnonzero(labels == label), key=lambda index: sample_id(f"digits/{index}"))
        in_test[members[: round(len(members) / 5)]] = True
    indices = np.flatnonzero(in_test == (split == "test"))
    return indices, labels[indices]


@cache
def _published() -> npt.NDArray[np.float64]:
    """Return the levels 0..16 of each digit's 64 pixels, and its class, ``(1797, 65)``.

    scikit-learn's file is read without importing scikit-learn, which takes a second.
    """
    (folder,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr,misc]
    with gzip.open(Path(folder) / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")
