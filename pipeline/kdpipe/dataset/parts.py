"""Parts of a training split: what is held out for validation, and what has a label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kdpipe.dataset.identity import balanced_rows
from kdpipe.dataset.source import Dataset
from kdpipe.errors import DatasetError


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Part a dataset into one to train on and a class-balanced one to validate with, both in dataset order.

    ``fraction``, 0 < f < 1, is the validation samples' share of those that have a label. They are chosen by their ids
    alone, so a smaller fraction holds out some of what a larger one does. A recipe that mixes finds no partners among
    samples that are in the other part.

    Raises:
        DatasetError: a class would be left without samples to train on or to validate with.
    """
    labelled = np.flatnonzero(dataset.labels >= 0)
    count = round(fraction * len(labelled))
    held = labelled[balanced_rows(dataset.sample_ids[labelled], dataset.labels[labelled], limit=count)]
    kept = np.setdiff1d(np.arange(len(dataset)), held)
    present = np.unique(dataset.labels[labelled])
    for rows, purpose in ((held, "to validate with; hold out more"), (kept, "to train on; hold out fewer")):
        without = np.setdiff1d(present, dataset.labels[rows])
        if without.size or not len(rows):
            name = f"class '{dataset.classes[without[0]]}'" if without.size else dataset.spec
            raise DatasetError(
                f"holding {count} of {len(labelled)} labelled training samples out for validation, equally many of "
                f"each class, leaves {name} without samples {purpose}, or none."
            )
    train, validation = (replace(dataset.subset(rows), origin=None) for rows in (kept, held))
    return train, validation


def labelled(dataset: Dataset) -> Dataset:
    """Return the samples that have a label, in dataset order; a recipe that mixes finds partners among these.

    Raises:
        DatasetError: none has one.
    """
    rows = np.flatnonzero(dataset.labels >= 0)
    if not len(rows):
        raise DatasetError(
            f"no training sample of {dataset.spec} has a label: there is nothing to learn without a teacher."
        )
    return replace(dataset.subset(rows), origin=None)
