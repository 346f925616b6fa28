"""The confusion matrix, and precision, recall and F1 of each class and of all.

Of equal logits the lower class index wins. A class without a labeled test sample has no score and does not count in the
means; a class that is never predicted has the precision 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdpipe.metrics.registry import Labels, Logits, metric


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class; None for a class without a labeled test sample."""

    samples: int
    """Labeled test samples of the class."""
    predicted: int
    """Labeled test samples for which the class is predicted."""
    precision: float | None
    """Fraction of the predictions of this class that are right; 0 if it is never predicted."""
    recall: float | None
    """Fraction of the samples of this class that are predicted as it."""
    f1: float | None
    """Harmonic mean of the two; 0 if both are 0."""


class _Scores(NamedTuple):
    """Precision, recall and F1 by class, each float64 ``(present,)``, for the classes that have test samples."""

    samples: NDArray[np.int64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def confusion(logits: Logits, labels: Labels) -> NDArray[np.int64]:
    """Return how often each class (row) is predicted as each class (column), int64 ``(classes, classes)``.

    Samples without a label, -1, are left out.
    """
    labeled, classes = labels >= 0, logits.shape[1]
    pairs = labels[labeled].astype(np.int64) * classes + logits[labeled].argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def per_class(matrix: NDArray[np.int64]) -> tuple[ClassScores, ...]:
    """Return the scores of each class from the confusion matrix."""
    present = np.flatnonzero(matrix.sum(axis=1))
    scores = _scores(matrix)
    predicted = matrix.sum(axis=0)
    found = [ClassScores(0, int(count), None, None, None) for count in predicted]
    for index, samples, *values in zip(present, *scores, strict=True):
        precision, recall, f1 = map(float, values)
        found[index] = ClassScores(int(samples), int(predicted[index]), precision, recall, f1)
    return tuple(found)


@metric(title="Precision, macro", unit="%")
def precision_macro(logits: Logits, labels: Labels) -> float:
    """Mean over the classes of the fraction of the predictions of a class that are right.

    Classes without a test sample are left out; a class that is never predicted counts as 0.
    """
    return float(_scores(confusion(logits, labels)).precision.mean())


@metric(title="Recall, macro", unit="%")
def recall_macro(logits: Logits, labels: Labels) -> float:
    """Mean over the classes with a test sample of the fraction of its samples that are predicted as it.

    Also called balanced accuracy.
    """
    return float(_scores(confusion(logits, labels)).recall.mean())


@metric(title="F1, macro", unit="%")
def f1_macro(logits: Logits, labels: Labels) -> float:
    """Mean over the classes with a test sample of F1, the harmonic mean of precision and recall."""
    return float(_scores(confusion(logits, labels)).f1.mean())


@metric(title="Precision, weighted", unit="%")
def precision_weighted(logits: Logits, labels: Labels) -> float:
    """Mean precision, each class weighted by its number of test samples."""
    scores = _scores(confusion(logits, labels))
    return float(np.average(scores.precision, weights=scores.samples))


@metric(title="Recall, weighted", unit="%")
def recall_weighted(logits: Logits, labels: Labels) -> float:
    """Mean recall, each class weighted by its number of test samples: equal to top-1."""
    scores = _scores(confusion(logits, labels))
    return float(np.average(scores.recall, weights=scores.samples))


@metric(title="F1, weighted", unit="%")
def f1_weighted(logits: Logits, labels: Labels) -> float:
    """Mean F1, each class weighted by its number of test samples."""
    scores = _scores(confusion(logits, labels))
    return float(np.average(scores.f1, weights=scores.samples))


def _scores(matrix: NDArray[np.int64]) -> _Scores:
    present = matrix.sum(axis=1) > 0
    right, samples = np.diagonal(matrix)[present], matrix.sum(axis=1)[present]
    predicted = matrix.sum(axis=0)[present]
    return _Scores(
        samples=samples,
        precision=right / np.maximum(predicted, 1),
        recall=right / samples,
        f1=2 * right / (samples + predicted),  # samples are at least 1
    )
