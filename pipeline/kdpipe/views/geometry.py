"""Geometry of views: from a source image to a model's square input.

The plain view resizes the shorter side and cuts out the center. An augmented view resizes one box of the source image,
chosen in whole source pixels for every input size: a model of 224 pixels and one of 160 resize the same box. Flips
follow at the input size. Drawn values only go through operations that IEEE 754 rounds correctly, so boxes are the same
on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.dataset import Dataset
from kdpipe.errors import DatasetError
from kdpipe.models import AnyPreset, Preset
from kdpipe.views.philox import Draws, Integers, log_uniform
from kdpipe.views.recipe import Ratio, Scale, claim, operation, pair
from kdpipe.views.resample import cut, resize

Images = torch.Tensor | list[torch.Tensor]
"""Decoded source images, uint8: ``(n, 3, H, W)``, or ``n`` times ``(3, H, W)``."""

_ATTEMPTS = 10


class Stream(IntEnum):
    """Streams of boxes and flips."""

    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP = 3
    VFLIP = 4
    RRC_AREA = 16
    RRC_RATIO = 17
    RRC_TOP = 18
    RRC_LEFT = 19


claim(Stream)


@dataclass(frozen=True)
class Geometry:
    """The part of a ``Preset`` that moves pixels; the rest is normalization."""

    size: int
    resize: int
    interpolation: str

    @classmethod
    def of(cls, preset: AnyPreset) -> Geometry | None:
        """Return the geometry of a model's preset; ``None`` for one of tensors, which stay as they are."""
        return cls(preset.size, preset.resize, preset.interpolation) if isinstance(preset, Preset) else None

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Fit uint8 ``(n, 3, H, W)`` to ``(n, 3, size, size)``; the identity when the sides already match.

        Resizing is antialiased; the longer side becomes ``floor(resize * long / short)``.
        """
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        if short != self.resize:
            stretched = self.resize * long // short
            height, width = (self.resize, stretched) if height <= width else (stretched, self.resize)
            images = resize(images, height, width, kernel=self.interpolation)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return images[..., top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class Frame:
    """The size of a model's input, and the resize that brings source images to it."""

    geometry: Geometry | None
    height: int
    width: int
    kernel: str

    @classmethod
    def of(cls, dataset: Dataset, geometry: Geometry | None) -> Frame:
        """Return the frame of a model's geometry, or without one that of the dataset's images.

        Raises:
            DatasetError: there is no geometry, and the images have different sizes.
        """
        if geometry is not None:
            return cls(geometry, geometry.size, geometry.size, geometry.interpolation)
        if dataset.image_size is None:
            raise DatasetError(
                f"{dataset.spec} has images of different sizes: give the size to render them at, in pixels."
            )
        return cls(None, *dataset.image_size, "bilinear")

    def __call__(self, images: Images, boxes: Integers | None) -> torch.Tensor:
        """Return the plain view of source images, or boxes of them, uint8 ``(n, 3, height, width)``."""
        if boxes is not None:
            return cut(images, boxes, height=self.height, width=self.width, kernel=self.kernel)
        if isinstance(images, torch.Tensor):
            return images if self.geometry is None else self.geometry.fit(images)
        return torch.cat([self(image.unsqueeze(0), None) for image in images]).contiguous()


class Sources(NamedTuple):
    """The source images that boxes are chosen in."""

    sizes: Integers
    """Heights and widths, ``(n, 2)``."""
    square: bool
    """Whether the boxes are for a square input."""


@operation("none", "box")
def middle(sources: Sources, draws: Draws) -> Integers:  # noqa: ARG001 (nothing is drawn)
    """Render the plain view only, without augmented views."""
    # The box of every recipe without a crop: the largest square in the middle, or the image.
    sizes = sources.sizes
    sides = np.repeat(sizes.min(axis=1, keepdims=True), 2, axis=1) if sources.square else sizes
    return np.concatenate([(sizes - sides) // 2, sides], axis=1)


@operation("crop", "box", source="He et al. 2016, torchvision RandomCrop(32, padding=4)")
def crop(sources: Sources, draws: Draws) -> Integers:
    """Move the image by up to 1/8 of each side, with black around it.

    The usual CIFAR augmentation (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2): 4
    pixels at 32 x 32. The box is the middle one, moved.
    """
    reach = sources.sizes // 8
    top = draws.integers(Stream.CROP_TOP, 2 * reach[:, 0] + 1)
    left = draws.integers(Stream.CROP_LEFT, 2 * reach[:, 1] + 1)
    places = middle(sources, draws)
    places[:, :2] += np.stack([top, left], axis=1) - reach
    return places


@operation("rrc", "box", source="Szegedy et al. 2015, torchvision RandomResizedCrop")
def random_resized_crop(
    sources: Sources,
    draws: Draws,
    scale_min: Scale = 0.08,
    scale_max: Scale = 1,
    ratio_min: Ratio = 0.75,
    ratio_max: Ratio = 4 / 3,
) -> Integers:
    """Crop a box of random area (scale) and width over height (ratio), and resize it.

    Szegedy et al., "Going Deeper with Convolutions" (2015), section 6, as torchvision's ``RandomResizedCrop``: the area
    is uniform in ``scale`` (of the image's), the ratio log-uniform (in 256 steps); after ten attempts that do not fit,
    the largest box in the middle whose ratio is in range.
    """
    sizes = sources.sizes
    ratios = log_uniform(ratio_min, ratio_max)
    sides = np.zeros_like(sizes)
    waiting = np.ones(len(sizes), dtype=bool)
    for attempt in range(_ATTEMPTS):
        share = scale_min + (scale_max - scale_min) * draws.uniform(Stream.RRC_AREA, attempt)
        area = share * sizes.prod(axis=1)
        ratio = draws.pick(ratios, Stream.RRC_RATIO, attempt)
        drawn = _rounded(np.sqrt(np.stack([area / ratio, area * ratio], axis=1)))
        taken = waiting & ((drawn > 0) & (drawn <= sizes)).all(axis=1)
        sides[taken] = drawn[taken]
        waiting &= ~taken
        if not waiting.any():
            break
    sides = np.where(waiting[:, None], _largest(sizes, ratio_min, ratio_max), sides)
    top = draws.integers(Stream.RRC_TOP, sizes[:, 0] - sides[:, 0] + 1)
    left = draws.integers(Stream.RRC_LEFT, sizes[:, 1] - sides[:, 1] + 1)
    corners = np.where(waiting[:, None], (sizes - sides) // 2, np.stack([top, left], axis=1))
    return np.concatenate([corners, sides], axis=1)


def _largest(sizes: Integers, low: float, high: float) -> Integers:
    """Return height and width of the largest box whose ratio is between ``low`` and ``high``, ``(n, 2)``."""
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    box_width = _rounded(np.minimum(width, height * high))
    box_height = _rounded(np.minimum(height, width / low))
    return np.stack([box_height, box_width], axis=1).clip(min=1)


def _rounded(values: npt.NDArray[np.float64]) -> Integers:
    return np.floor(values + 0.5).astype(np.int64)


@operation("flip", "flip", source="torchvision RandomHorizontalFlip")
def flip(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Swap left and right in half of the images."""
    return _flipped(images, draws.integers(Stream.FLIP, 2), -1)


@operation("vflip", "flip", source="torchvision RandomVerticalFlip")
def vflip(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Swap top and bottom in half of the images."""
    return _flipped(images, draws.integers(Stream.VFLIP, 2), -2)


def _flipped(images: torch.Tensor, choice: Integers, dim: int) -> torch.Tensor:
    """Flip the images whose ``choice`` is 1 along ``dim``."""
    # All bits set where an image is flipped: torch.where is many times slower on uint8.
    chosen = torch.from_numpy(choice.astype(np.uint8)).to(images.device).neg_().view(-1, 1, 1, 1)
    return images.flip(dim).bitwise_xor_(images).bitwise_and_(chosen).bitwise_xor_(images)


# Names of pairs: a change of the pixels of crop, rrc or flip raises their versions as well.
pair("crop-flip", "crop", "flip", version=2)
pair("rrc-flip", "rrc", "flip")
