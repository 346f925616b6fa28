"""Audit: the samples of a dataset whose labels a store's teacher finds unlikely in all views.

The margin of a label is its logit minus the largest logit of another class: the log of the ratio of their
probabilities. A sample's score is the weighted mean of its margins over the views. The weight of a view is the square
of the log-odds that the teacher is right in it, so that views in which it is often wrong count little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset, find_ids
from kdpipe.errors import DatasetError, StoreError
from kdpipe.pairing.join import with_store_ids
from kdpipe.pairing.probes import stored_recipe
from kdpipe.pairing.recognition import differing
from kdpipe.progress import Progress, silent
from kdpipe.store.reader import LogitStore

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_BLOCK = 16_384
"""Rows whose logits are in memory as float64 at a time."""


@dataclass(frozen=True)
class Margins:
    """The labels of some samples against a teacher's logits in one view; all arrays are ``(n,)``."""

    margin: Floats
    """Logit of the label minus the largest logit of another class."""
    predicted: Integers
    """The class with the largest logit; of equal ones the lowest."""
    of_label: Floats
    """Probability of the label at temperature 1."""
    of_predicted: Floats
    """Probability of the predicted class."""

    @classmethod
    def of(cls, logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Margins:
        """Compare logits ``(n, classes)``, of two classes at least, with labels ``(n,)``, 0 to classes - 1."""
        values = logits.astype(np.float64)
        rows = np.arange(len(values))
        own = values[rows, labels]
        others = values.copy()
        others[rows, labels] = -np.inf
        predicted = values.argmax(axis=1)
        top = values[rows, predicted]
        total = np.exp(values - top[:, None]).sum(axis=1)
        return cls(own - others.max(axis=1), predicted, np.exp(own - top) / total, 1 / total)


@dataclass(frozen=True)
class Audit:
    """The labeled samples that a store has, the least likely label first; all arrays are ``(n,)``."""

    indices: Integers
    """Index of each sample in the dataset."""
    scores: Floats
    """Weighted mean of the margins over the views; negative where the teacher prefers another class."""
    predicted: Integers
    """The teacher's class in the plain view."""
    of_label: Floats
    """Mean probability of the label over the views."""
    of_predicted: Floats
    """Probability of ``predicted`` in the plain view."""
    against: Integers
    """Views in which the teacher predicts another class than the label."""
    accuracies: tuple[float, ...]
    """Fraction of the samples whose label the teacher predicts, in each view, the plain one first."""
    unlabeled: int
    """Samples that the store has and that have no label."""
    missing: int
    """Samples that the store does not have, or whose images have changed."""

    @property
    def views(self) -> int:
        """The number of views that were compared."""
        return len(self.accuracies)

    @property
    def suspects(self) -> int:
        """The number of samples with a negative score."""
        return int(np.count_nonzero(self.scores < 0))


def audit(store: LogitStore, dataset: Dataset, *, progress: Progress = silent) -> Audit:
    """Compare the labels of a dataset with a store's logits in all views; with a recipe that mixes, in the plain one.

    Args:
        store: a split of a store.
        dataset: the same split, whose classes are the store's.
        progress: shows the views that are done.

    Raises:
        DatasetError: the store has none of its labeled samples.
        StoreError: there is one class; or the teacher predicts the labels no better than chance in any view.
        StaleStoreError: the recipe of the store is unknown.
    """
    if store.num_classes < 2:
        raise StoreError(f"{store.path} has one class: no label can be wrong.")
    known = with_store_ids(store, dataset, progress=progress)
    rows = find_ids(known.sample_ids, store.sample_ids)
    there = (rows >= 0) & ~differing(store, known, rows, progress=progress)
    indices = np.flatnonzero(there & (known.labels >= 0))
    if not len(indices):
        raise DatasetError(f"{store.path} has none of the labeled '{dataset.split}' samples of {dataset.spec}.")
    indices = indices[np.argsort(rows[indices], kind="stable")]
    found = _compared(store, rows[indices], known.labels[indices].astype(np.int64), progress)
    if not found.weight:
        raise StoreError(
            f"the teacher of {store.path} predicts {found.accuracies[0]:.1%} of the labels of {dataset.spec}, no more "
            "than chance: it cannot tell wrong labels from right ones. Check that its classes are those of the dataset."
        )
    order = np.argsort(found.margins, kind="stable")
    return Audit(
        indices=indices[order],
        scores=found.margins[order] / found.weight,
        predicted=found.plain.predicted[order],
        of_label=found.of_label[order],
        of_predicted=found.plain.of_predicted[order],
        against=found.against[order],
        accuracies=found.accuracies,
        unlabeled=int((there & (known.labels < 0)).sum()),
        missing=int((~there).sum()),
    )


@dataclass(frozen=True)
class _Compared:
    """Labels against the logits of all views."""

    plain: Margins
    """Those of the plain view."""
    margins: Floats
    """Weighted sum over the views."""
    weight: float
    """Sum of the weights."""
    of_label: Floats
    """Mean over the views."""
    against: Integers
    accuracies: tuple[float, ...]


def _compared(store: LogitStore, rows: Integers, labels: Integers, progress: Progress) -> _Compared:
    """Compare the labels of rows, in ascending order, with all views; with a recipe that mixes, with the plain one."""
    views = 1 if stored_recipe(store).mixes else store.num_views + 1
    margins, of_label, against = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    plain = _of_view(store, rows, labels, 0)
    total, accuracies = 0.0, []
    with progress("comparing labels", total=views, unit="views") as report:
        for view in range(views):
            found = plain if view == 0 else _of_view(store, rows, labels, view)
            right = found.predicted == labels
            accuracies.append(float(right.mean()))
            weight = _weight(int(right.sum()), len(rows), classes=store.num_classes)
            margins, total = margins + weight * found.margin, total + weight
            of_label, against = of_label + found.of_label / views, against + ~right
            report(1)
    return _Compared(plain, margins, total, of_label, against, tuple(accuracies))


def _of_view(store: LogitStore, rows: Integers, labels: Integers, view: int) -> Margins:
    """Compare the labels of rows, in ascending order, with one view."""
    parts = [
        Margins.of(store.logits(rows[start : start + _BLOCK], view), labels[start : start + _BLOCK])
        for start in range(0, len(rows), _BLOCK)
    ]
    return Margins(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("margin", "predicted", "of_label", "of_predicted")
        )
    )


def _weight(right: int, count: int, *, classes: int) -> float:
    """Return the squared log-odds of the teacher being right against those of chance, 0 where it is no better.

    One right and one wrong sample are added, so that a teacher without an error has finite odds.
    """
    odds = (right + 1) / (count - right + 1)
    return max(math.log(odds * (classes - 1)), 0.0) ** 2
