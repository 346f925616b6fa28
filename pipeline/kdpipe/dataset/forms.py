"""The form of tensor items: the names, types and shapes of a sample's arrays, and their layout as bytes.

A dataset of tensors is handled as one of images: between its source and a network, an item is its arrays'
little-endian bytes, one array after the other, laid out as a uint8 image ``(3, 1, width)`` that ends with up to two
zeros. Buffers, digests, workers and stores need not know more. Importing this does not import torch.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    Tensors = torch.Tensor | dict[str, torch.Tensor]
    """A batch as a network takes it: one tensor ``(n, *shape)``, or several by name."""

Packed = npt.NDArray[np.uint8]

DTYPES: dict[str, np.dtype[Any]] = {"int64": np.dtype("<i8"), "float32": np.dtype("<f4")}
"""The types that items are kept in: integers and booleans as int64, floats as float32."""
MASK = "attention_mask"
"""The array that is 0 where the others hold padding."""

_MOST_ARRAYS, _MOST_DIMENSIONS, _MOST_BYTES = 64, 8, 2**31


@dataclass(frozen=True)
class Array:
    """One array of an item."""

    name: str
    """Its key in the dictionary; empty where the item is a single array."""
    dtype: str
    """A key of ``DTYPES``."""
    shape: tuple[int, ...]
    """Its shape in one item."""

    @property
    def bytes(self) -> int:
        """The bytes that it takes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        """Return name, type and shape, such as ``input_ids int64 (48)``."""
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})".strip()


def unit(form: Form | None) -> str:
    """Return the word for several items of a form in progress and rates."""
    return "images" if form is None else "samples"


@dataclass(frozen=True)
class Form:
    """The arrays of every item of a dataset, in order; views change the first of them."""

    arrays: tuple[Array, ...]

    @property
    def first(self) -> Array:
        """The array that views change."""
        return self.arrays[0]

    @property
    def named(self) -> bool:
        """Whether items are dictionaries, whose arrays a network takes as keyword arguments."""
        return bool(self.first.name)

    @cached_property
    def width(self) -> int:
        """The width of a packed item, in columns of three bytes."""
        return -(-sum(each.bytes for each in self.arrays) // 3)

    def __str__(self) -> str:
        """Return the arrays in one line."""
        return ", ".join(map(str, self.arrays))

    @classmethod
    def of(cls, item: object) -> Form | None:
        """Return the form of an item; ``None`` where it is no tensor: an image, or something else.

        Raises:
            ValueError: it is a dictionary of other things than arrays, or its arrays are empty or too large.
        """
        if isinstance(item, Mapping):
            arrays = []
            for name, value in item.items():
                found = as_array(value)
                if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
                    raise ValueError(f"its key {name!r:.80} is no keyword argument of a network; rename it")
                if found is None:
                    raise ValueError(f"its {name} is a {type(value).__name__}, expected an array of numbers")
                arrays.append(Array(name, _kept(found), found.shape))
        else:
            found = as_array(item)
            if found is None or found.dtype == np.uint8:
                return None
            arrays = [Array("", _kept(found), found.shape)]
        return _checked(arrays)

    def pack(self, item: object) -> Packed:
        """Return an item's bytes, uint8 ``(3, 1, width)``.

        Raises:
            ValueError: it has another form, or holds NaN, infinity or a number beyond its type.
        """
        found = self.of(item)
        if found is None or (found != self and set(found.arrays) != set(self.arrays)):
            raise ValueError(f"expected {self}, found {'no tensor' if found is None else found}")
        values = [item[each.name] if isinstance(item, Mapping) else item for each in self.arrays]
        parts = []
        for each, value in zip(self.arrays, map(as_array, values), strict=True):
            assert value is not None
            with np.errstate(over="ignore"):
                kept = np.ascontiguousarray(value, dtype=DTYPES[each.dtype])
            if value.dtype.kind == "f" and not np.isfinite(kept).all():
                raise ValueError(f"its {each.name or 'array'} holds NaN or infinity, or a number beyond float32")
            if value.dtype.kind == "u" and (kept < 0).any():
                raise ValueError(f"its {each.name or 'array'} holds a number beyond int64")
            parts.append(kept.tobytes())
        joined = bytearray(b"".join(parts).ljust(3 * self.width, b"\0"))
        return np.frombuffer(joined, dtype=np.uint8).reshape(3, 1, self.width)

    def unpack(self, packed: torch.Tensor) -> Tensors:
        """Return the tensors of packed items, uint8 ``(n, 3, 1, width)``: one ``(n, *shape)``, or several by name."""
        found = self.split(packed)
        return found if self.named else found[""]

    def split(self, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of packed items by name, as ``unpack``."""
        import torch

        rows, start, found = packed.reshape(len(packed), 3 * self.width), 0, {}
        for each in self.arrays:
            # A copy, since a row's bytes need not begin where its numbers may.
            part = rows[:, start : start + each.bytes].clone(memory_format=torch.contiguous_format)
            found[each.name] = part.view(getattr(torch, each.dtype)).reshape(len(rows), *each.shape)
            start += each.bytes
        return found

    def join(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return tensors by name as packed items, uint8 ``(n, 3, 1, width)``; the reverse of ``split``."""
        import torch

        count = len(tensors[self.first.name])
        parts = [tensors[each.name].contiguous().reshape(count, -1).view(torch.uint8) for each in self.arrays]
        rest = 3 * self.width - sum(each.bytes for each in self.arrays)
        return torch.cat([*parts, parts[0].new_zeros(count, rest)], dim=1).view(count, 3, 1, self.width)

    def blank(self) -> Packed:
        """Return a packed item of zeros, whose mask is 1, uint8 ``(3, 1, width)``."""
        made = {each.name: np.full(each.shape, each.name == MASK, dtype=DTYPES[each.dtype]) for each in self.arrays}
        return self.pack(made if self.named else made[""])

    def describe(self) -> list[list[Any]]:
        """Return name, type and shape of each array as JSON values."""
        return [[each.name, each.dtype, list(each.shape)] for each in self.arrays]

    @classmethod
    def parse(cls, described: Sequence[Sequence[Any]]) -> Form:
        """Rebuild a form from ``describe()``.

        Raises:
            ValueError: it is no form, or beyond the bounds of one.
        """
        arrays = []
        for name, dtype, shape in described:
            sizes = tuple(shape)
            known = isinstance(name, str) and (not name or name.isidentifier()) and dtype in DTYPES
            if not known or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise ValueError(f"unknown array {name!r:.80} of type {dtype!r:.80}")
            arrays.append(Array(name, dtype, sizes))
        return _checked(arrays)


def as_array(value: object) -> npt.NDArray[Any] | None:
    """Return an array or tensor of numbers as an array; ``None`` where it is something else."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        detach = getattr(value, "detach", None)
        if detach is None or not hasattr(value, "dtype"):
            return None
        tensor = detach().cpu()
        value = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else None


def _kept(array: npt.NDArray[Any]) -> str:
    return "float32" if array.dtype.kind == "f" else "int64"


def _checked(arrays: Sequence[Array]) -> Form:
    if not 1 <= len(arrays) <= _MOST_ARRAYS:
        raise ValueError(f"it has {len(arrays)} arrays, expected 1 to {_MOST_ARRAYS}")
    for each in arrays:
        if 0 in each.shape or len(each.shape) > _MOST_DIMENSIONS:
            raise ValueError(f"its {each} is empty or has more than {_MOST_DIMENSIONS} dimensions")
    if sum(each.bytes for each in arrays) > _MOST_BYTES:
        raise ValueError(f"it takes {sum(each.bytes for each in arrays):,} bytes, expected at most {_MOST_BYTES:,}")
    if len({each.name for each in arrays}) < len(arrays) or (len(arrays) > 1 and not all(each.name for each in arrays)):
        raise ValueError("its arrays have no names, or the same")
    return Form(tuple(arrays))
