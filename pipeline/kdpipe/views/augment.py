"""Color jitter, TrivialAugment and RandAugment: random choices among operations on colors and places.

Every choice is an integer that means the same at any input size. The definitions are torchvision's
(``torchvision.transforms.v2``): ``ColorJitter``, ``TrivialAugmentWide`` and ``RandAugment``, with 31 levels, nearest
neighbors and black beyond the image (Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
Augmentation", 2021; Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space",
2020). The operations are in ``kdpipe.views.color`` and ``kdpipe.views.affine``.
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
from kdpipe.views import affine, color
from kdpipe.views.philox import Draws, Integers
from kdpipe.views.recipe import claim, operation


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
    "brightness": color.brightness,
    "saturation": color.saturation,
    "contrast": color.contrast,
    "sharpness": color.sharpness,
    "posterize": color.posterize,
    "solarize": color.solarize,
    "autocontrast": lambda images, _: color.autocontrast(images),
    "equalize": lambda images, _: color.equalize(images),
}
_AROUND = dict.fromkeys(("shear-x", "shear-y", "translate-x", "translate-y", "rotate"), 0) | dict.fromkeys(
    ("brightness", "saturation", "contrast", "sharpness"), 256
)
"""The operations whose level is added or subtracted, and the value of no change."""
_JITTER = (
    (color.brightness, 256, Stream.BRIGHTNESS),
    (color.contrast, 256, Stream.CONTRAST),
    (color.saturation, 256, Stream.SATURATION),
    (color.hue, 0, Stream.HUE),
)
"""The kernel of each change, the parameter that changes nothing, and the stream."""
