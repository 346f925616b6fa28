"""The noise of an accuracy on a finite test set, and whether two students differ by more than it.

Everything here measures the noise of the test samples. The noise of training is the deviation over seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdpipe.metrics.registry import Labels, Logits

Correct = NDArray[np.bool_]
"""Whether each prediction is right: bool ``(n,)`` of one run, or ``(runs, n)`` of several seeds."""

LEVEL = 0.05
"""The two-sided level of every test, and one minus the coverage of every interval."""
RESAMPLES = 10_000
"""Bootstrap resamples: the bounds of the interval vary by about 2 % of its width between seeds."""
Z95 = NormalDist().inv_cdf(1 - LEVEL / 2)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of a first student minus that of a second on the same test samples."""

    difference: float
    """Accuracy of the first minus that of the second, -1..1."""
    low: float
    """Lower bound of the 95 % interval: percentile bootstrap over the test samples."""
    high: float
    """Upper bound of that interval."""
    p_value: float
    """Two-sided p-value of the hypothesis that both have the same accuracy, by McNemar's exact test."""
    samples: int
    """Number of test samples."""
    discordant: float
    """Fraction of the samples that one of them predicts right and the other wrong; of several seeds, the mean square
    of the difference per sample."""

    @property
    def significant(self) -> bool:
        """Whether the two differ at the 5 % level."""
        return self.p_value < LEVEL

    def samples_needed(self, power: float = 0.8) -> int | None:
        """Return how many test samples decide this difference at the 5 % level with the given power.

        ``(z_level sqrt(q) + z_power sqrt(q - d^2))^2 / d^2`` for a difference ``d`` and a discordant fraction ``q``:
        Connor, "Sample size for testing differences in proportions for the paired-sample design" (1987). It takes
        the observed ``d`` and ``q`` for the true ones. None where the observed difference is zero.
        """
        if self.difference == 0:
            return None
        spread = math.sqrt(max(self.discordant - self.difference**2, 0.0))
        needed = (Z95 * math.sqrt(self.discordant) + NormalDist().inv_cdf(power) * spread) / self.difference
        return math.ceil(needed**2)


def correct(logits: Logits, labels: Labels) -> Correct:
    """Return whether each labeled sample is predicted right, bool ``(labeled,)``; of equal logits the lower class wins.

    ``logits`` are float ``(n, classes)`` and ``labels`` ``(n,)`` with -1 for none, as checked by ``measure``.
    """
    labeled = labels >= 0
    right: Correct = logits[labeled].argmax(axis=1) == labels[labeled]
    return right


def within(logits: Logits, labels: Labels, largest: int) -> Correct:
    """Return whether the label of each labeled sample is among the ``largest`` classes, bool ``(labeled,)``.

    Arguments are as for ``correct``, and the classes in the order of a stable sort by falling logit.
    """
    labeled = labels >= 0
    rows, wanted = logits[labeled], labels[labeled][:, None].astype(np.int64)
    value = np.take_along_axis(rows, wanted, axis=1)
    ahead = (rows > value) | ((rows == value) & (np.arange(rows.shape[1]) < wanted))
    found: Correct = ahead.sum(axis=1) < largest
    return found


def accuracy_interval(accuracy: float, samples: int) -> Interval:
    """Return the 95 % interval of an accuracy, 0..1, that was measured on ``samples`` test samples.

    The score interval of Wilson, "Probable inference, the law of succession, and statistical inference" (1927). For the
    mean of several seeds on the same samples it is conservative: their errors coincide only in part.

    Raises:
        ValueError: the accuracy is not in 0..1, or there is no sample.
    """
    if not 0 <= accuracy <= 1 or samples < 1:
        raise ValueError(f"expected an accuracy in 0..1 on at least one sample, got {accuracy} on {samples}")
    square = Z95**2 / samples
    center = accuracy + square / 2
    half = math.sqrt(square * accuracy * (1 - accuracy) + square**2 / 4)
    low, high = (center - half) / (1 + square), (center + half) / (1 + square)
    return Interval(0.0 if accuracy == 0 else low, 1.0 if accuracy == 1 else high)  # exactly, not up to rounding


def paired(first_correct: Correct, second_correct: Correct, *, seed: int = 0) -> PairedDifference:
    """Return the difference of two students on the same labeled test samples in the same order.

    Each is bool ``(n,)``, or ``(runs, n)`` for the mean of several seeds. The test is McNemar's, in its exact form (a
    sign test of the samples that one predicts right and the other wrong); for several seeds it is its generalization
    to the mean over runs, which changes the sign of each sample's difference at random (Fisher's randomization test),
    computed exactly. The interval is the percentile bootstrap with ``RESAMPLES`` resamples of the test samples.

    Raises:
        ValueError: the numbers of samples differ, or there is none.
    """
    units, scale = _differences(first_correct, second_correct)
    values, counts = np.unique(units, return_counts=True)
    exact = _sign_test if scale == 1 else _sign_flip_test
    drawn = np.random.default_rng(seed).multinomial(len(units), counts / len(units), size=RESAMPLES)
    low, high = np.quantile(drawn @ values / (scale * len(units)), [LEVEL / 2, 1 - LEVEL / 2])
    return PairedDifference(
        difference=float(units.sum()) / (scale * len(units)),
        low=float(low),
        high=float(high),
        p_value=exact(units),
        samples=len(units),
        discordant=float(np.mean((units / scale) ** 2)),
    )


def _differences(first: Correct, second: Correct) -> tuple[NDArray[np.int64], int]:
    """Return the difference of correctness per sample in whole units, int64 ``(n,)``, and the units per one."""
    rows = [np.atleast_2d(np.asarray(each, dtype=bool)) for each in (first, second)]
    if rows[0].shape[1] != rows[1].shape[1] or rows[0].size == 0 or rows[1].size == 0:
        raise ValueError(
            f"expected the correctness of the same n > 0 samples, got arrays of {rows[0].shape} and {rows[1].shape}"
        )
    scale = math.lcm(len(rows[0]), len(rows[1]))
    sums = [each.sum(axis=0, dtype=np.int64) * (scale // len(each)) for each in rows]
    return sums[0] - sums[1], scale


def _sign_test(signs: NDArray[np.int64]) -> float:
    """Return the two-sided p-value of McNemar's exact test for differences of -1, 0 and 1."""
    better, worse = int((signs > 0).sum()), int((signs < 0).sum())
    trials = better + worse
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])  # of the factorials
    few = np.arange(min(better, worse) + 1)
    tail = np.exp(logs[trials] - logs[few] - logs[trials - few] - trials * math.log(2)).sum()
    return min(1.0, 2 * float(tail))


def _sign_flip_test(units: NDArray[np.int64]) -> float:
    """Return the probability that random signs give a sum at least as far from zero; exact, by Fourier inversion.

    The characteristic function of the sum is the product of ``cos(t |u|)`` over the samples.
    """
    sizes, counts = np.unique(np.abs(units[units != 0]), return_counts=True)
    reach = int((sizes * counts).sum())
    angles = 2 * np.pi * np.arange(2 * reach + 1) / (2 * reach + 1)
    function = np.ones(2 * reach + 1)
    for size, count in zip(sizes, counts, strict=True):
        function *= np.cos(angles * size) ** count
    chances: NDArray[Any] = np.fft.fft(function).real / (2 * reach + 1)
    sums = np.minimum(np.arange(2 * reach + 1), 2 * reach + 1 - np.arange(2 * reach + 1))  # absolute values
    return float(np.clip(chances[sums >= abs(int(units.sum()))].sum(), 0.0, 1.0))
