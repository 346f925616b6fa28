"""The command `kdpipe verify --data`: compare the samples of a store with those of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdpipe import dataset
from kdpipe.errors import MissingSplitError
from kdpipe.pairing.classes import ClassMap, find_classes, read_class_map
from kdpipe.pairing.join import verify_data, with_store_ids
from kdpipe.stages.console import progress
from kdpipe.store.inspect import summary
from kdpipe.store.reader import open_store

SHOWN = 4
"""Lines on a dataset that are printed, before the one that sums up."""


def against(path: Path, data: str, *, complete: bool, class_map: Path | None) -> tuple[list[str], list[str]]:
    """Compare every split of a store with a dataset; return lines on faults, and on what is none: four in all.

    A dataset that has some of the samples is no fault, unless it must be ``complete``. ``class_map`` is a file with the
    store's classes of those that have other names.

    Raises:
        StaleStoreError: classes of the dataset cannot be matched with those of the store.
        KdpipeError: the store, the dataset or the file cannot be read.
    """
    given = None if class_map is None else read_class_map(class_map)
    faults: list[str] = []
    notes: list[str] = []
    found: ClassMap | None = None
    absent = 0
    present = summary(path)
    splits = list(present["here"] or present["splits"])
    for split in splits:
        try:
            samples = dataset.load(data, split, progress=progress)
        except MissingSplitError as missing:
            absent += 1
            (faults if complete else notes).append(str(missing))
            continue
        store = open_store(path, split=split)
        samples = with_store_ids(store, samples, progress=progress)
        if found is None or tuple(match.name for match in found.matches) != samples.classes:
            found = find_classes(store, samples, given=given)
            notes += [] if found is None else found.lines(path, data)[:1]
        samples = samples if found is None else found.of(samples)
        faults += verify_data(store, samples, complete=complete, say=notes.append)
    if absent == len(splits):
        faults.append(f"{data} has none of its splits")
    faults = _shortened(faults, SHOWN)
    return faults, _shortened(notes, SHOWN - len(faults)) if len(faults) < SHOWN else []


def _shortened(lines: Sequence[str], most: int) -> list[str]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], f"and {len(lines) - most + 1:,} more lines on the data"]
