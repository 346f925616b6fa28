"""Kinds of datasets by name, and the interface that each of them implements.

A kind is one file in ``kdpipe/dataset/kinds``. It registers a function that lists the samples of a split:

    @register("folder:PATH")
    def list_folder(request: Request, path: str) -> Listing:
        \"\"\"Image files, one folder per class.\"\"\"

In a form, the part before the first colon is the kind's name, and the words after it are the values that a spec gives.
They are passed to the function in this order, as text. The last value may contain any character, also colons.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.states import STATE
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.progress import Progress, silent

Indices = npt.NDArray[np.int64]
"""Indices of images in a source, or places among some of them, ``(k,)``."""
Digests = npt.NDArray[np.uint8]
"""Digests of 16 bytes, ``(k, 16)``."""
Records = npt.NDArray[Any]
"""A structured array, ``(k,)``."""
Channels = tuple[float, float, float]
"""One value each for red, green and blue."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Content digests and sizes of images."""

    digests: Digests
    """Content digests, ``(n, 16)``."""
    sizes: npt.NDArray[np.int64]
    """Height and width of each image, ``(n, 2)``."""
    broken: Mapping[int, str] = field(default_factory=dict)
    """Why an image cannot be used, by its place among those surveyed; its digest and size mean nothing."""
    remarks: npt.NDArray[np.uint8] | None = None
    """Remarks of ``kdpipe.dataset.decode.describe`` on each image file, ``(n,)``."""

    def take(self, places: Indices) -> Survey:
        """Return the survey of the images at ``places``, ``(k,)``, of which none is broken."""
        remarks = None if self.remarks is None else self.remarks[places]
        return Survey(self.digests[places], self.sizes[places], remarks=remarks)


class Source(Protocol):
    """Reads the images of a split. Pickles without pixels, so that each worker opens it anew."""

    @property
    def parallel(self) -> bool:
        """Whether ``read`` may be called from several threads at once."""
        ...

    def survey(
        self,
        indices: Indices,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
        streamed_above: int | None = None,
    ) -> Survey:
        """Return content digests and sizes of the images at ``indices``.

        Up to ``processes`` may read them where there are many. Images whose pixels exceed ``streamed_above`` bytes in
        all will be streamed: they may be decoded at once, which saves ``broken`` to do it.
        """
        ...

    def broken(
        self,
        indices: Indices,
        digests: Digests,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
    ) -> Mapping[int, str]:
        """Decode the images that were not decoded before; return why some cannot be, by their place in ``indices``."""
        ...

    def read(self, index: int, digest: bytes) -> npt.NDArray[np.uint8]:
        """Return one image, uint8 ``(3, height, width)``, if its content still has this digest.

        Raises:
            DatasetError: The image cannot be decoded, or has changed.
        """
        ...


LOOKED = np.dtype([("digest", "u1", 16), ("size", "<u4", 2), ("remarks", "u1"), ("pixels", "u1", 16), ("state", STATE)])
"""A record of an image read: content digest, size, remarks as in ``Survey``, pixel digest, state of its file."""


@runtime_checkable
class Looking(Protocol):
    """A source that also returns what is learned by reading an image."""

    def look(self, index: int, digest: bytes) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.void]]:
        """Return an image as ``Source.read``, and its ``LOOKED``; a digest of zeros is unknown."""
        ...

    def recall(self, indices: Indices) -> Survey:
        """Return what is remembered of images, without reading one; digests and sizes of zeros where nothing is."""
        ...

    def remembering(
        self,
    ) -> AbstractContextManager[Callable[[Indices, Records], None]]:
        """Return a function that remembers what was learned of images at some indices, ``LOOKED``."""
        ...

    def pixel_digests(
        self,
        indices: Indices,
        digests: Digests,
        *,
        what: str,
        progress: Progress,
        processes: int = 1,
    ) -> Digests:
        """Return digests of shape and pixels of images with these content digests, both ``(k, 16)``."""
        ...


@dataclass(frozen=True, eq=False)
class Listing:
    """All samples of a split, before any pixels are read."""

    name: str
    classes: tuple[str, ...]
    keys: Sequence[str]
    """The stable name of each sample."""
    labels: npt.NDArray[np.int32]
    """Class index of each sample, ``(n,)``; -1 for none."""
    source: Source
    statistics: tuple[Channels, Channels] | None = None
    """Published mean and standard deviation of each channel, in 0..1; ``None`` to compute them."""
    notes: tuple[str, ...] = ()
    """Lines for the user."""


@dataclass(frozen=True)
class Request:
    """The split to list, and how."""

    split: str
    """``train`` or ``test``."""
    download: bool = False
    """Whether the kind may download the dataset."""
    progress: Progress = silent
    processes: int = 1
    """Processes that may read samples where there are many."""


@dataclass(frozen=True)
class Kind:
    """A kind of dataset, and what ``kdpipe list datasets`` prints about it."""

    name: str
    usage: str
    """The form of its specs."""
    list_samples: Callable[..., Listing]
    """Takes a ``Request`` and the values of the spec."""
    help: str
    """One line."""
    source: str
    """Address of the publication, empty if there is none."""
    pattern: re.Pattern[str] | None = None
    """For a kind without a fixed name: matches its specs, which are passed on whole."""

    @property
    def values(self) -> tuple[str, ...]:
        """The names of the values in its form."""
        return () if self.pattern else tuple(self.usage.split(":")[1:])


_KINDS: dict[str, Kind] = {}
_ENDINGS = {".npz": "npz", ".parquet": "parquet", ".tar": "webdataset"}
"""The kind that a path was probably meant for, by its ending."""


def register(
    usage: str, *, source: str = "", pattern: str | None = None
) -> Callable[[Callable[..., Listing]], Callable[..., Listing]]:
    """Register a function that lists samples; the first line of its docstring is the kind's help.

    ``pattern`` is for a kind without a fixed name: a spec belongs to it if all of it matches and no other kind has its
    name.

    Raises:
        ValueError: there is a kind of this name.
    """

    def add(list_samples: Callable[..., Listing]) -> Callable[..., Listing]:
        name = usage if pattern else usage.partition(":")[0]
        if name in _KINDS:
            raise ValueError(f"there is a dataset kind '{name}' already")
        help_line = (inspect.getdoc(list_samples) or "").partition("\n")[0]
        _KINDS[name] = Kind(name, usage, list_samples, help_line, source, re.compile(pattern) if pattern else None)
        return list_samples

    return add


def all_kinds() -> tuple[Kind, ...]:
    """Return all kinds, those without a fixed name last."""
    return tuple(sorted(_KINDS.values(), key=lambda kind: kind.pattern is not None))


def resolve(spec: str) -> tuple[Kind, tuple[str, ...]]:
    """Return the kind that a spec belongs to, and the values that it gives.

    Raises:
        DatasetError: There is no such kind, or the spec lacks a value; the message has the expected form.
    """
    name, _, rest = spec.partition(":")
    for kind in all_kinds():
        if kind.pattern is not None:
            if kind.pattern.fullmatch(spec):
                return kind, (spec,)
        elif kind.name == name and (kind.values or spec == name):
            values = tuple(rest.split(":", len(kind.values) - 1)) if kind.values else ()
            given = dict(zip(kind.values, values, strict=False))
            missing = [value for value in kind.values if not given.get(value)]
            if missing:
                raise DatasetError(f"dataset '{spec}' lacks {missing[0]}, expected {kind.usage}")
            return kind, values
    names = [kind.name for kind in all_kinds() if kind.pattern is None]
    kind_of_path = "folder" if spec and Path(spec).is_dir() else _ENDINGS.get(Path(spec).suffix)
    near = f"; did you mean '{kind_of_path}:{spec}'?" if kind_of_path else did_you_mean(name, names)
    expected = ", ".join(kind.usage for kind in all_kinds())
    raise DatasetError(f"unknown dataset '{spec}', expected one of {expected}{near}")
