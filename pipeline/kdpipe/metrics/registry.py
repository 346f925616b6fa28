"""The registry of metrics: each is a function of logits, labels and teacher logits that returns one number.

    @metric(title="Top-1", unit="%", short="top-1 %")
    def top1(logits: Logits, labels: Labels) -> float:
        "Fraction of the labeled test samples whose label has the largest logit."

The names of its parameters are what a metric needs: ``logits``, ``labels`` or ``teacher_logits``. Benchmarks, reports
and their files include every registered metric.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DatasetError, DivergedError

Logits = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
BLOCK_ROWS = 4096

Compute = Callable[..., float]
F = TypeVar("F", bound=Compute)


@dataclass(frozen=True)
class Figure:
    """One number per student, and how reports write it."""

    name: str
    """Key in JSON and CSV."""
    title: str
    """Name for people, without the unit."""
    help: str
    """Definition, in a sentence or two."""
    unit: str = ""
    """``%`` for a fraction, which is stored as 0..1; ``nats``; or empty."""
    short: str = ""
    """Column heading on the terminal; empty to leave the figure out there."""

    @property
    def heading(self) -> str:
        """Column heading in a wide table."""
        return f"{self.title} %" if self.unit == "%" else self.title


@dataclass(frozen=True)
class Metric:
    """A registered metric."""

    figure: Figure
    compute: Compute
    needs: frozenset[str]
    """Which of ``logits``, ``labels`` and ``teacher_logits`` it takes."""


METRICS: dict[str, Metric] = {}
"""All metrics by name, in the order of their columns."""


def metric(*, title: str, unit: str = "", short: str = "") -> Callable[[F], F]:
    """Register a function under its own name; the first paragraph of its docstring is the definition.

    The function is called with checked arrays: float ``logits`` and ``teacher_logits`` ``(n, classes)`` without NaN or
    plus infinity, integer ``labels`` ``(n,)``. If it takes labels, it is given the labeled samples only, at least one.

    Raises:
        ValueError: the name is taken, or a parameter is none of the three.
    """

    def register(compute: F) -> F:
        name, needs = compute.__name__, frozenset(inspect.signature(compute).parameters)
        if name in METRICS:
            raise ValueError(f"there is a metric '{name}' already")
        if not needs <= {"logits", "labels", "teacher_logits"}:
            raise ValueError(
                f"the metric '{name}' takes {', '.join(sorted(needs))}: expected logits, labels, teacher_logits"
            )
        definition = " ".join((inspect.getdoc(compute) or "").split("\n\n")[0].split())
        METRICS[name] = Metric(Figure(name, title, definition, unit, short), compute, needs)
        return compute

    return register


def measure(logits: Logits, labels: Labels, teacher_logits: Logits | None = None) -> dict[str, float | None]:
    """Return every metric by name, for ``(n, classes)`` float logits and ``(n,)`` integer labels, -1 for none.

    A metric of the labels is None if no sample has one. Metrics of the teacher's logits are left out without them.

    Raises:
        ValueError: the shapes do not match.
        DatasetError: a label is neither -1 nor a class of the logits.
        DivergedError: a row of logits holds NaN or plus infinity, or only minus infinity.
    """
    labeled = labeled_samples(logits, labels)
    given: dict[str, Any] = {"logits": logits, "labels": labels}
    if teacher_logits is not None:
        check_pair(logits, teacher_logits)
        given["teacher_logits"] = teacher_logits
    of_labeled = given if labeled.all() else {name: values[labeled] for name, values in given.items()}
    found: dict[str, float | None] = {}
    for name, each in METRICS.items():
        if each.needs <= set(given):
            arrays = of_labeled if "labels" in each.needs else given
            enough = len(arrays["logits"]) > 0
            found[name] = each.compute(**{need: arrays[need] for need in each.needs}) if enough else None
    return found


def labeled_samples(logits: Logits, labels: Labels) -> NDArray[np.bool_]:
    """Check logits and labels, and return which samples have a label, bool ``(n,)``; raises as ``measure`` does."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (n, classes) and labels (n,), got {logits.shape} and {labels.shape}")
    wrong = (labels < -1) | (labels >= logits.shape[1])
    if wrong.any():
        index, classes = int(wrong.argmax()), logits.shape[1]
        raise DatasetError(
            f"sample {index} has label {int(labels[index])}, but the logits have {classes} classes: expected "
            f"0..{classes - 1}, or -1 for none. Check that the model and the data have the same classes."
        )
    _check_finite(logits, "logits")
    labeled: NDArray[np.bool_] = labels >= 0
    return labeled


def check_pair(logits: Logits, teacher_logits: Logits) -> None:
    """Check the logits of a student and of a teacher for the same samples.

    Raises:
        ValueError: the shapes differ, or there is no sample.
        DivergedError: a row holds NaN or plus infinity, or only minus infinity.
    """
    if logits.ndim != 2 or logits.shape != teacher_logits.shape or len(logits) == 0:
        raise ValueError(
            "expected two arrays of logits (n, classes) of the same n > 0 samples, "
            f"got {logits.shape} and {teacher_logits.shape}"
        )
    _check_finite(logits, "the student's logits")
    _check_finite(teacher_logits, "the teacher's logits")


def blocks(logits: Logits) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield ``(first row, rows in float64)``, at most ``BLOCK_ROWS`` rows at a time."""
    for start in range(0, len(logits), BLOCK_ROWS):
        yield start, logits[start : start + BLOCK_ROWS].astype(np.float64)


def _check_finite(logits: Logits, whose: str) -> None:
    broken = ~np.isfinite(logits.max(axis=1, initial=-np.inf))
    if broken.any():
        raise DivergedError(
            f"{whose} of sample {int(broken.argmax())} hold NaN or infinity; expected finite values. Train the model "
            "again with a lower learning rate, or leave it out."
        )
