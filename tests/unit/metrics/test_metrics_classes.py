"""Scores by class against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from kdpipe.metrics import ClassScores, confusion, measure, per_class


def _random(rows: int, classes: int, *, absent: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(rows + classes)
    labels = (draw.random(rows) ** 2 * classes).astype(np.int32)  # small classes have more samples
    logits = (draw.standard_normal((rows, classes)) + 1.5 * np.eye(classes)[labels]).astype(np.float32)
    return logits, np.where(labels == absent, -1, labels).astype(np.int32)


@pytest.mark.parametrize(("rows", "classes", "absent"), [(400, 10, None), (400, 10, 3), (30, 50, None)])
def test_the_means_are_scikit_learns(rows: int, classes: int, absent: int | None) -> None:
    logits, labels = _random(rows, classes, absent=absent)
    found = measure(logits, labels)
    kept, predicted = labels[labels >= 0], logits[labels >= 0].argmax(axis=1)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            kept, predicted, labels=np.unique(kept), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert found[f"{name}_{average}"] == pytest.approx(value)
    present = np.isin(predicted, np.unique(kept))
    if present.all():
        assert found["recall_macro"] == pytest.approx(balanced_accuracy_score(kept, predicted))
    assert found["recall_weighted"] == pytest.approx(found["top1"])


@pytest.mark.parametrize("absent", [None, 3])
def test_each_class_has_scikit_learns_scores(absent: int | None) -> None:
    logits, labels = _random(400, 10, absent=absent)
    kept, predicted = labels[labels >= 0], logits[labels >= 0].argmax(axis=1)
    matrix = confusion(logits, labels)
    assert (matrix == confusion_matrix(kept, predicted, labels=np.arange(10))).all()
    expected = precision_recall_fscore_support(kept, predicted, labels=np.arange(10), zero_division=0)
    for index, scores in enumerate(per_class(matrix)):
        assert scores.predicted == (predicted == index).sum()
        if index == absent:
            assert scores == ClassScores(0, scores.predicted, None, None, None)
            continue
        found = (scores.precision, scores.recall, scores.f1, scores.samples)
        assert found == pytest.approx(tuple(each[index] for each in expected))


def test_a_class_that_is_never_predicted_has_the_precision_zero() -> None:
    logits = np.array([[1, 0], [1, 0]], np.float32)
    assert per_class(confusion(logits, np.array([0, 1], np.int32)))[1] == ClassScores(1, 0, 0.0, 0.0, 0.0)


def test_without_labels_no_class_has_a_score() -> None:
    matrix = confusion(np.zeros((4, 3), np.float32), np.full(4, -1, np.int32))
    assert per_class(matrix) == (ClassScores(0, 0, None, None, None),) * 3
