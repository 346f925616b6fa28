"""Cropping and resizing: the same pixels on every device and in every batch.

The scheme is Pillow's, which torch's CPU kernel for uint8 follows: the weights of each output pixel are rounded to
integers in units of 2^-bits, as fine as 16 bits hold the largest; columns are resized before rows, and each pass is
rounded to uint8. ``exactly`` computes it with matrix products of whole numbers that floating point holds exactly, in
any order of summation. torch's own kernel is faster on a CPU; it is used where it gives the same numbers, which is
tested once per process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.views.philox import Integers

_LARGEST_WEIGHT = 1 << 15
_MOST_BITS = 22
_EXACT_IN_FLOAT32 = 1 << 24
_REACH = {"bilinear": 1, "bicubic": 2}
"""Half the width of each kernel, in pixels of the coarser grid."""


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
    """Return whether torch's own uint8 kernel gives the numbers of ``exactly`` here, by some sizes up and down."""
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
