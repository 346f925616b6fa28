"""Shears, translations and rotations by nearest neighbors, in exact fixed-point integers.

They are ``rotate`` and the geometric operations of RandAugment (Cubuk et al., "RandAugment: Practical Automated Data
Augmentation with a Reduced Search Space", 2020) and TrivialAugment (Müller and Hutter, "TrivialAugment: Tuning-free Yet
State-of-the-Art Data Augmentation", 2021) as torchvision's ``transforms.v2`` applies them: ``affine`` and ``rotate``
with ``InterpolationMode.NEAREST`` and black outside, after Pillow's ``Image.transform``. torchvision computes the place
of a source pixel in float32; where it falls halfway between two pixels, either may be taken there, and here it is the
right or lower one. At 60 levels of each shear and rotation that TrivialAugment draws, images of 32 x 32 and 160 x 160
are equal; of 224 x 224, one pixel in 100,000 of the rotated ones is a neighbor.

``images`` is uint8 ``(n, 3, H, W)`` and is not changed. Each parameter is an int32 tensor ``(n,)``, one value per
image, in units that do not depend on the size; only ``random_rotation`` draws.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Annotated

import torch

from kdpipe.registry import Range
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import claim, operation

_BITS = 24
_COSINES = tuple(round(math.cos(math.radians(half / 2)) * (1 << _BITS)) for half in range(720))
"""The cosine of each half degree in units of 2^-24; none is within 0.003 of a half, where libraries might differ."""

Degrees = Annotated[
    float, Range("0.5 to 180, in steps of 0.5", lambda value: 0.5 <= value <= 180 and (2 * value).is_integer())
]


class Stream(IntEnum):
    """Stream of the rotation."""

    ROTATE = 8


claim(Stream)


def shear_x(images: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Shift each row to the left by its center's height below the top edge times ``level / 2^16``.

    torchvision's ``affine_image`` with ``shear=[degrees(atan(level / 2^16)), 0]`` and ``center=[0, 0]``.
    """
    rows, columns = _places(images)
    return _gather(images, rows, columns + _shear(level, rows))


def shear_y(images: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Shift each column up by its center's distance from the left edge times ``level / 2^16``.

    torchvision's ``affine_image`` with ``shear=[0, degrees(atan(level / 2^16))]`` and ``center=[0, 0]``.
    """
    rows, columns = _places(images)
    return _gather(images, rows + _shear(level, columns), columns)


def translate_x(images: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Move to the right by ``fraction / 2^16`` of the width, in whole pixels: the nearest, halves away from 0."""
    rows, columns = _places(images)
    return _gather(images, rows, columns - _pixels(fraction, images.shape[-1], images))


def translate_y(images: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Move down by ``fraction / 2^16`` of the height, in whole pixels: the nearest, halves away from 0."""
    rows, columns = _places(images)
    return _gather(images, rows - _pixels(fraction, images.shape[-2], images), columns)


def rotate(images: torch.Tensor, half_degrees: torch.Tensor) -> torch.Tensor:
    """Rotate counter-clockwise about the center by ``half_degrees / 2``; the corners are cut off.

    torchvision's ``rotate_image`` without ``expand``.
    """
    height, width = images.shape[-2:]
    rows, columns = _places(images)
    cosines = torch.tensor(_COSINES, device=images.device)
    half = half_degrees.to(images.device, torch.int64).view(-1, 1, 1)
    cosine, sine = cosines[half % 720], cosines[(half - 180) % 720]
    # Twice the offset from the center is a whole number for odd and even sides alike.
    down, right = 2 * rows + 1 - height, 2 * columns + 1 - width
    source_rows = (cosine * down + (height << _BITS)) + sine * right
    source_columns = (cosine * right + (width << _BITS)) - sine * down
    return _gather(images, source_rows >> (_BITS + 1), source_columns >> (_BITS + 1))


@operation("rotate", "rotate", source="torchvision RandomRotation")
def random_rotation(images: torch.Tensor, draws: Draws, degrees: Degrees) -> torch.Tensor:
    """Rotate by a uniform angle of at most DEGREES either way, in steps of 0.5, with black beyond the image.

    Of -180 and 180 degrees, which are the same, only one is drawn.
    """
    most = round(2 * degrees)
    drawn = draws.integers(Stream.ROTATE, min(2 * most + 1, 720)) - most
    return rotate(images, torch.from_numpy(drawn))


def _places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row ``(1, H, 1)`` and the column ``(1, 1, W)`` of each pixel as int64."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, height, 1)
    return rows, torch.arange(width, device=images.device).view(1, 1, width)


def _shear(level: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return ``level * (place + 1/2)`` in whole pixels, halves up; the level in units of 2^-16."""
    slope = level.to(places.device, torch.int64).view(-1, 1, 1)
    return (slope * (2 * places + 1) + (1 << 16)) >> 17


def _pixels(fraction: torch.Tensor, side: int, images: torch.Tensor) -> torch.Tensor:
    """Return ``fraction * side`` in whole pixels ``(n, 1, 1)``, halves away from 0; the fraction in units of 2^-16."""
    wide = fraction.to(images.device, torch.int64).view(-1, 1, 1)
    return ((wide.abs() * side + (1 << 15)) >> 16) * wide.sign()


def _gather(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Take the pixel at (row, column) for every pixel; 0 beyond the image.

    ``rows`` and ``columns`` are int64 and broadcast to ``(n, H, W)``.
    """
    height, width = images.shape[-2:]
    inside = ((rows >= 0) & (rows < height)) & ((columns >= 0) & (columns < width))
    source = (rows * width + columns).masked_fill_(~inside, 0).flatten(1).unsqueeze(1)
    # One gather per batch: the three channels of an image share their offsets.
    picked = images.flatten(2).gather(2, source.expand(-1, 3, -1))
    return picked.mul_(inside.flatten(1).unsqueeze(1)).view(images.shape)
