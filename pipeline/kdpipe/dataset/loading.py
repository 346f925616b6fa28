"""Load a split of a dataset: list its samples, choose some, take their digests, and decode them or stream them.

Image files that cannot be used are all named at once.
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
from kdpipe.dataset import decode
from kdpipe.dataset.caching import cache_directory, distrust, prepare
from kdpipe.dataset.choice import balanced_indices
from kdpipe.dataset.ids import identity, sample_id, sample_ids
from kdpipe.dataset.learning import unread_survey
from kdpipe.dataset.names import Names
from kdpipe.dataset.parts import limit_labels
from kdpipe.dataset.pixels import byte_starts, cache_path, fill, open_cache, processors
from kdpipe.dataset.registry import Listing, Request, Survey, resolve
from kdpipe.dataset.samples import Dataset
from kdpipe.dataset.workers import prepare_workers
from kdpipe.errors import DatasetError
from kdpipe.printable import printable
from kdpipe.progress import Progress, silent

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


def notes_on(remarks: npt.NDArray[np.uint8] | None, split: str) -> tuple[str, ...]:
    """Return a line for each remark of ``kdpipe.dataset.decode.describe`` that a split's images have."""
    if remarks is None:
        return ()
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
    _check(split, limit=limit, labels_per_class=labels_per_class, loading=loading, workers=workers)
    streamed_above = {"auto": memory_limit, "memory": None, "stream": -1}[loading]
    kind, values = resolve(spec)
    listing = kind.list_samples(Request(split, download, progress, workers or 1), *values)
    listing = replace(listing, keys=Names.of(listing.keys))
    ids = sample_ids(listing.keys)
    indices = chosen = balanced_indices(ids, listing.labels, limit=limit)
    remembered = None
    if unread and not skip_broken:
        remembered = unread_survey(listing.source, chosen, streamed_above=streamed_above, progress=progress)
    survey = remembered or listing.source.survey(
        chosen, what=f"checking {split}", progress=progress, processes=workers or 1, streamed_above=streamed_above
    )
    reasons = list(survey.broken.values())
    if reasons:
        whole = np.setdiff1d(np.arange(len(chosen)), list(survey.broken))
        indices, survey = chosen[whole], survey.take(whole)
    notes = (*listing.notes, *notes_on(survey.remarks, split))
    if len(indices):
        dataset = _streaming(
            spec, split, listing=listing, ids=ids[indices], indices=indices, survey=survey, workers=workers
        )
        if remembered is None:
            in_memory = streamed_above is None or byte_starts(survey.sizes)[-1] <= streamed_above
            dataset, more = _decodable(dataset, in_memory=bool(in_memory), progress=progress)
            reasons += more
    if reasons:
        line = listed(reasons, of=len(chosen), what=f"{spec} {split}")
        if not skip_broken or not len(indices):
            raise DatasetError(f"{line}, or pass --skip-broken")
        notes = (*notes, f"warning: skipped: {line}.")
    if (reason := distrust()) is not None:
        notes = (*notes, f"warning: {reason}.")
    if labels_per_class is not None:
        dataset = limit_labels(dataset, labels_per_class)
    return replace(dataset, notes=notes)


def _check(
    split: str, *, limit: int | None, labels_per_class: int | None, loading: Loading, workers: int | None
) -> None:
    """Check the arguments of ``load``.

    Raises:
        DatasetError: one is out of range, or there is no such split.
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


def _decodable(dataset: Dataset, *, in_memory: bool, progress: Progress) -> tuple[Dataset, list[str]]:
    """Return the samples that can be decoded, in memory or to be streamed, and why the others cannot.

    Raises:
        DatasetError: none can be, or an image changed.
    """
    if in_memory:
        try:
            return _in_memory(dataset, progress), []
        except DatasetError:
            broken = _broken(dataset, progress)
            if not broken:
                raise
    else:
        if dataset.workers is not None:
            prepare_workers()
        broken = _broken(dataset, progress)
    if not broken:
        return dataset, []
    reasons = list(broken.values())
    whole = np.setdiff1d(np.arange(len(dataset)), list(broken))
    if not len(whole):
        raise DatasetError(listed(reasons, of=len(dataset), what=f"{dataset.spec} {dataset.split}"))
    rest = replace(dataset.subset(whole), origin=None, buffer_indices=np.arange(len(whole), dtype=np.int64))
    return (_in_memory(rest, progress) if in_memory else rest), reasons


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
    workers: int | None,
) -> Dataset:
    """Return the samples at ``indices`` of a listing, to be decoded from the source."""
    return Dataset(
        spec=spec,
        name=listing.name,
        split=split,
        classes=listing.classes,
        keys=Names.of(listing.keys).take(indices),
        labels=listing.labels[indices],
        sample_ids=ids,
        content_digests=survey.digests,
        fingerprint=identity(ids, survey.digests, classes=listing.classes),
        sizes=survey.sizes,
        source=listing.source,
        source_indices=indices,
        buffer=None,
        buffer_indices=np.arange(len(indices), dtype=np.int64),
        published_statistics=listing.statistics,
        workers=workers,
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
