"""Cropping, resizing, shears, translations and rotations: the same pixels on every device and in every batch.

The scheme of resizing is Pillow's, which torch's CPU kernel for uint8 follows: the weights of each output pixel are
rounded to integers in units of 2^-bits, as fine as 16 bits hold the largest; columns are resized before rows, and each
pass is rounded to uint8. ``exactly`` computes it with matrix products of whole numbers that floating point holds
exactly, in any order of summation. torch's own kernel is faster on a CPU; it is used where it gives the same numbers,
which is tested once per process.

Shears, translations and rotations take nearest neighbors, in exact fixed-point integers. They are ``rotate`` and the
geometric operations of RandAugment (Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced
Search Space", 2020) and TrivialAugment (Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
Augmentation", 2021) as torchvision's ``transforms.v2`` applies them: ``affine`` and ``rotate`` with
``InterpolationMode.NEAREST`` and black outside, after Pillow's ``Image.transform``. torchvision computes the place of a
source pixel in float32; where it falls halfway between two pixels, either may be taken there, and here it is the right
or lower one. At 60 levels of each shear and rotation that TrivialAugment draws, images of 32 x 32 and 160 x 160 are
equal; of 224 x 224, one pixel in 100,000 of the rotated ones is a neighbor. ``images`` is uint8 ``(n, 3, H, W)`` and is
not changed. Each parameter is an int32 tensor ``(n,)``, one value per image, in units that do not depend on the size;
only ``random_rotation`` draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import cache, lru_cache
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.registry import Range
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import claim, operation

_LARGEST_WEIGHT = 1 << 15
_MOST_BITS = 22
_EXACT_IN_FLOAT32 = 1 << 24
_REACH = {"bilinear": 1, "bicubic": 2}
"""Half the width of each kernel, in pixels of the coarser grid."""

Integers = npt.NDArray[np.int64]


def cut(
    images: torch.Tensor | Sequence[torch.Tensor],
    places: Integers,
    *,
    height: int,
    width: int,
    kernel: str,
) -> torch.Tensor:
    """Cut a box out of each image and resize it.

    ``images`` are uint8, ``(n, 3, H, W)`` or ``n`` times ``(3, H, W)`` of any sizes; ``places`` int64 ``(n, 4)`` tops,
    lefts, heights and widths, black where they reach beyond an image. Returns uint8 ``(n, 3, height, width)``.
    """
    if isinstance(images, torch.Tensor) and (places[:, 2:] == places[:1, 2:]).all():
        return resize(_windows(images, places), height, width, kernel=kernel)
    if isinstance(images, torch.Tensor) and kernel != "nearest" and not _native(images):
        return _cut_exactly(images, places, height, width, kernel=kernel)
    windows = (_window(image, *place) for image, place in zip(images, places.tolist(), strict=True))
    return torch.cat([resize(window, height, width, kernel=kernel) for window in windows]).contiguous()


def resize(images: torch.Tensor, height: int, width: int, *, kernel: str) -> torch.Tensor:
    """Resize uint8 ``(n, 3, H, W)`` to ``(n, 3, height, width)``; ``kernel`` is nearest, bilinear or bicubic.

    Bicubic is Keys' with a = -1/2. Nearest takes pixel ``floor(i * H / height)``, without antialiasing.
    """
    if images.shape[-2:] == (height, width):
        return images
    if kernel == "nearest":
        return _nearest(_nearest(images, width), height, rows=True)
    if _native(images):
        return F.interpolate(images, size=(height, width), mode=kernel, antialias=True, align_corners=False)
    return exactly(images, height, width, kernel=kernel)


def exactly(images: torch.Tensor, height: int, width: int, *, kernel: str) -> torch.Tensor:
    """Resize as ``resize`` does, bilinear or bicubic, on any device and without torch's kernel."""
    sizes = np.broadcast_to(images.shape[-2:], (len(images), 2))
    return _cut_exactly(images, np.concatenate([np.zeros_like(sizes), sizes], axis=1), height, width, kernel=kernel)


def _cut_exactly(images: torch.Tensor, places: Integers, height: int, width: int, *, kernel: str) -> torch.Tensor:
    """Cut and resize a batch in two products with one matrix per image; the boxes lie within the images."""
    columns = _matrices(places[:, 1], places[:, 3], images.shape[-1], width, kernel)
    rows = _matrices(places[:, 0], places[:, 2], images.shape[-2], height, kernel)
    return _multiply(_multiply(images, *columns).mT, *rows).mT.contiguous()


def _matrices(
    starts: Integers, lengths: Integers, source: int, target: int, kernel: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image's weights for one axis, float64 ``(n, 1, source, target)``, and their unit, ``(n, 1, 1, 1)``.

    Where all are the same, there is one for all.
    """
    if (starts == starts[0]).all() and (lengths == lengths[0]).all():
        starts, lengths = starts[:1], lengths[:1]
    matrices = torch.zeros(len(starts), 1, source, target, dtype=torch.float64)
    units = torch.ones(len(starts), 1, 1, 1, dtype=torch.float64)
    for index, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        weights, bits = _weights(length, target, kernel)
        matrices[index, 0, start : start + length] = weights
        units[index] = 1 << bits
    return matrices, units


def _native(images: torch.Tensor) -> bool:
    return images.device.type == "cpu" and native_agrees()


@cache
def native_agrees() -> bool:
    """Whether torch's own uint8 kernel gives the numbers of ``exactly`` here, by some sizes up and down."""
    levels = torch.arange(3 * 41 * 57, dtype=torch.int64).mul_(2654435761).bitwise_right_shift_(11).to(torch.uint8)
    images = levels.view(1, 3, 41, 57)
    for kernel in _REACH:
        for height, width in ((41, 20), (20, 57), (16, 24), (64, 90), (5, 7)):
            native = F.interpolate(images, size=(height, width), mode=kernel, antialias=True, align_corners=False)
            if not torch.equal(native, exactly(images, height, width, kernel=kernel)):
                return False
    return True


@lru_cache(maxsize=128)
def _weights(source: int, target: int, kernel: str) -> tuple[torch.Tensor, int]:
    """Return the integer weights of a resize along one axis, float64 ``(source, target)``, and their bits."""
    scale = source / target
    stretch = max(scale, 1.0)
    reach = _REACH[kernel] * stretch
    center = scale * (np.arange(target) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), source)
    taps = np.arange(int((last - first).max()))
    distance = np.abs((taps + first[:, None] - center[:, None] + 0.5) * (1.0 / stretch))
    weights = np.where(taps < (last - first)[:, None], _KERNELS[kernel](distance), 0.0)
    total = np.zeros(target)
    for tap in weights.T:  # one after the other: the order of a sum decides its last bit
        total += tap
    weights /= total[:, None]
    bits = 0
    while bits < _MOST_BITS and int(0.5 + weights.max() * (1 << (bits + 1))) < _LARGEST_WEIGHT:
        bits += 1
    rounded = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    dense = np.zeros((source + len(taps), target))
    dense[taps + first[:, None], np.arange(target)[:, None]] = rounded
    return torch.from_numpy(dense[:source]), bits


def _triangle(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(x < 1, 1 - x, 0.0)


def _keys(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981), with a = -1/2."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_KERNELS = {"bilinear": _triangle, "bicubic": _keys}


def _multiply(images: torch.Tensor, matrices: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """Return ``images @ matrices / units`` rounded to uint8, for uint8 ``(n, 3, rows, source)``."""
    largest = 255 * float(matrices.abs().sum(dim=2).max()) + float(units.max())
    tf32 = images.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    dtype = torch.float32 if largest < _EXACT_IN_FLOAT32 and not tf32 else torch.float64
    product = images.to(dtype) @ matrices.to(images.device, dtype)
    units = units.to(images.device, dtype)
    return product.add_(units / 2).div_(units).floor_().clamp_(0, 255).to(torch.uint8)


def _nearest(images: torch.Tensor, side: int, *, rows: bool = False) -> torch.Tensor:
    source = images.shape[-2 if rows else -1]
    picked = torch.arange(side, device=images.device) * source // side
    return images[..., picked, :] if rows else images[..., picked]


def _window(image: torch.Tensor, top: int, left: int, height: int, width: int) -> torch.Tensor:
    """Return one box of ``(3, H, W)`` as ``(1, 3, height, width)``, black beyond the image."""
    rows, columns = image.shape[-2:]
    bottom, right = top + height, left + width
    inside = image[..., max(top, 0) : min(bottom, rows), max(left, 0) : min(right, columns)]
    beyond = (max(-left, 0), max(right - columns, 0), max(-top, 0), max(bottom - rows, 0))
    return (F.pad(inside, beyond) if any(beyond) else inside).unsqueeze(0)


def _windows(images: torch.Tensor, places: Integers) -> torch.Tensor:
    """Return boxes of one size, uint8 ``(n, 3, height, width)``, in one gather."""
    count, _, rows, columns = images.shape
    height, width = places[0, 2:].tolist()
    if (places == [0, 0, rows, columns]).all():
        return images
    bottom, right = places[:, 0] + height, places[:, 1] + width
    above, before = max(-int(places[:, 0].min()), 0), max(-int(places[:, 1].min()), 0)
    below, behind = max(int(bottom.max()) - rows, 0), max(int(right.max()) - columns, 0)
    padded = F.pad(images, (before, behind, above, below)) if above or below or before or behind else images
    from_rows = (places[:, :1] + above + np.arange(height))[:, :, None] * padded.shape[-1]
    offsets = torch.from_numpy(from_rows + (places[:, 1:2] + before + np.arange(width))[:, None])
    picked = padded.reshape(count, 3, -1).gather(2, offsets.to(images.device).view(count, 1, -1).expand(-1, 3, -1))
    return picked.view(count, 3, height, width)


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
