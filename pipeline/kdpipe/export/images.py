"""The images that exported networks take: uint8 pixels of the plain view, some of them to calibrate int8 with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kdpipe.dataset import Dataset
from kdpipe.models import AnyPreset, Preset
from kdpipe.views import Geometry, Renderer

Pixels = npt.NDArray[np.uint8]
"""Images ``(n, 3, S, S)``."""

_BATCH = 64


def plain_batches(samples: Dataset, preset: AnyPreset) -> Iterator[Pixels]:
    """Yield the plain view of all samples in order, in batches of 64, as a model with this preset takes it."""
    renderer = Renderer(samples, "none", seed=0, geometry=Geometry.of(preset), device="cpu")
    batches = [np.arange(start, min(start + _BATCH, len(samples))) for start in range(0, len(samples), _BATCH)]
    for pixels in renderer.batches(batches, view=0):
        yield pixels.numpy()


def calibration_images(train: Dataset, preset: Preset, *, count: int, seed: int) -> Pixels:
    """Return the plain view of ``count`` training samples, or of all where there are fewer.

    They are drawn by ``seed``, each at most once. Calibrating with test images would adapt the network to them.
    """
    chosen = np.random.default_rng(seed).permutation(len(train))[:count]
    return np.concatenate(list(plain_batches(train.subset(np.sort(chosen)), preset)))


def example(size: int) -> Pixels:
    """Return one synthetic image ``(1, 3, size, size)``, a pattern by a closed formula."""
    y, x, channel = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    pattern = (x * x + 3 * y * y + 7 * x * y + 11 * x + 5 * y + 85 * channel) % 256
    image: Pixels = pattern.astype(np.uint8).transpose(2, 0, 1)[None]
    return image
