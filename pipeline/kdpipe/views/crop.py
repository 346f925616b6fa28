"""Which box of its source image a view shows: chosen once, in whole source pixels, for every input size.

A model of 224 pixels and one of 160 resize the same box. Drawn values only go through operations that IEEE 754 rounds
correctly, so the boxes are the same on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdpipe.views.grid import log_uniform
from kdpipe.views.operations import Stream
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Step

_ATTEMPTS = 10

Integers = npt.NDArray[np.int64]


class Boxes(NamedTuple):
    """What is cut out of ``n`` source images, and whether it is mirrored."""

    places: Integers
    """Top, left, height and width in source pixels, ``(n, 4)``; what lies outside of the source is black."""
    flips: npt.NDArray[np.bool_]
    """``(n,)``"""


def boxes(steps: tuple[Step, ...], draws: Draws, sizes: Integers, *, square: bool) -> Boxes:
    """Choose a box of each source image.

    ``sizes`` are the sources' heights and widths, int64 ``(n, 2)``. With ``square`` the boxes are for a square input:
    where the recipe does not say otherwise, they are the largest square in the middle.
    """
    names = [step.operation.name for step in steps]
    flips = np.zeros(len(sizes), dtype=bool) if not names else draws.integers(Stream.FLIP, 2).astype(bool)
    if names == ["rrc-flip"]:
        return Boxes(_random_resized(steps[0], draws, sizes), flips)
    shift = _shift(draws, sizes) if names == ["crop-flip"] else np.zeros_like(sizes)
    sides = np.repeat(sizes.min(axis=1, keepdims=True), 2, axis=1) if square else sizes
    return Boxes(np.concatenate([shift + (sizes - sides) // 2, sides], axis=1), flips)


def _shift(draws: Draws, sizes: Integers) -> Integers:
    """Move the image by up to 1/8 of each side, int64 ``(n, 2)``.

    The usual CIFAR augmentation (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2): 4
    pixels at 32 x 32.
    """
    reach = sizes // 8
    top = draws.integers(Stream.CROP_TOP, 2 * reach[:, 0] + 1)
    left = draws.integers(Stream.CROP_LEFT, 2 * reach[:, 1] + 1)
    return np.stack([top, left], axis=1) - reach


def _random_resized(step: Step, draws: Draws, sizes: Integers) -> Integers:
    """Choose boxes of random area and aspect ratio, int64 ``(n, 4)``.

    Szegedy et al., "Going Deeper with Convolutions" (2015), section 6, as torchvision's ``RandomResizedCrop`` has it:
    the area is uniform in ``scale``, the ratio log-uniform (in 256 steps); after ten attempts that do not fit, the
    largest box in the middle whose ratio is in range.
    """
    ratios = log_uniform(step["ratio_min"], step["ratio_max"])
    sides = np.zeros_like(sizes)
    waiting = np.ones(len(sizes), dtype=bool)
    for attempt in range(_ATTEMPTS):
        share = step["scale_min"] + (step["scale_max"] - step["scale_min"]) * draws.uniform(Stream.RRC_AREA, attempt)
        area = share * sizes.prod(axis=1)
        ratio = ratios[(draws.uniform(Stream.RRC_RATIO, attempt) * len(ratios)).astype(np.int64)]
        drawn = _rounded(np.sqrt(np.stack([area / ratio, area * ratio], axis=1)))
        taken = waiting & ((drawn > 0) & (drawn <= sizes)).all(axis=1)
        sides[taken] = drawn[taken]
        waiting &= ~taken
        if not waiting.any():
            break
    sides = np.where(waiting[:, None], _fallback(step, sizes), sides)
    top = draws.integers(Stream.RRC_TOP, sizes[:, 0] - sides[:, 0] + 1)
    left = draws.integers(Stream.RRC_LEFT, sizes[:, 1] - sides[:, 1] + 1)
    corners = np.where(waiting[:, None], (sizes - sides) // 2, np.stack([top, left], axis=1))
    return np.concatenate([corners, sides], axis=1)


def _fallback(step: Step, sizes: Integers) -> Integers:
    """Return height and width of the largest box whose ratio is in range, ``(n, 2)``."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    low, high = step["ratio_min"], step["ratio_max"]
    box_width = _rounded(np.minimum(width, height * high))
    box_height = _rounded(np.minimum(height, width / low))
    return np.stack([box_height, box_width], axis=1).clip(min=1)


def _rounded(values: npt.NDArray[np.float64]) -> Integers:
    return np.floor(values + 0.5).astype(np.int64)
