"""Pictures that need no decoder and no library's files: integers from Philox, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.views import philox

EQUAL = "tests.unit.views.pictures:equal"
MIXED = "tests.unit.views.pictures:mixed"
SMOOTH = "tests.unit.views.pictures:smooth"

OBLONG = (26, 38)
SIZES = ((20, 24), (31, 17), (16, 16), (9, 40), (25, 8), (48, 37), (33, 52), (60, 5))
"""No box of ``rrc-flip:0.25`` fits the last one, which so shows the fallback."""

RECIPES = (
    "none",
    "crop-flip",
    "rrc-flip",
    "rrc-flip:0.25",
    "color",
    "trivial",
    "randaug:2,9",
    "crop-flip+erase",
    "crop-flip+mask:0.5",
    "crop-flip+mixup:0.2",
    "crop-flip+cutmix:1",
    "rrc-flip+color+erase+mixup:0.4+cutmix:1",
)
"""The operations of the first stores, and some of them together."""

ORIENTED = (
    "crop",
    "rrc:0.25",
    "flip",
    "vflip",
    "rotate:15",
    "crop+flip+vflip+rotate:180",
    "rrc+flip+rotate:7.5+color+erase+mixup:0.4+cutmix:1",
)
"""Crops without a mirror image, flips and rotations, and some of them together."""

SAME = {"crop+flip": "crop-flip", "rrc+flip": "rrc-flip", "rrc:0.25+flip": "rrc-flip:0.25"}
"""Two operations, and the name of the pair that has the same pixels."""


def picture(index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return uint8 ``(height, width, 3)``: noise, small or large blocks, each in full or in low contrast."""
    rows, columns, channels = np.indices((height, width, 3), dtype=np.uint32)
    block = (1, 3, 8)[index % 3]
    counter = [place.ravel() for place in (rows // block, columns // block, channels)]
    zeros = np.zeros_like(counter[0])
    words = philox((counter[0], counter[1], counter[2], zeros), (zeros + np.uint32(index), zeros))[0]
    levels = (words >> np.uint32(24)).reshape(height, width, 3)
    return (levels // 4 + 70 if index % 2 else levels).astype(np.uint8)


def slope(index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return uint8 ``(height, width, 3)`` whose levels change slowly, by place and by channel."""
    rows, columns = np.indices((height, width))
    down, right = rows * 255 // height, columns * 255 // width
    channels = (down, right, 255 - (down + right) // 2)
    return np.stack([channels[(index + channel) % 3] for channel in range(3)], axis=2).astype(np.uint8)


@dataclass(frozen=True)
class Pictures:
    """The dataset that ``package.module:function`` returns; ``train`` has 300 pictures and ``test`` 16."""

    kind: str
    sizes: tuple[tuple[int, int], ...]
    count: int
    classes: tuple[str, ...] = ("ant", "bee", "cow")

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(f"{self.kind}/{index}" for index in range(self.count))

    @property
    def targets(self) -> list[int]:
        return [index * 7 % 3 for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        draw = slope if self.kind == "smooth" else picture
        return draw(index, *self.sizes[index % len(self.sizes)]), self.targets[index]


def equal(split: str) -> Pictures:
    return Pictures("equal", (OBLONG,), 300 if split == "train" else 16)


def mixed(split: str) -> Pictures:
    return Pictures("mixed", SIZES, 300 if split == "train" else 16)


def smooth(split: str) -> Pictures:
    return Pictures("smooth", ((360, 300), (280, 420)), 16)
