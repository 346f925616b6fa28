"""Erasing, and the grid of 32 x 32 cells on which it happens, so that it means the same at 224 and at 160 pixels.

Every choice is a function of ``Draws`` and of stream numbers. Drawn values only go through ``+ - * /`` and ``sqrt``,
which IEEE 754 rounds correctly: ``exp`` and ``log`` differ between C libraries.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.registry import Share
from kdpipe.views.philox import Draws, Integers, log_uniform
from kdpipe.views.recipe import Ratio, Scale, claim, operation

CELLS = 32
"""Cells along each side of an image."""
GRAY = 128
"""In uint8, before any model's normalization, so that teacher and student see the same."""

_ATTEMPTS = 10


class Stream(IntEnum):
    """Streams of erasing."""

    ERASE = 64
    ERASE_AREA = 65
    ERASE_RATIO = 66
    ERASE_TOP = 67
    ERASE_LEFT = 68
    MASK = 80


claim(Stream)


@operation("erase", "erase", source="Zhong et al. 2020, torchvision RandomErasing")
def random_erasing(
    images: torch.Tensor,
    draws: Draws,
    probability: Share = 0.5,
    scale_min: Scale = 0.02,
    scale_max: Scale = 0.33,
    ratio_min: Ratio = 0.3,
    ratio_max: Ratio = 3.3,
) -> torch.Tensor:
    """Paint one box gray, of random area (scale) and height over width (ratio), on a 32 x 32 grid."""
    boxes = erasing_boxes(
        draws,
        (Stream.ERASE, Stream.ERASE_AREA, Stream.ERASE_RATIO, Stream.ERASE_TOP, Stream.ERASE_LEFT),
        probability=probability,
        scale=(scale_min, scale_max),
        ratio=(ratio_min, ratio_max),
    )
    return _painted(images, inside(boxes, *images.shape[-2:]))


@operation("mask", "erase")
def random_mask(images: torch.Tensor, draws: Draws, ratio: Share) -> torch.Tensor:
    """Paint RATIO of the 8 x 8 patches gray."""
    return _painted(images, enlarge(patches(draws, Stream.MASK, ratio=ratio), *images.shape[-2:]))


def _painted(images: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """Paint the marked pixels, bool ``(n, H, W)``, gray."""
    gray = marked.to(images.device).unsqueeze(1).to(torch.uint8)
    # 1 - 1 and 1 - 0 as bits: masked_fill is many times slower on uint8.
    return (images & (gray - 1)).add_(gray * GRAY)


def erasing_boxes(
    draws: Draws,
    streams: tuple[int, int, int, int, int],
    *,
    probability: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Integers:
    """Draw the boxes of Random Erasing, ``(n, 4)`` of top, left, height, width in cells; zeros erase nothing.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), algorithm 1, as torchvision's ``RandomErasing``:
    with ``probability``, up to ten attempts at an area uniform in ``scale`` (of the image's) and a height over width
    log-uniform in ``ratio``; the first box whose sides are both shorter than the image's is placed uniformly, and none
    is if there is no such box. ``streams`` decide whether, the area, the ratio, the top and the left; an attempt is a
    block of its streams.
    """
    whether, area_of, ratio_of, top_of, left_of = streams
    ratios = log_uniform(*ratio)
    boxes = np.zeros((len(draws.sample_ids), 4), dtype=np.int64)
    waiting = draws.uniform(whether) < probability
    for attempt in range(_ATTEMPTS):
        if not waiting.any():
            break
        area = CELLS**2 * (scale[0] + draws.uniform(area_of, attempt) * (scale[1] - scale[0]))
        drawn_ratio = draws.pick(ratios, ratio_of, attempt)
        sides = np.rint(np.sqrt(np.stack([area * drawn_ratio, area / drawn_ratio], axis=1))).astype(np.int64)
        fits = waiting & (sides < CELLS).all(axis=1)
        boxes[fits, 2:] = sides[fits]
        waiting &= ~fits
    erased = boxes[:, 2:].all(axis=1)
    boxes[:, 0] = erased * draws.integers(top_of, CELLS + 1 - boxes[:, 2])
    boxes[:, 1] = erased * draws.integers(left_of, CELLS + 1 - boxes[:, 3])
    return boxes


def patches(draws: Draws, stream: int, *, ratio: float, per_side: int = 8) -> torch.Tensor:
    """Mask exactly ``round(ratio * per_side^2)`` square patches of each image: bool ``(n, 32, 32)`` of cells.

    The masked patches are those with the smallest words, ties by number; patch ``4 * block + word``, row by row, has
    one word of a block of the stream. ``per_side`` divides 32 and is even.
    """
    count = per_side**2
    words = draws.blocks(stream, count // 4)
    chosen = np.argsort(words, axis=1, kind="stable")[:, : round(ratio * count)]
    masked = np.zeros((len(words), count), dtype=bool)
    np.put_along_axis(masked, chosen, True, axis=1)
    size = CELLS // per_side
    return torch.from_numpy(masked.reshape(-1, per_side, per_side).repeat(size, axis=1).repeat(size, axis=2))


def edge(cell: Integers, side: int) -> Integers:
    """Return the pixel at which a cell begins, for borders 0..32 of any shape, in an image ``side`` pixels long."""
    return (cell * side + CELLS // 2) // CELLS


def inside(boxes: Integers, height: int, width: int) -> torch.Tensor:
    """Mark the pixels inside ``boxes`` ``(n, 4)`` of top, left, height, width in cells: bool ``(n, height, width)``."""
    top, left, tall, wide = boxes.T
    rows = _between(edge(top, height), edge(top + tall, height), height)
    columns = _between(edge(left, width), edge(left + wide, width), width)
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :])


def enlarge(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Give every pixel the value of its cell: ``(n, 32, 32)`` to ``(n, height, width)``."""
    rows, columns = _cell_of(height).to(cells.device), _cell_of(width).to(cells.device)
    return cells.index_select(2, columns).index_select(1, rows)


def _between(start: Integers, stop: Integers, side: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels from ``start`` to before ``stop``, both ``(n,)``: ``(n, side)``."""
    pixel = np.arange(side)
    return (start[:, None] <= pixel) & (pixel < stop[:, None])


def _cell_of(side: int) -> torch.Tensor:
    """Return the cell of each pixel, ``(side,)``."""
    begins = edge(np.arange(1, CELLS), side)
    return torch.from_numpy(np.searchsorted(begins, np.arange(side), side="right"))
