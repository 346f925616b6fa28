"""Erasing, on a grid of 32 x 32 cells that means the same at any input size."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import torch

from kdpipe.spec import Share, between
from kdpipe.views import grid
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import claim, operation

Scale = Annotated[float, between(0.001, 1)]
"""An area as a share of the image's."""
Ratio = Annotated[float, between(0.1, 10)]

GRAY = 128
"""In uint8, before any model's normalization, so that teacher and student see the same."""


class Stream(IntEnum):
    """Streams of erasing."""

    ERASE = 64
    ERASE_AREA = 65
    ERASE_RATIO = 66
    ERASE_TOP = 67
    ERASE_LEFT = 68
    MASK = 80


claim(Stream)


@operation("erase", "erase", source="Zhong et al. 2020; torchvision RandomErasing")
def erase(
    images: torch.Tensor,
    draws: Draws,
    probability: Share = 0.5,
    scale_min: Scale = 0.02,
    scale_max: Scale = 0.33,
    ratio_min: Ratio = 0.3,
    ratio_max: Ratio = 3.3,
) -> torch.Tensor:
    """One gray box of random area and ratio.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as torchvision's ``RandomErasing``.
    """
    boxes = grid.erasing_boxes(
        draws,
        (Stream.ERASE, Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT),
        probability=probability,
        scale=(scale_min, scale_max),
        ratio=(ratio_min, ratio_max),
    )
    return _painted(images, grid.mask(boxes, *images.shape[-2:]))


@operation("mask", "erase")
def mask(images: torch.Tensor, draws: Draws, ratio: Share) -> torch.Tensor:
    """That share of 8 x 8 patches gray."""
    return _painted(images, grid.enlarge(grid.patches(draws, Stream.MASK, ratio=ratio), *images.shape[-2:]))


def _painted(images: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Paint the pixels of a bool mask ``(n, H, W)`` gray."""
    gray = where.to(images.device).unsqueeze(1).to(torch.uint8)
    # 1 - 1 and 1 - 0 as bits: masked_fill is many times slower on uint8.
    return (images & (gray - 1)).add_(gray * GRAY)
