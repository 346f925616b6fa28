"""Mean and standard deviation of the channels, which a model is normalised with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset.identity import balanced_rows

Channels = tuple[float, float, float]

PUBLISHED: dict[str, tuple[Channels, Channels]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""By kind of dataset: mean and standard deviation over the training split, as commonly quoted."""

SAMPLES = 10_000
"""Larger datasets are judged by this many of their samples."""


def channel_statistics(
    spec: str, ids: npt.NDArray[np.uint8], *, image: Callable[[int], torch.Tensor]
) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel, in 0..1, rounded to four digits.

    Sums are exact integers, so the result does not depend on how the pixels are kept or ordered.
    """
    kind = spec.partition(":")[0]
    if kind in PUBLISHED:
        return PUBLISHED[kind]
    rows = balanced_rows(ids, np.zeros(len(ids), dtype=np.int32), limit=SAMPLES)
    levels = np.arange(256, dtype=np.int64)
    counts = np.zeros((3, 256), dtype=np.int64)
    for row in rows:
        pixels = image(int(row)).numpy()
        for channel in range(3):
            counts[channel] += np.bincount(pixels[channel].reshape(-1), minlength=256)
    total = counts.sum(axis=1)
    mean = (counts @ levels) / total
    variance = np.maximum((counts @ levels**2) / total - mean**2, 0)
    deviation = np.maximum(np.sqrt(variance), 1.0)
    return _rounded(mean), _rounded(deviation)


def _rounded(levels: npt.NDArray[np.float64]) -> Channels:
    red, green, blue = (round(float(level) / 255, 4) for level in levels)
    return red, green, blue
