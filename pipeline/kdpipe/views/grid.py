"""Boxes and masks on a grid of 32 x 32 cells, so that they mean the same at 224 and at 160 pixels.

Every choice is a function of ``Draws`` and of stream numbers that the caller owns. Drawn values go only through
``+ - * /`` and ``sqrt``, which IEEE 754 rounds correctly: ``exp`` and ``log`` differ between C libraries.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.views.philox import Draws

Integers = npt.NDArray[np.int64]

CELLS = 32
"""Cells along each side of an image."""

_ATTEMPTS = 10
_CUT_SIDES = np.array([(math.isqrt(16 * (256 - step)) + 1) // 2 for step in range(257)], dtype=np.int64)
"""``32 sqrt(1 - step / 256)``, rounded to nearest: ``sqrt(4 (256 - step))`` is never halfway between integers."""


def edge(cell: Integers, side: int) -> Integers:
    """Return the pixel at which a cell begins, for borders 0..32 of any shape, in an image ``side`` pixels long."""
    return (cell * side + CELLS // 2) // CELLS


def mask(boxes: Integers, height: int, width: int) -> torch.Tensor:
    """Mark the pixels inside ``boxes`` ``(n, 4)`` of top, left, height, width in cells: bool ``(n, height, width)``."""
    top, left, tall, wide = boxes.T
    rows = _between(edge(top, height), edge(top + tall, height), height)
    columns = _between(edge(left, width), edge(left + wide, width), width)
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :])


def enlarge(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Give every pixel the value of its cell: ``(n, 32, 32)`` to ``(n, height, width)``."""
    rows, columns = _cell_of(height).to(cells.device), _cell_of(width).to(cells.device)
    return cells.index_select(2, columns).index_select(1, rows)


@lru_cache(maxsize=16)
def log_uniform(low: float, high: float) -> npt.NDArray[np.float64]:
    """Return ``low (high / low)^(k / 256)`` for k in 0..256, ``(257,)``, for ``0 < low <= high``.

    Computed in decimal and rounded once, so it is the same everywhere; a uniform ``k`` makes it log-uniform in
    ``[low, high]``. The array is cached and read-only.
    """
    with localcontext(Context(prec=40, rounding=ROUND_HALF_EVEN)):
        start, span = Decimal(low).ln(), (Decimal(high) / Decimal(low)).ln()
        table = np.array([float((start + span * k / 256).exp()) for k in range(257)])
    table.flags.writeable = False
    return table


def erasing_boxes(
    draws: Draws,
    streams: tuple[int, int, int, int, int],
    *,
    probability: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Integers:
    """Draw the boxes of Random Erasing, ``(n, 4)`` of top, left, height, width in cells; zeros erase nothing.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), algorithm 1, as torchvision's ``RandomErasing``
    has it: with ``probability``, up to ten attempts at an area uniform in ``scale`` (of the image's) and a height
    over width log-uniform in ``ratio``; the first box whose sides are both shorter than the image's is placed
    uniformly, and none is if there is no such box. ``streams`` decide whether, the area, the ratio, the top and the
    left; an attempt is a block of its streams.
    """
    whether, area_of, ratio_of, top_of, left_of = streams
    ratios = log_uniform(*ratio)
    boxes = np.zeros((len(draws.sample_ids), 4), dtype=np.int64)
    waiting = draws.uniform(whether) < probability
    for attempt in range(_ATTEMPTS):
        if not waiting.any():
            break
        area = CELLS**2 * (scale[0] + draws.uniform(area_of, attempt) * (scale[1] - scale[0]))
        drawn_ratio = ratios[(draws.uniform(ratio_of, attempt) * len(ratios)).astype(np.int64)]
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


def cut_boxes(draws: Draws, streams: tuple[int, int], steps: Integers) -> tuple[Integers, Integers]:
    """Draw the boxes of CutMix for ``lambda = steps / 256``: boxes ``(n, 4)`` in cells, and cells kept ``(n,)``.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (ICCV
    2019), equation 2: a square of ``sqrt(1 - lambda)`` of the image's side, rounded to cells, centred uniformly and
    clipped at the border. An odd box has its centre in one of the 32 cells, an even one on one of the 33 borders,
    so opposite borders are alike. ``streams`` place the centre's row and column. The label's weight is exactly
    ``kept / 1024``, from the area after clipping.
    """
    side = _CUT_SIDES[steps]
    begins, lengths = [], []
    for stream in streams:
        start = draws.integers(stream, CELLS + 1 - side % 2) - side // 2
        begin = np.maximum(start, 0)
        begins.append(begin)
        lengths.append(np.minimum(start + side, CELLS) - begin)
    boxes = np.stack([*begins, *lengths], axis=1)
    return boxes, CELLS**2 - boxes[:, 2] * boxes[:, 3]


def _between(start: Integers, stop: Integers, side: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels from ``start`` to before ``stop``, both ``(n,)``: ``(n, side)``."""
    pixel = np.arange(side)
    return (start[:, None] <= pixel) & (pixel < stop[:, None])


def _cell_of(side: int) -> torch.Tensor:
    """Return the cell of each pixel, ``(side,)``."""
    begins = edge(np.arange(1, CELLS), side)
    return torch.from_numpy(np.searchsorted(begins, np.arange(side), side="right"))
