"""Load a split of a dataset: list its samples, choose some, take their digests, and decode them or stream them.

Image files that cannot be used are all named at once. The parts of a loaded split are those held out for validation,
those with a label, and those whose labels are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

import kdpipe.dataset.kinds  # noqa: F401 (registers the kinds)
from kdpipe import durable
from kdpipe.dataset import decode, samples
from kdpipe.dataset.caching import cache_directory, distrust, prepare
from kdpipe.dataset.choice import balanced_indices, ranks_in_class
from kdpipe.dataset.learning import unread_survey
from kdpipe.dataset.names import Names
from kdpipe.dataset.pixels import byte_starts, cache_path, fill, open_cache, processors
from kdpipe.dataset.registry import Listing, Request, Survey, resolve
from kdpipe.dataset.samples import Dataset, find_ids, sample_id
from kdpipe.dataset.workers import prepare_workers
from kdpipe.errors import DatasetError
from kdpipe.printable import printable
from kdpipe.progress import Progress, silent


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Part a dataset into one to train on and a class-balanced one to validate with, both in dataset order.

    ``fraction``, 0 < f < 1, is the validation samples' share of the labeled samples. They are chosen by their ids
    alone, so a smaller fraction holds out a subset of what a larger one does. The only sample of a class stays in
    training. A recipe that mixes takes no partners from the other part.

    Raises:
        DatasetError: a class would be left without samples to train on or to validate with.
    """
    labeled_indices = np.flatnonzero(dataset.labels >= 0)
    count = round(fraction * len(labeled_indices))
    labels = dataset.labels[labeled_indices]
    several = labeled_indices[~np.isin(labels, single_classes(dataset))]
    held = several[balanced_indices(dataset.sample_ids[several], dataset.labels[several], limit=count)]
    kept = np.setdiff1d(np.arange(len(dataset)), held)
    present = np.unique(dataset.labels[several])
    for indices, purpose in ((held, "to validate with; hold out more"), (kept, "to train on; hold out fewer")):
        without = np.setdiff1d(present, dataset.labels[indices])
        if without.size or not len(indices):
            name = f"class '{dataset.classes[without[0]]}'" if without.size else dataset.spec
            raise DatasetError(
                f"holding {count} of {len(labels)} labeled training samples out for validation, equally many of "
                f"each class, leaves {name} without samples {purpose}, or none."
            )
    train, validation = (replace(dataset.subset(indices), origin=None) for indices in (kept, held))
    return train, validation


def single_classes(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Return the classes with one labeled sample, which ``hold_out`` leaves in training."""
    counts = np.bincount(dataset.labels[dataset.labels >= 0], minlength=len(dataset.classes))
    return np.flatnonzero(counts == 1)


def labeled(dataset: Dataset) -> Dataset:
    """Return the samples that have a label, in dataset order; a recipe that mixes takes partners from these alone.

    Raises:
        DatasetError: none has one.
    """
    indices = np.flatnonzero(dataset.labels >= 0)
    if not len(indices):
        raise DatasetError(f"no training sample of {dataset.spec} has a label: training without a teacher needs some.")
    return replace(dataset.subset(indices), origin=None)


def limit_labels(dataset: Dataset, per_class: int) -> Dataset:
    """Keep the labels of ``per_class`` samples of each class, and set all others to -1.

    The samples are chosen by their ids alone, so the choice does not depend on their order, and fewer labels are a
    subset of more. Samples, fingerprint and pixels stay the same, as labels are not part of the fingerprint.

    Raises:
        DatasetError: ``per_class`` is below 1, or a class has fewer labeled samples.
    """
    if per_class < 1:
        raise DatasetError(f"labels_per_class is {per_class}, expected at least 1")
    is_labeled = dataset.labels >= 0
    counts = np.bincount(dataset.labels[is_labeled], minlength=len(dataset.classes))
    if counts.min() < per_class:
        scarce = int(counts.argmin())
        raise DatasetError(
            f"labels_per_class is {per_class}, but class '{dataset.classes[scarce]}' of {dataset.spec} has "
            f"{counts[scarce]} labeled training samples; use a smaller number, or a larger --limit-train"
        )
    is_kept = is_labeled & (ranks_in_class(dataset.sample_ids, dataset.labels) < per_class)
    origin = dataset.origin
    if origin is not None:
        # Partners that a recipe mixes in have the labels of the origin.
        in_origin = find_ids(origin.sample_ids, dataset.sample_ids[is_kept]) >= 0
        origin = replace(origin, labels=np.where(in_origin, origin.labels, -1).astype(np.int32))
    return replace(dataset, labels=np.where(is_kept, dataset.labels, -1).astype(np.int32), origin=origin)


_NAMED = 5
"""Files that a message names; the others are in a file."""


def listed(reasons: Sequence[str], *, of: int, what: str) -> str:
    """Return one line on the files of ``reasons``, out of ``of``: the first of them, and a file with all."""
    if len(reasons) == 1:
        return reasons[0]
    named = "; ".join(reason.rpartition("; ")[0] or reason for reason in reasons[:_NAMED])
    line = f"{len(reasons):,} of {of:,} images of {what} cannot be used: {named}"
    if len(reasons) > _NAMED:
        path = _write(reasons, what)
        line += f"; and {len(reasons) - _NAMED:,} more" + (f", all listed in {path}" if path else "")
    return f"{line}; replace or remove them"


def _write(reasons: Sequence[str], what: str) -> Path | None:
    path = cache_directory() / "broken" / f"{sample_id(what).hex()}.txt"
    with contextlib.suppress(OSError):
        prepare(path)
        durable.write_text(path, "".join(f"{printable(reason)}\n" for reason in reasons))
        return path
    return None


def notes_on(remarks: npt.NDArray[np.uint8], split: str) -> tuple[str, ...]:
    """Return a line for each remark of ``kdpipe.dataset.decode.describe`` that a split's images have."""
    turned = int(np.count_nonzero(remarks & decode.TURNED))
    dark = int(np.count_nonzero(remarks & decode.DARK))
    notes = []
    if turned:
        notes.append(
            f"{turned:,} images of {split} carry an EXIF orientation, which is not applied: pixels are as stored."
        )
    if dark:
        notes.append(
            f"warning: {dark:,} images of {split} have 16 bits but no level above 4,095, and become nearly black. "
            "Scale their levels to 0..65535."
        )
    return tuple(notes)


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
    workers: int | None = None,
    skip_broken: bool = False,
    unread: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Load the ``train`` or ``test`` split of a dataset; ``kdpipe.dataset.all_kinds()`` lists the forms of ``spec``.

    ``limit`` takes a fixed, class-balanced subset. ``labels_per_class``, for ``train`` only, then keeps the labels of
    a fixed choice of this many samples of each class and sets the others to -1. Images are decoded once and
    memory-mapped from a cache when they need at most ``memory_limit`` bytes; ``loading`` forces ``memory`` or
    ``stream``. EXIF orientation is not applied.

    With ``workers``, so many processes check the images where there are many, and decode streamed ones where a
    ``kdpipe.views.Renderer`` renders batches (default: the checks are done in this process, and batches are rendered by
    a process for each processor). A script that gives it needs ``if __name__ == "__main__"``.

    Every image file is decoded once before it is first used. ``skip_broken`` leaves out those that cannot be. With
    ``unread``, image files that are streamed are only listed, for a pass that learns what they hold as it reads them
    (``kdpipe.dataset.learning``); of those that are not remembered, content digests and sizes are zeros.

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
    if workers is not None and workers < 1:
        raise DatasetError(f"workers is {workers}, expected at least 1 process, or none for one for each processor")
    if labels_per_class is not None and split != "train":
        raise DatasetError(f"labels_per_class is for the train split, found split '{split}'; leave it out")
    kind, values = resolve(spec)
    processes = workers or 1
    listing = kind.list_samples(Request(split, download, progress, processes), *values)
    listing = replace(listing, keys=Names.of(listing.keys))
    ids = samples.sample_ids(listing.keys)
    indices = balanced_indices(ids, listing.labels, limit=limit)
    found = (
        unread_survey(listing.source, indices, streamed_above=_streamed_above(loading, memory_limit), progress=progress)
        if unread and not skip_broken
        else None
    )
    survey = found or listing.source.survey(
        indices,
        what=f"checking {split}",
        progress=progress,
        processes=processes,
        streamed_above=_streamed_above(loading, memory_limit),
    )
    asked, reasons = len(indices), list(survey.broken.values())
    if survey.broken:
        whole = np.setdiff1d(np.arange(len(indices)), list(survey.broken))
        indices = indices[whole]
        remarks = None if survey.remarks is None else survey.remarks[whole]
        survey = Survey(survey.digests[whole], survey.sizes[whole], remarks=remarks)
    notes = listing.notes + (() if survey.remarks is None else notes_on(survey.remarks, split))
    if len(indices):
        dataset = _streaming(spec, split, listing=listing, ids=ids[indices], indices=indices, survey=survey)
        dataset = replace(dataset, workers=workers)
        fits = int(byte_starts(survey.sizes)[-1]) <= memory_limit
        if found is None:
            in_memory = loading == "memory" or (loading == "auto" and fits)
            dataset, more = _decodable(dataset, in_memory=in_memory, log=progress)
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


def _streamed_above(loading: Loading, memory_limit: int) -> int | None:
    """Return the bytes of pixels above which images are streamed; ``None`` for never."""
    return {"auto": memory_limit, "memory": None, "stream": -1}[loading]


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
        if dataset.workers is not None:
            prepare_workers()
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
        dataset.source_indices,
        dataset.content_digests,
        what=f"trying {dataset.split}",
        progress=progress,
        processes=dataset.workers or 1,
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
        keys=Names.of(listing.keys).take(indices),
        labels=listing.labels[indices],
        sample_ids=ids,
        content_digests=survey.digests,
        fingerprint=samples.identity(ids, survey.digests, classes=listing.classes),
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
            progress=partial(progress, unit=dataset.unit),
        )
    return replace(dataset, buffer=buffer)
