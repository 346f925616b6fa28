"""Color jitter, TrivialAugment and RandAugment: color operations in exact integers, and their random choices.

Every choice is an integer that means the same at any input size. The definitions are torchvision's
(``torchvision.transforms.v2``): ``ColorJitter``, ``TrivialAugmentWide`` and ``RandAugment``, with 31 levels, nearest
neighbors and black beyond the image (Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
Augmentation", 2021; Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
2020).

The color operations are those of its ``transforms.v2.functional`` on tensors, after Pillow's ``ImageEnhance`` and
``ImageOps``. torchvision computes in float32; here every result is a rational number, rounded once: the same pixels on
any device, in any batch. ``images`` is uint8 ``(n, 3, H, W)`` and is not changed; the result is a new tensor of that
shape. Each parameter is an int32 tensor ``(n,)``, one value per image. A ``factor`` is in units of 1/256, from 0 (the
degenerate image) over 256 (unchanged) to 2^15.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from enum import IntEnum
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.registry import Share, between
from kdpipe.views import affine
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import claim, operation

_UNIT = 256
"""A factor of 1, and a full turn."""


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale the levels: ``min(255, floor(factor * level / 256))``.

    Equal to torchvision's ``adjust_brightness_image`` at ``factor / 256``, whose float32 products are exact.
    """
    return _finish(images.to(torch.int32).mul_(_per_image(factor, images)))


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean gray level: ``floor((factor * level + (256 - factor) * mean) / 256)``, clamped.

    The mean is a rational number. torchvision's ``adjust_contrast_image`` rounds it to float32, which moves a
    level in 400,000 by one on random images of 32 x 32.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    total = _gray(levels).sum(dim=(1, 2, 3), keepdim=True)
    pixels = images.shape[-2] * images.shape[-1]
    # floor((a + b) / 256) = floor((a + floor(b)) / 256) for an integer a, so the blend stays exact.
    gray = (_UNIT - weight).mul(total).div_(pixels, rounding_mode="floor").to(torch.int32)
    return _finish(levels.mul_(weight).add_(gray))


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the gray image: ``floor((factor * level + (256 - factor) * gray) / 256)``, clamped.

    torchvision's ``adjust_saturation_image`` computes the gray levels in float32; 3 of the 2^24 colors get
    another one, by one level.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    gray = _gray(levels).mul_(_UNIT - weight)
    return _finish(levels.mul_(weight).add_(gray))


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the image smoothed by ``[[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13``, rounded to nearest.

    The border is kept, and so is an image with a side of 2 or less. Equal to torchvision's
    ``adjust_sharpness_image`` at ``factor / 256``: a sum of integers over 13 is never near a half.
    """
    levels = images.to(torch.int32)
    weight = _per_image(factor, images)
    rows = (levels[..., :-2, :] + levels[..., 1:-1, :]).add_(levels[..., 2:, :])
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    center = levels[..., 1:-1, 1:-1]
    # (sum + 6) // 13 as a product, exact below 6553: 5042 = ceil(2^16 / 13).
    smooth.add_(center, alpha=4).add_(6).mul_(5042).bitwise_right_shift_(16)
    blend = smooth.sub_(center).mul_(_UNIT - weight).bitwise_right_shift_(8)
    center.add_(blend)
    return levels.clamp_(0, 255).to(torch.uint8)


def hue(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of HSV by ``turn / 256`` of a circle; the result is rounded to nearest, halves up.

    With the chroma ``c = max - min`` the hue is an integer place on a hexagon of circumference ``6c`` (Smith,
    "Color Gamut Transform Pairs", 1978), so the turned place is one in units of 1/256, and every channel is a
    clamped distance from a corner of the hexagon. Negative turns and more than one turn are allowed.

    torchvision's ``adjust_hue_image`` at ``turn / 256`` scales by 255.999 and floors instead of rounding: 5 to 12%
    of the levels differ, by one. Turns by a half circle agree.
    """
    red, green, blue = images.to(torch.int32).unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = top - low
    angle = torch.where(top == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    angle = torch.where(top == red, green - blue, angle)
    circle = chroma * 6
    # From here on in units of 1/256 of a level, so that the turned place is a whole number.
    angle = _wrap(angle, circle).mul_(256)
    angle.add_(circle * torch.remainder(turn.to(images.device), 256).view(len(images), 1, 1))
    chroma, low, circle = chroma.mul_(256), low.mul_(256), circle.mul_(256)
    angle = _wrap(angle.sub_(circle), circle)
    turned = torch.empty_like(images, memory_format=torch.contiguous_format)
    waves = (
        (angle - 3 * chroma).abs_().sub_(chroma),
        (angle - 2 * chroma).abs_().neg_().add_(chroma, alpha=2),
        (angle - 4 * chroma).abs_().neg_().add_(chroma, alpha=2),
    )
    for channel, wave in enumerate(waves):
        level = torch.minimum(wave.clamp_(min=0), chroma).add_(low)
        turned[:, channel] = level.add_(128).bitwise_right_shift_(8)
    return turned


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep the ``bits`` highest bits of each level, 0 to 8; torchvision's ``posterize_image``."""
    mask = 256 - torch.bitwise_left_shift(1, 8 - _per_image(bits, images))
    return images & mask.to(torch.uint8)


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert the levels from ``threshold`` on: 0 inverts all, 256 none; torchvision's ``solarize_image``."""
    # Bits are inverted by XOR with 255; torch.where is many times slower on uint8.
    return (images >= _per_image(threshold, images)).view(torch.uint8).neg_().bitwise_xor_(images)


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255: ``floor(255 * (level - min) / (max - min))``; a constant one is kept.

    torchvision's ``autocontrast_image`` divides in float32: of the 32,895 pairs of ``max - min`` and
    ``level - min``, 820 fall one level lower there, and the highest level becomes 254 at 213 of the 255 stretches.
    """
    low, high = images.amin((-2, -1), keepdim=True).int(), images.amax((-2, -1), keepdim=True).int()
    spread = high - low
    # Division as a product, exact since (level - min) * (spread - 1) < 2^16.
    scale = (255 << 16) + spread - 1
    scale.div_(spread.clamp(min=1), rounding_mode="floor")
    constant = spread == 0
    low.masked_fill_(constant, 0)
    scale.masked_fill_(constant, 1 << 16)
    return (images - low).mul_(scale).bitwise_right_shift_(16).to(torch.uint8)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Equalize each channel's histogram with Pillow's table; equal to torchvision's ``equalize_image``.

    With ``step`` = pixels below the channel's highest level, over 255, a level becomes
    ``min(255, (pixels of lower levels + step // 2) // step)``; a channel whose ``step`` is 0 is kept.
    """
    levels = images.flatten(2).to(torch.int64)
    pixels = levels.shape[2]
    histogram = torch.zeros((*levels.shape[:2], 256), dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, levels, torch.ones_like(levels, dtype=torch.int32))
    reached = histogram.cumsum(2, dtype=torch.int32)
    below = reached - histogram
    step = torch.where(reached < pixels, reached, 0).amax(2, keepdim=True).div_(255, rounding_mode="floor")
    table = below.add_(step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, dtype=torch.int32, device=images.device))
    return table.to(torch.uint8).gather(2, levels).view(images.shape)


def _per_image(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Shape one integer per image to broadcast over its channels and pixels."""
    return values.to(images.device).view(len(images), 1, 1, 1)


def _gray(levels: torch.Tensor) -> torch.Tensor:
    """Return ITU-R BT.601 luma of int32 ``(n, 3, H, W)`` as ``(n, 1, H, W)``, floored to whole levels.

    The weights are torchvision's and add up to 0.9999: the gray of white is 254.
    """
    red, green, blue = levels.unbind(1)
    luma = (red * 2989).add_(green, alpha=5870).add_(blue, alpha=1140)
    return luma.div_(10_000, rounding_mode="floor").unsqueeze_(1)


def _wrap(angle: torch.Tensor, circle: torch.Tensor) -> torch.Tensor:
    """Add ``circle`` in place where the int32 ``angle`` is negative."""
    return angle.add_((angle >> 31).bitwise_and_(circle))


def _finish(blend: torch.Tensor) -> torch.Tensor:
    """Floor int32 levels in units of 1/256 and clamp them to uint8; ``blend`` is overwritten."""
    return blend.bitwise_right_shift_(8).clamp_(0, 255).to(torch.uint8)


Integers = npt.NDArray[np.int64]


class Stream(IntEnum):
    """Streams of color operations."""

    COLOR_ORDER = 32
    BRIGHTNESS = 33
    CONTRAST = 34
    SATURATION = 35
    HUE = 36
    TRIVIAL_OPERATION = 48
    TRIVIAL_LEVEL = 49
    TRIVIAL_SIGN = 50
    RANDAUG = 128
    """Of the first step's operation; its sign has the next number, and each further step the next two."""


claim(Stream, *range(Stream.RANDAUG + 1, Stream.RANDAUG + 32))

_LEVELS = np.arange(31)
_AT_ONCE = 1 << 20
"""Levels that are passed to a kernel at once on a CPU: larger int32 intermediates are slow to allocate."""


@operation("color", "color", source="torchvision ColorJitter")
def jitter(
    images: torch.Tensor,
    draws: Draws,
    brightness: Share = 0.4,
    contrast: Share = 0.4,
    saturation: Share = 0.4,
    hue: Annotated[float, between(0, 0.5)] = 0.1,
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue by factors in 1/256, in a random order."""
    spreads = (round(256 * strength) for strength in (brightness, contrast, saturation, hue))
    changes = [
        (kernel, middle - spread + draws.integers(stream, 2 * spread + 1))
        for (kernel, middle, stream), spread in zip(_JITTER, spreads, strict=True)
        if spread
    ]
    orders = np.array(list(itertools.permutations(range(len(changes)))))
    order = orders[draws.integers(Stream.COLOR_ORDER, len(orders))]
    for place in range(len(changes)):
        images = _apply_each(images, order[:, place], changes)
    return images


@operation("trivial", "color", source="Mueller and Hutter 2021, torchvision TrivialAugmentWide")
def trivial_augment(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Apply one of 14 operations at one of 31 levels (TrivialAugment, the wide space)."""
    chosen = draws.integers(Stream.TRIVIAL_OPERATION, len(_NAMES))
    level = draws.integers(Stream.TRIVIAL_LEVEL, len(_LEVELS))
    sign = 1 - 2 * draws.integers(Stream.TRIVIAL_SIGN, 2)
    return _augment(images, chosen, level, sign, space=_WIDE)


@operation("randaug", "color", source="Cubuk et al. 2020, torchvision RandAugment")
def rand_augment(
    images: torch.Tensor,
    draws: Draws,
    steps: Annotated[int, between(1, 16)],
    level: Annotated[int, between(0, 30)],
) -> torch.Tensor:
    """Apply STEPS of 14 operations, one after the other, at one level (RandAugment)."""
    for number in range(steps):
        chosen = draws.integers(Stream.RANDAUG + 2 * number, len(_NAMES))
        sign = 1 - 2 * draws.integers(Stream.RANDAUG + 2 * number + 1, 2)
        images = _augment(images, chosen, np.full(len(images), level), sign, space=_MODERATE)
    return images


def _augment(
    images: torch.Tensor, chosen: Integers, level: Integers, sign: Integers, *, space: dict[str, Integers]
) -> torch.Tensor:
    changes = []
    for name in _NAMES:
        amount = space[name][level]
        if name in _AROUND:
            amount = _AROUND[name] + sign * amount
        changes.append((_KERNELS[name], amount))
    return _apply_each(images, chosen, changes)


def _apply_each(
    images: torch.Tensor, choice: Integers, changes: list[tuple[Callable[..., torch.Tensor], Integers]]
) -> torch.Tensor:
    """Change each image by the one of ``changes`` whose number is its ``choice``."""
    at_once = max(1, _AT_ONCE // images[0].numel()) if images.device.type == "cpu" else len(images)
    changed, order = [], np.argsort(choice, kind="stable")
    for number, (kernel, amounts) in enumerate(changes):
        chosen = np.flatnonzero(choice == number)
        for start in range(0, len(chosen), at_once):
            rows = chosen[start : start + at_once]
            picked = images.index_select(0, torch.from_numpy(rows).to(images.device))
            amount = torch.from_numpy(amounts[rows].astype(np.int32)).to(images.device)
            changed.append(kernel(picked, amount))
    return torch.cat(changed).index_select(0, torch.from_numpy(np.argsort(order)).to(images.device))


def _space(*, shear: float, translate: float, degrees: float, factor: float, bits: float) -> dict[str, Integers]:
    """Return the amount of each operation at each of the 31 levels, in the units of its kernel."""
    moved, blended = _whole(65536 * translate * _LEVELS / 30), _whole(256 * factor * _LEVELS / 30)
    return {
        "identity": np.zeros_like(_LEVELS),
        "shear-x": _whole(65536 * shear * _LEVELS / 30),
        "shear-y": _whole(65536 * shear * _LEVELS / 30),
        "translate-x": moved,
        "translate-y": moved,
        "rotate": _whole(2 * degrees * _LEVELS / 30),
        "brightness": blended,
        "saturation": blended,
        "contrast": blended,
        "sharpness": blended,
        "posterize": 8 - _whole(bits * _LEVELS / 30),
        "solarize": np.ceil(8.5 * (30 - _LEVELS)).astype(np.int64),
        "autocontrast": np.zeros_like(_LEVELS),
        "equalize": np.zeros_like(_LEVELS),
    }


def _whole(values: npt.NDArray[np.float64]) -> Integers:
    return np.rint(values).astype(np.int64)


_WIDE = _space(shear=0.99, translate=32 / 224, degrees=135, factor=0.99, bits=6)
"""A translation of 32 pixels is one of 32 in 224, so that it means the same at any input size."""
_MODERATE = _space(shear=0.3, translate=150 / 331, degrees=30, factor=0.9, bits=4)

_NAMES = tuple(_WIDE)
_KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "identity": lambda images, _: images,
    "shear-x": affine.shear_x,
    "shear-y": affine.shear_y,
    "translate-x": affine.translate_x,
    "translate-y": affine.translate_y,
    "rotate": affine.rotate,
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": lambda images, _: autocontrast(images),
    "equalize": lambda images, _: equalize(images),
}
_AROUND = dict.fromkeys(("shear-x", "shear-y", "translate-x", "translate-y", "rotate"), 0) | dict.fromkeys(
    ("brightness", "saturation", "contrast", "sharpness"), 256
)
"""The operations whose level is added or subtracted, and the value of no change."""
_JITTER = (
    (brightness, 256, Stream.BRIGHTNESS),
    (contrast, 256, Stream.CONTRAST),
    (saturation, 256, Stream.SATURATION),
    (hue, 0, Stream.HUE),
)
"""The kernel of each change, the parameter that changes nothing, and the stream."""
