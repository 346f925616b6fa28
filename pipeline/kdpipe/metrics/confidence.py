"""Calibration and selective prediction: whether the probability of the predicted class can be relied on.

The confidence of a prediction is the softmax probability of the predicted class. Everything is computed in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.metrics.registry import Labels, Logits, blocks, metric

BINS = 15
"""Bins of equal width of the calibration error, as in Guo et al. (2017)."""
LIMITS = (0.01, 100.0)
"""Lowest and highest temperature that is fitted."""
_STEPS = 60

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: the samples whose confidence is in ``(low, high]``."""

    low: float
    high: float
    samples: int
    confidence: float | None
    """Mean confidence of its samples; None without any."""
    accuracy: float | None
    """Fraction of its samples that are predicted right; None without any."""


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The error rate of the most confident fraction of the samples, for every fraction."""

    coverage: Numbers
    """Fraction of the samples that are predicted, the most confident first: 1/n, 2/n, ..., 1."""
    risk: Numbers
    """Fraction of these that are predicted wrong."""


@metric(title="Brier score")
def brier(logits: Logits, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the label's: the sum over classes of (p - y)², 0 to 2.

    Brier, "Verification of forecasts expressed in terms of probability" (1950).
    """
    total = 0.0
    for start, rows in blocks(logits):
        probabilities = softmax(rows)
        own = np.take_along_axis(probabilities, labels[start : start + len(rows), None].astype(np.int64), axis=1)
        total += float(np.square(probabilities).sum() + (1 - 2 * own).sum())
    return total / len(logits)


@metric(title="ECE", unit="%")
def ece(logits: Logits, labels: Labels) -> float:
    """Expected calibration error: the mean distance between accuracy and confidence, in 15 bins of equal width.

    Each bin is weighted by its samples: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    return calibration_error(reliability(logits, labels))


@metric(title="AURC", unit="%")
def aurc(logits: Logits, labels: Labels) -> float:
    """Area under the risk-coverage curve: the mean error rate of the most confident samples, over all coverages.

    Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers" (2019). Samples of
    equal confidence count as in random order.
    """
    return float(risk_coverage(logits, labels).risk.mean())


def reliability(logits: Logits, labels: Labels, *, temperature: float = 1.0, bins: int = BINS) -> tuple[Bin, ...]:
    """Return the bins of the reliability diagram, for labeled samples and logits divided by ``temperature``."""
    confidence, right = _predictions(logits, labels, temperature)
    edges = np.arange(bins + 1) / bins
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=each, minlength=bins) for each in (confidence, right)]
    means = [
        [float(total / count) if count else None for total, count in zip(each, counts, strict=True)] for each in sums
    ]
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), means[0][i], means[1][i]) for i in range(bins)
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Return the mean distance between accuracy and confidence of the bins, weighted by their samples."""
    distance = 0.0
    for each in bins:
        if each.accuracy is not None and each.confidence is not None:
            distance += each.samples * abs(each.accuracy - each.confidence)
    return distance / sum(each.samples for each in bins)


def risk_coverage(logits: Logits, labels: Labels) -> RiskCoverage:
    """Return the risk-coverage curve of labeled samples; El-Yaniv and Wiener (2010).

    Samples of equal confidence are taken in random order: the risk is its expectation.
    """
    confidence, right = _predictions(logits, labels)
    order = np.argsort(-confidence, kind="stable")
    taken = np.arange(1, len(order) + 1)
    errors = np.concatenate([[0.0], np.cumsum(1.0 - right[order])])
    # Between the ends of a group of equal confidence the expected number of errors is linear.
    ends = np.concatenate([[0], np.flatnonzero(np.diff(confidence[order])) + 1, [len(order)]])
    return RiskCoverage(taken / len(order), np.interp(taken, ends, errors[ends]) / taken)


def fit_temperature(logits: Logits, labels: Labels) -> float | None:
    """Return the temperature with the lowest cross-entropy of the labeled samples, within ``LIMITS``.

    Guo et al. (2017), section 4.2. The cross-entropy is convex in the inverse temperature b, with the slope
    ``mean(E[z] - z_label)`` and the curvature ``mean(Var[z])`` under softmax(b z): Newton's method, which falls back to
    bisection where a step leaves the bracket. None without a labeled sample, or if a label's logit is minus infinity.
    """
    labeled = labels >= 0
    kept, wanted = logits[labeled], labels[labeled].astype(np.int64)
    if not len(kept) or not np.isfinite(np.take_along_axis(kept, wanted[:, None], axis=1)).all():
        return None
    low, high = 1 / LIMITS[1], 1 / LIMITS[0]
    if _slope(kept, wanted, high)[0] <= 0:
        return LIMITS[0]
    if _slope(kept, wanted, low)[0] >= 0:
        return LIMITS[1]
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(kept, wanted, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        stepped = inverse - slope / curvature if curvature > 0 else math.inf
        if abs(stepped - inverse) <= 1e-9 * inverse:
            break
        inverse = stepped if low < stepped < high else math.sqrt(low * high)
    return 1 / inverse


def softmax(rows: Numbers) -> Numbers:
    """Return the softmax of float64 logits ``(n, classes)``."""
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _predictions(logits: Logits, labels: Labels, temperature: float = 1.0) -> tuple[Numbers, Numbers]:
    """Return the confidence of each labeled sample and whether it is predicted right, both float64 ``(n,)``."""
    labeled = labels >= 0
    kept, wanted = (logits, labels) if labeled.all() else (logits[labeled], labels[labeled])
    confidence = [np.zeros(0)]
    for _, rows in blocks(kept):
        shifted = (rows - rows.max(axis=1, keepdims=True)) / temperature
        confidence.append(1 / np.exp(shifted).sum(axis=1))
    return np.concatenate(confidence), (kept.argmax(axis=1) == wanted).astype(np.float64)


def _slope(logits: Logits, labels: Labels, inverse: float) -> tuple[float, float]:
    """Return first and second derivative of the mean cross-entropy by the inverse temperature."""
    slope = curvature = 0.0
    for start, rows in blocks(logits):
        shifted = rows - rows.max(axis=1, keepdims=True)
        chances = softmax(shifted * inverse)
        shifted = np.where(np.isfinite(shifted), shifted, 0.0)  # its chance is 0
        mean = (chances * shifted).sum(axis=1)
        own = np.take_along_axis(shifted, labels[start : start + len(rows), None], axis=1)[:, 0]
        slope += float((mean - own).sum())
        curvature += float((chances * np.square(shifted - mean[:, None])).sum())
    return slope / len(logits), curvature / len(logits)
