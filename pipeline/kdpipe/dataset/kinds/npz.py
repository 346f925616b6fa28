"""``npz:FILE``: pictures or tensors in NumPy arrays.

A file has ``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` (or ``x_train``, ``y_train``, ...;
``val`` or ``valid`` in place of ``test``), or a folder has ``train.npz`` and ``test.npz`` with ``images`` and
``labels``. Tensors are ``x_train`` of another type than uint8, or without pictures all other arrays of a split, such as
``train_input_ids`` and ``train_attention_mask``. ``classes``, the class names, and ``train_keys``, a stable name for
each sample, are optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.ids import as_digests, bytes_digest
from kdpipe.dataset.items import ItemSource
from kdpipe.dataset.labels import (
    SUPPORTED,
    Column,
    checked_names,
    class_labels,
    class_names,
    column,
    names_from,
    refuse_indices,
)
from kdpipe.dataset.names import nfc
from kdpipe.dataset.npz import Array, Member, Rows, members, refuse_large
from kdpipe.dataset.options import options
from kdpipe.dataset.registry import Listing, Request, register
from kdpipe.dataset.states import PACKED, settled_before, state_of
from kdpipe.errors import DatasetError, MissingSplitError

SPLITS = {"train": ("train",), "test": ("test", "val", "valid")}
"""The names of a split in arrays and files, the preferred one first."""
_FORMS = {"images": ("{}_images", "x_{}"), "labels": ("{}_labels", "y_{}"), "keys": ("{}_keys",)}
_PLAIN = {"images": ("images", "x"), "labels": ("labels", "y"), "keys": ("keys",)}
"""Names of arrays in a file of both splits, and in a file of one split."""
_WHOLE = ("labels", "keys", "classes")
"""Arrays of a split that are read whole in any case."""
_TENSOR = "tensor "
"""Begins the names of tensors among the arrays of a split."""


@register("npz:FILE")
def list_npz(request: Request, written: str) -> Listing:
    """Pictures (uint8) or tensors, and labels in NumPy arrays: FILE.npz with train_images, train_labels, ...

    Raises:
        MissingSplitError: There are no arrays of the split.
        DatasetError: The file is missing or damaged, or its arrays are none of pictures and classes.
    """
    path, given = options("npz", written, ["classes"])
    root, split = Path(path).expanduser().absolute(), request.split
    arrays = find_arrays(root, split)
    tensors = {name.removeprefix(_TENSOR): each for name, each in arrays.items() if name.startswith(_TENSOR)}
    images = next(iter(tensors.values())) if tensors else arrays["images"]
    pictures = open_samples(tensors or images)
    refuse_large(each for part, each in arrays.items() if part in _WHOLE or not each.by_row)
    where = arrays["labels"].where
    values = _labels(arrays["labels"], len(pictures))
    classes = _classes(root, arrays, given.get("classes"))
    if classes is None:
        trained = arrays if split == "train" else find_arrays(root, "train")
        train = _labels(trained["labels"], len(trained["labels"].shape) and trained["labels"].shape[0])
        classes = class_names(train, where=trained["labels"].where)
        refuse_indices(values, train, where=where)
    labels = class_labels(values, classes, where=where)
    keys: Sequence[str] = tuple(f"npz/{split}/{index}" for index in range(len(pictures)))
    if "keys" in arrays:
        keys = tuple(f"{split}/{nfc(key)}" for key in _strings(arrays["keys"], len(pictures)))
    pairs = partial(open_pairs, tensors or images, labels)
    return Listing(root.stem, classes, keys, labels, ItemSource(images.where, pairs, pairs(), _names(images)))


def find_arrays(root: Path, split: str) -> Mapping[str, Member]:
    """Return the arrays of a split as ``images``, ``labels`` and, where there are any, ``keys`` and ``classes``.

    Raises:
        MissingSplitError: There are no arrays of the split.
        DatasetError: The file is missing or damaged.
    """
    if root.is_dir():
        file = next((root / f"{word}.npz" for word in SPLITS[split] if (root / f"{word}.npz").is_file()), None)
        if file is None:
            wanted = " or ".join(f"'{word}.npz'" for word in SPLITS[split])
            raise MissingSplitError(f"'{root}' has no {split} split: expected {wanted}")
    else:
        file = root
    forms, words = (_PLAIN, ("",)) if root.is_dir() else (_FORMS, SPLITS[split])
    there = members(file)
    for word in words:
        found = {
            part: there[name] for part, names in forms.items() for form in names if (name := form.format(word)) in there
        }
        if "labels" in found:
            found |= _tensors(there, found, f"{word}_" if word and forms is _FORMS else "")
        if "labels" in found and len(found) > 1 + ("keys" in found):
            return found | ({"classes": there["classes"]} if "classes" in there else {})
    expected = [form.format(words[0]) for part in ("images", "labels") for form in forms[part][:1]]
    raise MissingSplitError(
        f"{file} has no {split} split: expected the arrays {' and '.join(map(repr, expected))}, "
        f"found {', '.join(map(repr, list(there)[:12])) or 'none'}"
    )


def _tensors(there: Mapping[str, Member], found: Mapping[str, Member], prefix: str) -> dict[str, Member]:
    """Return the arrays of a split that are tensors, by ``_TENSOR`` and their name; none where there are pictures."""
    if "images" in found:
        images = found["images"]
        return {} if images.dtype == np.uint8 or images.name.endswith("images") else {_TENSOR: images}
    known = {each.name for each in found.values()} | {"classes"}
    return {
        _TENSOR + name.removeprefix(prefix): each
        for name, each in there.items()
        if name.startswith(prefix) and name not in known
    }


@dataclass(frozen=True, eq=False)
class Tensors:
    """Tensors in arrays ``(n, *shape)`` by name; the name of a single one may be empty."""

    rows: Mapping[str, Rows]

    def __post_init__(self) -> None:
        """Check types and lengths.

        Raises:
            DatasetError: they are no numbers, or differ in length.
        """
        first, *_ = self.rows.values()
        for each in self.rows.values():
            member = each.member
            if member.dtype.kind not in "biuf" or not member.shape or member.shape[0] != first.member.shape[0]:
                raise DatasetError(
                    f"{member.where} is {member.dtype} of the shape {member.shape}, expected numbers (n, ...) with as "
                    f"many entries as {first.member.where}, which has {first.member.shape}"
                )

    def __len__(self) -> int:
        """Return the number of items."""
        return len(next(iter(self.rows.values())))

    def __getitem__(self, index: int) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]]:
        """Return one item: an array, or arrays by name."""
        found = {name: each[index] for name, each in self.rows.items()}
        return found.get("", found)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in an array ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)`` of one or three channels, uint8."""

    rows: Rows

    def __post_init__(self) -> None:
        """Check type and shape.

        Raises:
            DatasetError: they are none of pictures.
        """
        member = self.rows.member
        shape = member.shape
        channels = len(shape) == 3 or (len(shape) == 4 and {shape[1], shape[3]} & {1, 3})
        if shape and shape[0] == 0:
            raise DatasetError(f"{member.where} is empty; expected at least one picture")
        if member.dtype != np.uint8 or not channels or 0 in shape:
            raise DatasetError(
                f"{member.where} is {member.dtype} of the shape {shape}, expected pictures: uint8 "
                "(n, height, width), (n, height, width, 3) or (n, 3, height, width)"
            )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.rows)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one picture, ``(H, W)``, ``(H, W, 3)`` or ``(3, H, W)``."""
        picture = self.rows[index]
        if picture.ndim == 3 and picture.shape[2] == 1:
            picture = picture[:, :, 0]
        return picture


@dataclass(frozen=True, eq=False)
class Pairs:
    """A sequence of ``(picture or tensors, label)``."""

    pictures: Pictures | Tensors
    labels: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one pair."""
        return self.pictures[index], int(self.labels[index])


def open_samples(arrays: Member | Mapping[str, Member]) -> Pictures | Tensors:
    """Open the pictures of an array, or tensors by name.

    Raises:
        DatasetError: they are something else.
    """
    if isinstance(arrays, Mapping):
        return Tensors({name: Rows(each) for name, each in arrays.items()})
    return Pictures(Rows(arrays))


def open_pairs(arrays: Member | Mapping[str, Member], labels: npt.NDArray[np.int32]) -> Pairs:
    """Open the samples of arrays with their labels."""
    return Pairs(open_samples(arrays), labels)


def _labels(member: Member, count: int) -> Column:
    """Return the labels of an array ``(n,)`` or ``(n, 1)``."""
    shape = member.shape[:1] if len(member.shape) == 2 and member.shape[1] == 1 else member.shape
    if len(shape) == 2:
        raise DatasetError(f"{member.where} has the shape {shape}, several values for each image; {SUPPORTED}")
    if shape != (count,):
        raise DatasetError(f"{member.where} has the shape {shape}, expected one label for each of {count:,} images")
    if member.dtype.kind == "U":
        return column([str(value) for value in member.read().reshape(-1)], where=member.where)
    if member.dtype.kind not in "iu":
        raise DatasetError(f"{member.where} is {member.dtype}; {SUPPORTED}")
    return member.read().reshape(-1).astype(np.int64)


def _classes(root: Path, arrays: Mapping[str, Member], file: str | None) -> tuple[str, ...] | None:
    """Return the class names, those of a text file or of an array; ``None`` where there are none.

    Raises:
        DatasetError: they are no names, or those of the files of a folder differ.
    """
    if file is not None:
        return names_from(file)
    there = members(root / "train.npz") if root.is_dir() and (root / "train.npz").is_file() else {}
    found = {each.path: each for each in (arrays.get("classes"), there.get("classes")) if each is not None}
    names = {
        path: checked_names(_strings(each, each.shape[0] if each.shape else -1), where=each.where)
        for path, each in found.items()
    }
    if len({*names.values()}) > 1:
        raise DatasetError(
            f"{' and '.join(map(str, names))} have other 'classes', so that the same index would be another class: "
            "write both with the same names in the same order"
        )
    return next(iter(names.values()), None)


def _strings(member: Member, count: int) -> list[str]:
    if member.dtype.kind != "U" or member.shape != (count,):
        raise DatasetError(f"{member.where} is {member.dtype} of the shape {member.shape}, expected strings")
    return [str(value) for value in member.read()]


def _names(images: Member) -> Array | None:
    """Return 16 bytes for each picture that change with the file, ``(n, 16)``; None if it was written just now."""
    state = state_of(images.path.stat())
    if max(state[1:3]) >= settled_before():
        return None
    head = f"npz 1 {images.path} {images.name} ".encode("utf-8", "surrogateescape") + PACKED.pack(*state)
    count = images.shape[0]
    return as_digests(b"".join(bytes_digest(head + index.to_bytes(8, "little")) for index in range(count)))
