"""Accuracy and cross-entropy against the labels; agreement with a teacher, and divergence from it.

Of equal logits the lower class index wins, as with ``argmax``. Everything is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.metrics.registry import Labels, Logits, blocks, check_pair, labeled_samples, metric


@metric(title="Top-1", unit="%", short="top-1 %")
def top1(logits: Logits, labels: Labels) -> float:
    """Fraction of the labeled test samples whose label has the largest logit. Of equal logits the lower class wins."""
    return _within(logits, labels, 1)


@metric(title="Top-5", unit="%")
def top5(logits: Logits, labels: Labels) -> float:
    """Fraction of the labeled test samples whose label is among the five largest logits."""
    return _within(logits, labels, 5)


@metric(title="Cross-entropy", unit="nats")
def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean negative log-likelihood of the label, in nats, at temperature 1.

    Infinite where a label's logit is minus infinity.
    """
    total = 0.0
    for start, rows in blocks(logits):
        shifted = rows - rows.max(axis=1, keepdims=True, initial=-np.inf)
        chosen = np.take_along_axis(shifted, _column(labels, start, rows), axis=1)[:, 0]
        total += float((np.log(np.exp(shifted).sum(axis=1)) - chosen).sum())
    return total / len(logits)


@metric(title="Agreement", unit="%", short="agree %")
def agreement(logits: Logits, teacher_logits: Logits) -> float:
    """Fraction of the test samples for which student and teacher predict the same class, right or wrong.

    Both are float ``(n, classes)``, of the same samples in the same order.

    Raises:
        ValueError: the shapes differ, or there is no sample.
        DivergedError: a row of logits holds NaN or plus infinity, or only minus infinity.
    """
    check_pair(logits, teacher_logits)
    return float((logits.argmax(axis=1) == teacher_logits.argmax(axis=1)).mean())


@metric(title="KL", unit="nats")
def kl(logits: Logits, teacher_logits: Logits) -> float:
    """Mean Kullback-Leibler divergence of the student's probabilities from the teacher's, KL(teacher || student).

    In nats, at temperature 1. Infinite where the student excludes a class that the teacher does not.
    """
    total = 0.0
    for start, rows in blocks(logits):
        ours = _log_softmax(rows)
        theirs = _log_softmax(teacher_logits[start : start + len(rows)].astype(np.float64))
        chances = np.exp(theirs)
        possible = chances > 0
        total += float((chances[possible] * (theirs[possible] - ours[possible])).sum())
    return max(total / len(logits), 0.0)  # rounding


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over the labeled samples; every figure is None if no sample has a label."""

    top1: float | None
    """Fraction of samples whose label has the largest logit."""
    top5: float | None
    """Fraction of samples whose label is among the ``min(5, classes)`` largest logits."""
    loss: float | None
    """Mean cross-entropy in nats; infinite where a label's logit is minus infinity."""


def accuracy(logits: Logits, labels: Labels) -> Accuracy:
    """Return the accuracy of ``(n, classes)`` float logits for ``(n,)`` integer labels; -1 is no label.

    Raises:
        ValueError: the shapes do not match.
        DatasetError: a label is neither -1 nor a class of the logits.
        DivergedError: a row of logits holds NaN or plus infinity, or only minus infinity.
    """
    labeled = labeled_samples(logits, labels)
    if not labeled.any():
        return Accuracy(top1=None, top5=None, loss=None)
    if not labeled.all():
        logits, labels = logits[labeled], labels[labeled]
    return Accuracy(top1=top1(logits, labels), top5=top5(logits, labels), loss=cross_entropy(logits, labels))


def _within(logits: Logits, labels: Labels, largest: int) -> float:
    """Return the fraction of rows whose label is among the ``largest`` first in a stable sort by falling logit."""
    hits = 0
    for start, rows in blocks(logits):
        wanted = _column(labels, start, rows)
        value = np.take_along_axis(rows, wanted, axis=1)
        earlier = np.arange(rows.shape[1]) < wanted
        ahead = ((rows > value) | ((rows == value) & earlier)).sum(axis=1)
        hits += int((ahead < largest).sum())
    return hits / len(logits)


def _column(labels: Labels, start: int, rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the labels of a block's rows, ``(rows, 1)``."""
    return labels[start : start + len(rows), None].astype(np.int64)


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
