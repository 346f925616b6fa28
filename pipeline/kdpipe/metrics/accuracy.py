"""What a model's logits are worth: against the labels, and against another model's logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DatasetError, DivergedError

Logits = NDArray[np.floating[Any]]
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over the labelled samples; every figure is None when no sample has a label."""

    top1: float | None
    """Share of samples whose label is the first largest logit, 0..1."""
    top5: float | None
    """Share of samples whose label is among the ``min(5, classes)`` largest logits, 0..1."""
    loss: float | None
    """Mean cross-entropy in nats; infinite where a label's logit is minus infinity."""


def accuracy(logits: Logits, labels: NDArray[np.integer[Any]]) -> Accuracy:
    """Measure ``(n, classes)`` float logits against ``(n,)`` integer labels.

    Samples labelled -1 are skipped. Of equal logits the lower class index wins, as with ``argmax``. The
    cross-entropy is computed and averaged in float64.

    Raises:
        ValueError: The shapes do not belong together.
        DatasetError: A label is neither -1 nor a class of the logits.
        DivergedError: A row of logits holds NaN or plus infinity, or nothing but minus infinity.

    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, classes) and labels (n,), got {logits.shape} and {labels.shape}")
    classes = logits.shape[1]
    _check_labels(labels, classes)
    hits1 = hits5 = counted = 0
    loss = 0.0
    for start, block in _blocks(logits, "logits"):
        block_labels = labels[start : start + len(block)]
        labelled = block_labels >= 0
        rows, wanted = block[labelled], block_labels[labelled].astype(np.int64)
        ranks = _ranks(rows, wanted)
        hits1 += int((ranks < 1).sum())
        hits5 += int((ranks < min(5, classes)).sum())
        loss += float(_cross_entropy(rows, wanted).sum())
        counted += len(rows)
    if counted == 0:
        return Accuracy(top1=None, top5=None, loss=None)
    return Accuracy(top1=hits1 / counted, top5=hits5 / counted, loss=loss / counted)


def agreement(student_logits: Logits, teacher_logits: Logits) -> float:
    """Return the share of samples, 0..1, on which two models name the same class.

    Both take ``(n, classes)`` float logits of the same samples in the same order; of equal logits the lower
    class index wins. Labels play no part.

    Raises:
        ValueError: The shapes differ, or there is no sample.
        DivergedError: A row of logits holds NaN or plus infinity, or nothing but minus infinity.

    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape or len(student_logits) == 0:
        raise ValueError(
            "expected two arrays of logits (n, classes) of the same n > 0 samples, "
            f"got {student_logits.shape} and {teacher_logits.shape}"
        )
    student = [block.argmax(axis=1) for _, block in _blocks(student_logits, "the student's logits")]
    teacher = [block.argmax(axis=1) for _, block in _blocks(teacher_logits, "the teacher's logits")]
    return float((np.concatenate(student) == np.concatenate(teacher)).mean())


def _blocks(logits: Logits, whose: str) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield ``(first row, rows in float64)``, a bounded number of rows at a time, each row checked."""
    for start in range(0, len(logits), BLOCK_ROWS):
        block = logits[start : start + BLOCK_ROWS].astype(np.float64)
        broken = ~np.isfinite(block.max(axis=1))
        if broken.any():
            raise DivergedError(
                f"{whose} of sample {start + int(broken.argmax())} hold NaN or infinity; expected "
                "finite values. Train the model again with a lower learning rate, or leave it out."
            )
        yield start, block


def _check_labels(labels: NDArray[np.integer[Any]], classes: int) -> None:
    wrong = (labels < -1) | (labels >= classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise DatasetError(
            f"sample {index} has label {int(labels[index])}, but the logits have {classes} classes: expected "
            f"0..{classes - 1}, or -1 for none. Check that the model and the data have the same classes."
        )


def _ranks(rows: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position, ``(n,)``, of each wanted class in a stable sort by falling logit."""
    value = np.take_along_axis(rows, wanted[:, None], axis=1)
    earlier = np.arange(rows.shape[1]) < wanted[:, None]
    ahead = (rows > value) | ((rows == value) & earlier)
    ranks: NDArray[np.int64] = ahead.sum(axis=1, dtype=np.int64)
    return ranks


def _cross_entropy(rows: NDArray[np.float64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return ``log sum exp(rows) - rows[wanted]`` per row, ``(n,)``, shifted by the row maximum."""
    shifted = rows - rows.max(axis=1, keepdims=True, initial=-np.inf)
    total: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1))
    chosen: NDArray[np.float64] = np.take_along_axis(shifted, wanted[:, None], axis=1)[:, 0]
    return total - chosen
