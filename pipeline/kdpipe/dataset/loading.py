"""Load a split of a dataset: list its samples, choose some, take their digests, and decode them or stream them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

import kdpipe.dataset.kinds  # noqa: F401 (registers the kinds)
from kdpipe.dataset import identity
from kdpipe.dataset.broken import listed, notes_on
from kdpipe.dataset.caching import distrust
from kdpipe.dataset.parts import limit_labels
from kdpipe.dataset.pixels import byte_starts, cache_path, fill, open_cache, processors
from kdpipe.dataset.registry import Listing, Request, Survey, resolve
from kdpipe.dataset.samples import Dataset
from kdpipe.errors import DatasetError
from kdpipe.progress import Progress, silent

Loading = Literal["auto", "memory", "stream"]


def load(
    spec: str,
    split: str,
    limit: int | None = None,
    *,
    labels_per_class: int | None = None,
    download: bool = False,
    loading: Loading = "auto",
    memory_limit: int = 4 * 1024**3,
    skip_broken: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Load the ``train`` or ``test`` split of a dataset; ``kdpipe.dataset.all_kinds()`` lists the forms of ``spec``.

    ``limit`` takes a fixed, class-balanced subset. ``labels_per_class``, for ``train`` only, then keeps the labels of
    a fixed choice of this many samples of each class and sets the others to -1. Images are decoded once and
    memory-mapped from a cache when they need at most ``memory_limit`` bytes; ``loading`` forces ``memory`` or
    ``stream``. EXIF orientation is not applied.

    Every image file is decoded once before it is first used. ``skip_broken`` leaves out those that cannot be.

    Raises:
        MissingSplitError: The dataset has no such split.
        DatasetError: The dataset is missing or cannot be used; one line with what, where and how to fix it.
    """
    if split not in ("train", "test"):
        raise DatasetError(f"there is no split '{split}', expected 'train' or 'test'")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit is {limit}, expected at least 1 sample, or no limit")
    if loading not in get_args(Loading):
        raise DatasetError(f"loading is '{loading}', expected one of {', '.join(get_args(Loading))}")
    if labels_per_class is not None and split != "train":
        raise DatasetError(f"labels_per_class is for the train split, found split '{split}'; leave it out")
    kind, values = resolve(spec)
    listing = kind.list_samples(Request(split, download, progress), *values)
    ids = identity.sample_ids(listing.keys)
    indices = identity.balanced_indices(ids, listing.labels, limit=limit)
    survey = listing.source.survey(indices, what=f"checking {split}", progress=progress)
    asked, reasons = len(indices), list(survey.broken.values())
    if survey.broken:
        whole = np.setdiff1d(np.arange(len(indices)), list(survey.broken))
        indices = indices[whole]
        remarks = None if survey.remarks is None else survey.remarks[whole]
        survey = Survey(survey.digests[whole], survey.sizes[whole], remarks=remarks)
    notes = listing.notes + (() if survey.remarks is None else notes_on(survey.remarks, split))
    if len(indices):
        dataset = _streaming(spec, split, listing=listing, ids=ids[indices], indices=indices, survey=survey)
        fits = int(byte_starts(survey.sizes)[-1]) <= memory_limit
        dataset, more = _decodable(dataset, in_memory=loading == "memory" or (loading == "auto" and fits), log=progress)
        reasons += more
    if reasons:
        line = listed(reasons, of=asked, what=f"{spec} {split}")
        if not skip_broken or not len(indices):
            raise DatasetError(f"{line}, or pass --skip-broken")
        notes = (*notes, f"warning: skipped: {line}.")
    if (reason := distrust()) is not None:
        notes = (*notes, f"warning: {reason}.")
    if labels_per_class is not None:
        dataset = limit_labels(dataset, labels_per_class)
    return replace(dataset, notes=notes)


def _decodable(dataset: Dataset, *, in_memory: bool, log: Progress) -> tuple[Dataset, list[str]]:
    """Return the samples that can be decoded, in memory or to be streamed, and why the others cannot.

    Raises:
        DatasetError: none can be, or an image changed.
    """
    if in_memory:
        try:
            return _in_memory(dataset, log), []
        except DatasetError:
            broken = _broken(dataset, log)
            if not broken:
                raise
    else:
        broken = _broken(dataset, log)
    if not broken:
        return dataset, []
    reasons = list(broken.values())
    whole = np.setdiff1d(np.arange(len(dataset)), list(broken))
    if not len(whole):
        raise DatasetError(listed(reasons, of=len(dataset), what=f"{dataset.spec} {dataset.split}"))
    rest = replace(dataset.subset(whole), origin=None, buffer_indices=np.arange(len(whole), dtype=np.int64))
    return (_in_memory(rest, log) if in_memory else rest), reasons


def _broken(dataset: Dataset, progress: Progress) -> Mapping[int, str]:
    return dataset.source.broken(
        dataset.source_indices, dataset.content_digests, what=f"trying {dataset.split}", progress=progress
    )


def _streaming(
    spec: str,
    split: str,
    *,
    listing: Listing,
    ids: npt.NDArray[np.uint8],
    indices: npt.NDArray[np.int64],
    survey: Survey,
) -> Dataset:
    return Dataset(
        spec=spec,
        name=listing.name,
        split=split,
        classes=listing.classes,
        keys=tuple(listing.keys[index] for index in indices),
        labels=listing.labels[indices],
        sample_ids=ids,
        content_digests=survey.digests,
        fingerprint=identity.fingerprint(ids, survey.digests, classes=listing.classes),
        sizes=survey.sizes,
        source=listing.source,
        source_indices=indices,
        buffer=None,
        buffer_indices=np.arange(len(indices), dtype=np.int64),
        published_statistics=listing.statistics,
    )


def _in_memory(dataset: Dataset, progress: Progress) -> Dataset:
    def read(index: int) -> npt.NDArray[np.uint8]:
        return dataset.source.read(int(dataset.source_indices[index]), dataset.content_digests[index].tobytes())

    path = cache_path(dataset.fingerprint)
    buffer = open_cache(path, dataset.sizes)
    if buffer is None:
        buffer = fill(
            path,
            dataset.sizes,
            name=f"{dataset.name[:16]} {dataset.split}",
            read=read,
            workers=processors() if dataset.source.parallel else 1,
            what=f"decoding {dataset.split}",
            progress=progress,
        )
    return replace(dataset, buffer=buffer)
