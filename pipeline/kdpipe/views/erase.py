"""What is blotted out of an image, on a grid of 32 x 32 cells that means the same at any input size."""

from __future__ import annotations

import torch

from kdpipe.views import grid
from kdpipe.views.operations import Stream
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import Step

_GREY = 128
"""In uint8, before any model's normalisation, so that teacher and student see the same."""


def apply(step: Step, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Paint parts of uint8 ``(n, 3, H, W)`` grey.

    ``erase`` takes out one box (Zhong et al., "Random Erasing Data Augmentation", 2020, as torchvision's
    ``RandomErasing``), ``mask`` a share of 8 x 8 patches.
    """
    height, width = images.shape[-2:]
    if step.operation.name == "mask":
        blotted = grid.enlarge(grid.patches(draws, Stream.MASK, ratio=step["ratio"]), height, width)
    else:
        boxes = grid.erasing_boxes(
            draws,
            (Stream.ERASE, Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT),
            probability=step["probability"],
            scale=(step["scale_min"], step["scale_max"]),
            ratio=(step["ratio_min"], step["ratio_max"]),
        )
        blotted = grid.mask(boxes, height, width)
    grey = blotted.to(images.device).unsqueeze(1).to(torch.uint8)
    # 1 - 1 and 1 - 0 as bits: masked_fill is many times slower on uint8.
    return (images & (grey - 1)).add_(grey * _GREY)
