"""Class names and labels from a column of class indices or class names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.items import as_labels, check_labels
from kdpipe.dataset.names import nfc
from kdpipe.errors import DatasetError
from kdpipe.reading import read_bytes

Column = npt.NDArray[Any]
"""Class indices, int64, or class names, ``object`` with ``None`` for no label; ``(n,)``."""

SUPPORTED = "kdpipe trains classifiers: expected one class index or class name for each image"
_MOST_CLASSES = 1_000_000


def column(values: Sequence[int | str | None], *, where: str) -> Column:
    """Return a column of labels; integers that are ``None`` become -1.

    Raises:
        DatasetError: the values are of other types, or of both.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        try:
            return np.array([-1 if value is None else value for value in values], dtype=np.int64)
        except OverflowError:
            raise DatasetError(f"{where} has labels beyond 64 bits, {SUPPORTED}") from None
    if kinds == {str}:
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found
    raise DatasetError(
        f"{where} has labels of the types {', '.join(sorted(kind.__name__ for kind in kinds))}, {SUPPORTED}"
    )


def class_names(train: Column, *, where: str) -> tuple[str, ...]:
    """Return the class names of training labels: the different names in their order, or the numbers from 0.

    Raises:
        DatasetError: there is no label.
    """
    if train.dtype == object:
        names = tuple(sorted({nfc(value) for value in train if value is not None}))
    else:
        most = int(train.max(initial=-1))
        if most >= _MOST_CLASSES:
            raise DatasetError(f"{where} has the label {most:,}, expected class indices below {_MOST_CLASSES:,}")
        names = tuple(str(index) for index in range(most + 1))
    if not names:
        raise DatasetError(f"{where} has no labels, {SUPPORTED}")
    return names


def refuse_indices(values: Column, train: Column, *, where: str) -> None:
    """Refuse class indices where training has class names.

    Raises:
        DatasetError: there is one.
    """
    if train.dtype == object and values.dtype != object and (values >= 0).any():
        raise DatasetError(f"{where} has class indices, the labels of training are class names; write both as names")


def class_labels(values: Column, classes: Sequence[str], *, where: str) -> npt.NDArray[np.int32]:
    """Return the class index of each label, ``(n,)``; -1 for none.

    Raises:
        DatasetError: a label is no class.
    """
    if values.dtype != object:
        labels = as_labels(values)
        check_labels(labels, len(classes), where=where)
        return labels
    place: dict[str | None, int] = {name: index for index, name in enumerate(classes)} | {None: -1}
    found = [place.get(value if value is None else nfc(value), -2) for value in values]
    if -2 in found:
        lost = values[found.index(-2)]
        raise DatasetError(
            f"{where} has the label {lost!r:.80}, which is none of the {len(classes)} classes of training "
            f"({', '.join(classes[:4])}{', …' if len(classes) > 4 else ''}); remove such samples, or correct the label"
        )
    return np.array(found, dtype=np.int32)


def checked_names(names: Sequence[Any], *, where: str) -> tuple[str, ...]:
    """Return class names that are given, in Unicode form NFC.

    Raises:
        DatasetError: they are not different strings.
    """
    found = tuple(nfc(name) for name in names if isinstance(name, str) and name)
    if len(found) != len(names) or len(set(found)) != len(found) or not found:
        raise DatasetError(f"{where} must be different class names, at least one; found {list(names)!r:.120}")
    return found


def names_from(path: str) -> tuple[str, ...]:
    """Return the class names in a text file, one in each line.

    Raises:
        DatasetError: it cannot be read, or its lines are not different names.
    """
    file = Path(path).expanduser()
    try:
        text = read_bytes(file, limit=64 * 1024**2, error=DatasetError, follow=True)
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DatasetError(f"{file} is not text in UTF-8, expected a class name in each line") from None
    return checked_names([line.strip() for line in lines if line.strip()], where=str(file))
