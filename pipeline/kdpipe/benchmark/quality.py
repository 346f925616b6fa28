"""The predictions of one network on the test set, and what follows from them beyond single figures.

Classes and confidence: the confusion matrix, scores by class, the reliability diagram before and after temperature
scaling, the risk-coverage curve, and which samples are predicted right, for paired comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdpipe.metrics import (
    Bin,
    ClassScores,
    Figure,
    Labels,
    Logits,
    RiskCoverage,
    confusion,
    fit_temperature,
    per_class,
    reliability,
    risk_coverage,
)
from kdpipe.metrics.confidence import LIMITS, calibration_error
from kdpipe.metrics.significance import Correct, correct, within

BEST_TOP1 = Figure(
    "best_top1",
    "Top-1, best on validation",
    "Top-1 of the weights of the epoch that was best on the validation samples, best.safetensors, for runs with "
    "--validation. Every other figure is of the weights of the last epoch.",
    "%",
)
CALIBRATED_ECE = Figure(
    "calibrated_ece",
    "ECE, calibrated",
    "The expected calibration error of the logits divided by a temperature, which has the lowest cross-entropy on the "
    "run's validation samples (Guo et al. 2017). n/a for runs without --validation: a temperature is never fitted on "
    "the test samples.",
    "%",
)
TEMPERATURE = Figure(
    "temperature", "Temperature", "The temperature of the calibrated ECE; above 1 the logits are overconfident."
)
BESIDE = (BEST_TOP1, CALIBRATED_ECE, TEMPERATURE)
"""Figures that only some benchmarks have, in the order of their columns."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The test samples that all networks of a benchmark were measured on."""

    ids: NDArray[np.uint8]
    """Sample ids, ``(n, 16)``."""
    labels: NDArray[np.int32]
    """Class index of each sample, ``(n,)``; -1 for none."""
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Quality:
    """The logits of one network for the test samples; everything else is computed from them on demand."""

    logits: Logits
    """Float32 ``(n, classes)``."""
    labels: Labels
    """``(n,)``, -1 for none."""
    temperature: float | None = None
    """The temperature that was fitted on the run's validation samples; None without."""
    temperature_note: str | None = None
    """Why there is no temperature, or why it is doubtful."""

    @cached_property
    def correct(self) -> Correct:
        """Whether each labeled sample is predicted right, bool ``(labeled,)``."""
        return correct(self.logits, self.labels)

    @cached_property
    def correct_in_five(self) -> Correct:
        """Whether the label of each labeled sample is among the five largest logits, bool ``(labeled,)``."""
        return within(self.logits, self.labels, 5)

    @property
    def labeled(self) -> int:
        """Number of labeled samples."""
        return len(self.correct)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts of samples by class (row) and predicted class (column), ``(classes, classes)``."""
        return confusion(self.logits, self.labels)

    @cached_property
    def per_class(self) -> tuple[ClassScores, ...]:
        """Precision, recall and F1 of each class."""
        return per_class(self.confusion)

    @property
    def absent(self) -> tuple[int, ...]:
        """Classes without a labeled test sample, which have no scores."""
        return tuple(index for index, scores in enumerate(self.per_class) if not scores.samples)

    @cached_property
    def reliability(self) -> tuple[Bin, ...]:
        """The reliability diagram at temperature 1."""
        return reliability(self.logits, self.labels)

    @cached_property
    def calibrated_reliability(self) -> tuple[Bin, ...] | None:
        """The reliability diagram at the fitted temperature; None without."""
        if self.temperature is None:
            return None
        return reliability(self.logits, self.labels, temperature=self.temperature)

    @cached_property
    def risk_coverage(self) -> RiskCoverage:
        """The error rate of the most confident samples by their fraction."""
        return risk_coverage(self.logits, self.labels)

    @property
    def figures(self) -> dict[str, float | None]:
        """The temperature, and the calibration error after it; empty without a temperature."""
        bins = self.calibrated_reliability
        if bins is None:
            return {}
        error = calibration_error(bins) if self.labeled else None
        return {CALIBRATED_ECE.name: error, TEMPERATURE.name: self.temperature}


class Scaling(NamedTuple):
    """A temperature that was fitted on validation samples, and the reason why there is none or it is doubtful."""

    temperature: float | None
    note: str | None = None


def scaling(logits: Logits, labels: Labels) -> Scaling:
    """Return the temperature with the lowest cross-entropy on validation samples."""
    if not (labels >= 0).any():
        return Scaling(None, "no validation sample has a label")
    fitted = fit_temperature(logits, labels)
    if fitted is None:
        return Scaling(None, "the cross-entropy of the validation samples is infinite")
    if fitted in LIMITS:
        return Scaling(fitted, f"no temperature from {LIMITS[0]:g} to {LIMITS[1]:g} has the lowest cross-entropy")
    return Scaling(fitted)
