"""Corruptions: images that became worse in a known way, in five strengths, to measure robustness to distribution shift.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (2019).
The kinds are theirs, the strengths are not those of their files: lengths are relative to the side of the images, so
that one strength means the same at 32 and at 224 pixels. Compare accuracies within one benchmark only.

A corruption takes uint8 images ``(n, 3, H, W)`` as a model gets them, a strength of 1 to 5 and the draws of the
samples, and returns new uint8 images. All arithmetic is exact: integers, or float64 that holds integers, and noise from
the sample's id. So pixels depend on neither the device nor the batch.

    @corruption("invert")
    def invert(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:
        "Inverts the levels."
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch

from kdpipe.errors import ParamsError
from kdpipe.registry import Registry
from kdpipe.spec import parse as parse_spec
from kdpipe.views import color
from kdpipe.views.philox import Draws
from kdpipe.views.recipe import claim

STRENGTHS = (1, 2, 3, 4, 5)

Corruption = Callable[[torch.Tensor, int, Draws], torch.Tensor]
CORRUPTIONS: Registry[torch.Tensor] = Registry("corruption")
"""Every corruption by the name that ``--corruptions`` takes."""

_DEVIATIONS = (10, 20, 31, 46, 66)
"""Standard deviation of the noise in levels: 4, 8, 12, 18 and 26 % of 255."""
_BLURS = (0.01, 0.015, 0.02, 0.03, 0.04)
"""Standard deviation of the blur as a share of the side."""
_CONTRASTS = (192, 128, 102, 77, 38)
"""Factor of the contrast in units of 1/256: 75, 50, 40, 30 and 15 %."""
_QUALITIES = (60, 40, 25, 15, 8)
_CELLS = (0.7, 0.55, 0.45, 0.35, 0.25)
"""Cells along the side as a share of its pixels."""
_SHIFTS = (26, 51, 77, 102, 128)
"""Levels that are added: 10, 20, 30, 40 and 50 % of 255."""

_COUNTERS = 1 << 20
"""Blocks of random words that are drawn at once."""
_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, *[99] * 6, *[99] * 32),
)
"""Quantization tables of ITU-T T.81, annex K, by row."""


class Stream(IntEnum):
    """Streams of corruptions."""

    NOISE = 2001


claim(Stream)


@dataclass(frozen=True)
class Corruptions:
    """The kinds of ``--corruptions``, each measured at every strength."""

    kinds: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Corruptions:
        """Parse ``all``, or kinds joined with ``+``.

        Raises:
            ParamsError: there is no such kind, or one stands twice.
        """
        if text.strip() == "all":
            return cls(CORRUPTIONS.names)
        kinds = [CORRUPTIONS.bind(term)[0].name for term in parse_spec(text)]
        twice = [kind for kind in kinds if kinds.count(kind) > 1]
        if twice:
            raise ParamsError(f"'{text}' has {twice[0]} twice: write it once.")
        return cls(tuple(kinds))

    def __str__(self) -> str:
        """Return the kinds as ``parse`` reads them."""
        return "all" if self.kinds == CORRUPTIONS.names else "+".join(self.kinds)


def corruption(name: str, *, source: str = "") -> Callable[[Corruption], Corruption]:
    """Register a function as a corruption; the first line of its docstring is its help."""

    def register(function: Corruption) -> Corruption:
        CORRUPTIONS.add(name, function, skip=3, source=source)
        return function

    return register


def corrupt(kind: str, images: torch.Tensor, *, strength: int, sample_ids: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 images ``(n, 3, H, W)`` under a corruption; ``sample_ids`` are ``(n, 16)``.

    Raises:
        ParamsError: there is no such corruption.
        ValueError: the strength is not 1 to 5.
    """
    if strength not in STRENGTHS:
        raise ValueError(f"expected a strength of 1 to 5, got {strength}")
    return CORRUPTIONS[kind].make(images, strength, Draws(sample_ids, seed=0, view=0))


@corruption("noise", source="Hendrycks and Dietterich 2019, Gaussian noise")
def noise(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:
    """Add Gaussian noise to each level, with a standard deviation of 4, 8, 12, 18 or 26 % of the range."""
    values = images[0].numel() if len(images) else 0
    count = -(-values // 8)  # eight values of 16 bits to a block
    step = max(1, _COUNTERS // max(1, count))
    normal, parts = _normal(), []
    for start in range(0, len(images), step):
        words = Draws(draws.sample_ids[start : start + step], draws.seed, draws.view).blocks(Stream.NOISE, count)
        halves = np.stack([words & 0xFFFF, words >> 16], axis=2).reshape(len(words), -1)[:, :values]
        change = (normal[halves] * _DEVIATIONS[strength - 1] + 128) >> 8
        part = images[start : start + step].to(torch.int32)
        parts.append(part + torch.from_numpy(change).to(images.device).reshape(part.shape))
    return _levels(torch.cat(parts)) if parts else images.clone()


@corruption("blur", source="Hendrycks and Dietterich 2019, Gaussian blur")
def blur(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:  # noqa: ARG001 (nothing is drawn)
    """Blur with a Gaussian whose standard deviation is 1, 1.5, 2, 3 or 4 % of the shorter side."""
    height, width = images.shape[-2:]
    deviation = _BLURS[strength - 1] * min(height, width)
    rows, columns = (_smoothing(side, deviation) for side in (height, width))
    return _levels(_weighted(images, rows, columns, units=1 << 32))


@corruption("contrast", source="Hendrycks and Dietterich 2019, contrast")
def contrast(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:  # noqa: ARG001 (nothing is drawn)
    """Reduce the contrast to 75, 50, 40, 30 or 15 % around the mean gray level."""
    factor = torch.full((len(images),), _CONTRASTS[strength - 1], dtype=torch.int32, device=images.device)
    return color.contrast(images, factor)


@corruption("jpeg", source="Hendrycks and Dietterich 2019, JPEG; ITU-T T.81")
def jpeg(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:  # noqa: ARG001 (nothing is drawn)
    """Compress as JPEG with the quality 60, 40, 25, 15 or 8 and half the resolution of the colors."""
    height, width = images.shape[-2:]
    padded = _padded(images, -height % 16, -width % 16).to(torch.int32)
    luma, blue, red = _to_ycc(padded)
    quality = _QUALITIES[strength - 1]
    luma = _quantized(luma, _LUMA, quality)
    rows, columns = (_halving(side) for side in padded.shape[-2:])
    finer = [_doubling(side) for side in padded.shape[-2:]]
    blue, red = (
        _weighted(_quantized(_weighted(plane, rows, columns, units=4), _CHROMA, quality), *finer, units=16)
        for plane in (blue, red)
    )
    return _levels(_to_rgb(luma, blue, red))[..., :height, :width].contiguous()


@corruption("pixelate", source="Hendrycks and Dietterich 2019, pixelate")
def pixelate(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:  # noqa: ARG001 (nothing is drawn)
    """Average over cells, 70, 55, 45, 35 or 25 % as many along a side as there are pixels."""
    sides = images.shape[-2:]
    cells = [max(1, round(_CELLS[strength - 1] * side)) for side in sides]
    rows, columns = (_averaging(side, count) for side, count in zip(sides, cells, strict=True))
    small = _levels(_weighted(images, rows, columns, units=sides[0] * sides[1]))
    down, across = (
        torch.arange(side, device=images.device).mul(2).add(1).mul(count).div(2 * side, rounding_mode="floor")
        for side, count in zip(sides, cells, strict=True)
    )
    return small[..., down, :][..., across]


@corruption("brightness", source="Hendrycks and Dietterich 2019, brightness")
def brightness(images: torch.Tensor, strength: int, draws: Draws) -> torch.Tensor:  # noqa: ARG001 (nothing is drawn)
    """Add 10, 20, 30, 40 or 50 % of the range to every level."""
    return _levels(images.to(torch.int32) + _SHIFTS[strength - 1])


def _levels(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def _weighted(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, *, units: int) -> torch.Tensor:
    """Return ``rows @ image @ columns.T`` over ``units``, rounded to nearest with halves up, int32.

    Both matrices hold integers in float64, small enough that no sum reaches 2^53, so the order of summation is free.
    """
    rows, columns = rows.to(images.device), columns.to(images.device)
    total = rows @ images.to(torch.float64) @ columns.T
    return total.add_(units // 2).div_(units).floor_().to(torch.int32)


@lru_cache(maxsize=1)
def _normal() -> npt.NDArray[np.int32]:
    """Return 2^16 equally likely values of the standard normal distribution in units of 1/256."""
    inverse = NormalDist().inv_cdf
    return np.array([round(256 * inverse((index + 0.5) / 65536)) for index in range(65536)], dtype=np.int32)


@lru_cache(maxsize=64)
def _smoothing(side: int, deviation: float) -> torch.Tensor:
    """Return the blur of one axis, ``(side, side)``, in units of 2^-16; edge pixels are repeated beyond the edge."""
    reach = math.ceil(3 * deviation)
    raw = [math.exp(-((step / deviation) ** 2) / 2) for step in range(-reach, reach + 1)]
    weights = [round(65536 * value / sum(raw)) for value in raw]
    weights[reach] += 65536 - sum(weights)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    for step, weight in zip(range(-reach, reach + 1), weights, strict=True):
        for place in range(side):
            matrix[place, min(max(place + step, 0), side - 1)] += weight
    return matrix


@lru_cache(maxsize=64)
def _averaging(side: int, cells: int) -> torch.Tensor:
    """Return the mean over cells of one axis, ``(cells, side)``, in units of ``1 / side``."""
    pixel, cell = np.arange(side) * cells, np.arange(cells)[:, None] * side
    shared = np.minimum(pixel + cells, cell + side) - np.maximum(pixel, cell)
    return torch.from_numpy(np.maximum(shared, 0).astype(np.float64))


@lru_cache(maxsize=64)
def _halving(side: int) -> torch.Tensor:
    """Return the sum of each two neighbors of one axis, ``(side / 2, side)``."""
    return torch.eye(side // 2, dtype=torch.float64).repeat_interleave(2, dim=1)


@lru_cache(maxsize=64)
def _doubling(side: int) -> torch.Tensor:
    """Return linear interpolation to twice as many pixels of one axis, ``(side, side / 2)``, in units of 1/4."""
    matrix = torch.zeros(side, side // 2, dtype=torch.float64)
    for place in range(side):
        near = place // 2
        far = min(max(near + (1 if place % 2 else -1), 0), side // 2 - 1)
        matrix[place, near] += 3
        matrix[place, far] += 1
    return matrix


@lru_cache(maxsize=1)
def _cosines() -> torch.Tensor:
    """Return the discrete cosine transform of 8 values, ``(8, 8)``, in units of 2^-13."""
    frequency, place = np.arange(8)[:, None], np.arange(8)[None]
    exact = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, math.sqrt(1 / 8), 0.5)
    return torch.from_numpy(np.rint(8192 * exact))


def _padded(images: torch.Tensor, down: int, across: int) -> torch.Tensor:
    """Repeat the last row and the last column."""
    images = torch.cat([images, images[..., -1:, :].expand(-1, -1, down, -1)], dim=-2)
    return torch.cat([images, images[..., -1:].expand(-1, -1, -1, across)], dim=-1)


def _quantized(plane: torch.Tensor, table: tuple[int, ...], quality: int) -> torch.Tensor:
    """Quantize the cosine transform of blocks of 8 x 8, as libjpeg does at a quality of 1 to 100; int32 ``(n, H, W)``.

    Both sides are multiples of 8.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor([min(max((value * scale + 50) // 100, 1), 255) for value in table], dtype=torch.float64)
    steps, cosines = steps.view(8, 8).to(plane.device), _cosines().to(plane.device)
    count, height, width = plane.shape
    blocks = plane.view(count, height // 8, 8, width // 8, 8).transpose(2, 3).to(torch.float64).sub_(128)
    frequencies = cosines @ blocks @ cosines.T  # in units of 2^-26
    kept = frequencies.abs().add_(steps * 2**25).div_(steps * 2**26).floor_().mul_(frequencies.sign()).mul_(steps)
    made = (cosines.T @ kept @ cosines).add_(2**25).div_(2**26).floor_().add_(128).clamp_(0, 255)
    return made.to(torch.int32).transpose(2, 3).reshape(count, height, width)


def _to_ycc(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return luma, blue and red differences of int32 images, each ``(n, H, W)``; JFIF, in units of 2^-16."""
    red, green, blue = images.unbind(1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    middle = (128 << 16) + 32767
    return (
        luma,
        (-11059 * red - 21709 * green + 32768 * blue + middle) >> 16,
        (32768 * red - 27439 * green - 5329 * blue + middle) >> 16,
    )


def _to_rgb(luma: torch.Tensor, blue: torch.Tensor, red: torch.Tensor) -> torch.Tensor:
    """Return int32 images ``(n, 3, H, W)``, which may leave 0..255."""
    blue, red = blue - 128, red - 128
    return torch.stack(
        [
            luma + ((91881 * red + 32768) >> 16),
            luma + ((-22554 * blue - 46802 * red + 32768) >> 16),
            luma + ((116130 * blue + 32768) >> 16),
        ],
        dim=1,
    )
