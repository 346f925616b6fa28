"""Parts of a loaded split: a balanced part held out for validation, the labeled samples, a choice of kept labels.

Samples are chosen by their ids alone, so that the choice does not depend on their order.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kdpipe.dataset.choice import balanced_indices, ranks_in_class
from kdpipe.dataset.ids import find_ids
from kdpipe.dataset.samples import Dataset
from kdpipe.errors import DatasetError


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
