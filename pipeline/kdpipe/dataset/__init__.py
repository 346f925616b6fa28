"""Which samples, in which order, and who they are.

``load`` reads a split of a dataset named by a spec:

    digits                      scikit-learn's handwritten digits, for trying things out
    folder:PATH                 PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg (or val); PATH/unlabeled/*.jpg
    cifar10:PATH, cifar100:PATH the published batches
    torchvision:NAME:PATH       a classification dataset of torchvision, such as FashionMNIST
    package.module:function     your own, see ``kdpipe.dataset.callable``

EXIF orientation is not applied.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import identity
from kdpipe.dataset.blocks import processors
from kdpipe.dataset.callable import list_callable
from kdpipe.dataset.decode import decoder_name
from kdpipe.dataset.digits import list_digits
from kdpipe.dataset.folder import list_folder
from kdpipe.dataset.identity import find_ids, sample_id
from kdpipe.dataset.parts import hold_out, labelled
from kdpipe.dataset.pixels import byte_starts, cache_directory, cache_path, fill, open_cache
from kdpipe.dataset.published import list_published
from kdpipe.dataset.source import Dataset, Listing, Survey
from kdpipe.errors import DatasetError, did_you_mean
from kdpipe.progress import Progress, silent

__all__ = [
    "SPECS",
    "Dataset",
    "Loading",
    "cache_directory",
    "decoder_name",
    "find_ids",
    "hold_out",
    "labelled",
    "load",
    "processors",
    "sample_id",
]

Loading = Literal["auto", "memory", "stream"]

SPECS = (
    "digits",
    "folder:PATH",
    "cifar10:PATH",
    "cifar100:PATH",
    "torchvision:NAME:PATH",
    "package.module:function",
)
"""The forms that a spec can take."""

_SCHEMES = ("digits", "folder", "cifar10", "cifar100", "torchvision")
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def load(
    spec: str,
    split: str,
    limit: int | None = None,
    *,
    download: bool = False,
    loading: Loading = "auto",
    memory_limit: int = 4 * 1024**3,
    progress: Progress = silent,
) -> Dataset:
    """Load the ``train`` or ``test`` split of the dataset that ``spec`` names.

    ``limit`` takes a fixed, class-balanced subset. Images are decoded once and memory-mapped from a cache
    when they need at most ``memory_limit`` bytes; ``loading`` forces ``memory`` or ``stream``.

    Raises:
        DatasetError: The dataset is not there or cannot be used; one line says what, where and how to fix it.
    """
    if split not in ("train", "test"):
        raise DatasetError(f"there is no split '{split}', expected 'train' or 'test'")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}, expected at least 1 sample, or no limit")
    if loading not in get_args(Loading):
        raise DatasetError(f"loading is '{loading}', expected one of {', '.join(get_args(Loading))}")
    listing = _list(spec, split, download=download, progress=progress)
    ids = identity.sample_ids(listing.keys)
    rows = identity.balanced_rows(ids, listing.labels, limit=limit)
    survey = listing.source.survey(rows, what=f"checking {split}", progress=progress)
    dataset = _streaming(spec, split, listing=listing, ids=ids[rows], rows=rows, survey=survey)
    fits = int(byte_starts(survey.sizes)[-1]) <= memory_limit
    if loading == "stream" or (loading == "auto" and not fits):
        return dataset
    return _in_memory(dataset, progress)


def _list(spec: str, split: str, *, download: bool, progress: Progress) -> Listing:
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return list_digits(split)
    if kind in _SCHEMES[1:] and not rest:
        form = next(form for form in SPECS if form.startswith(f"{kind}:"))
        raise DatasetError(f"dataset '{spec}' lacks a path, expected {form}")
    if kind == "folder":
        return list_folder(Path(rest).expanduser(), split)
    if kind in ("cifar10", "cifar100"):
        return list_published(kind, Path(rest).expanduser(), split=split, download=download, progress=progress)
    if kind == "torchvision":
        name, _, path = rest.partition(":")
        if not path:
            raise DatasetError(f"dataset '{spec}' lacks a path, expected torchvision:NAME:PATH")
        return list_published(name, Path(path).expanduser(), split=split, download=download, progress=progress)
    if _FUNCTION.fullmatch(spec):
        return list_callable(spec, split, known=_SCHEMES, progress=progress)
    near = f"; did you mean 'folder:{spec}'?" if spec and Path(spec).is_dir() else did_you_mean(kind, _SCHEMES)
    raise DatasetError(f"unknown dataset '{spec}', expected one of {', '.join(SPECS)}{near}")


def _streaming(
    spec: str,
    split: str,
    *,
    listing: Listing,
    ids: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    survey: Survey,
) -> Dataset:
    return Dataset(
        spec=spec,
        name=listing.name,
        split=split,
        classes=listing.classes,
        keys=tuple(listing.keys[row] for row in rows),
        labels=listing.labels[rows],
        sample_ids=ids,
        content_digests=survey.digests,
        fingerprint=identity.fingerprint(ids, survey.digests, classes=listing.classes),
        sizes=survey.sizes,
        source=listing.source,
        source_rows=rows,
        buffer=None,
        buffer_rows=np.arange(len(rows), dtype=np.int64),
    )


def _in_memory(dataset: Dataset, progress: Progress) -> Dataset:
    path = cache_path(dataset.fingerprint)
    buffer = open_cache(path, dataset.sizes)
    if buffer is None:
        buffer = fill(
            path,
            dataset.sizes,
            read=lambda index: dataset.image(index).numpy(),
            workers=processors() if dataset.source.parallel else 1,
            what=f"decoding {dataset.split}",
            progress=progress,
        )
    return replace(dataset, buffer=buffer)
