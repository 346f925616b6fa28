"""The operations that recipes are made of: their numbers, their versions, and the streams they draw from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

Phase = Literal["box", "colour", "erase", "mix"]
PHASES: tuple[str, ...] = get_args(Phase)
"""The order in which an image is made: which box of the source, its colours, what is erased, what is mixed in."""


class Stream(IntEnum):
    """The stream of each random parameter. A number is never used for another parameter again."""

    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP = 3
    RRC_AREA = 16
    RRC_RATIO = 17
    RRC_TOP = 18
    RRC_LEFT = 19
    COLOR_ORDER = 32
    BRIGHTNESS = 33
    CONTRAST = 34
    SATURATION = 35
    HUE = 36
    TRIVIAL_OPERATION = 48
    TRIVIAL_LEVEL = 49
    TRIVIAL_SIGN = 50
    ERASE = 64
    ERASE_AREA = 65
    ERASE_RATIO = 66
    ERASE_TOP = 67
    ERASE_LEFT = 68
    MASK = 80
    MIX_CHOICE = 96
    MIXUP_LAMBDA = 97
    CUTMIX_LAMBDA = 98
    CUTMIX_TOP = 99
    CUTMIX_LEFT = 100
    RANDAUG = 128
    """Of the first step's operation; its sign has the next number, and each further step the next two."""


@dataclass(frozen=True)
class Parameter:
    """A number of an operation."""

    name: str
    low: float
    high: float
    default: float | None = None
    """``None`` where it must be given."""
    whole: bool = False


@dataclass(frozen=True)
class Operation:
    """What can stand in a recipe."""

    name: str
    phase: Phase
    parameters: tuple[Parameter, ...] = ()
    version: int = 1
    """Goes up when the operation's pixels change, so that old stores are told apart."""
    ranges: tuple[str, ...] = ()
    """Names of ranges: ``scale`` is from ``scale_min`` to ``scale_max``."""

    @property
    def usage(self) -> str:
        """How it is written, such as ``randaug:STEPS,LEVEL``."""
        required = [known.name.upper() for known in self.parameters if known.default is None]
        return ":".join([self.name, ",".join(required)]) if required else self.name


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation("none", "box"),
        Operation("crop-flip", "box", version=2),
        Operation(
            "rrc-flip",
            "box",
            (
                Parameter("scale_min", 0.001, 1, 0.08),
                Parameter("scale_max", 0.001, 1, 1),
                Parameter("ratio_min", 0.1, 10, 0.75),
                Parameter("ratio_max", 0.1, 10, 4 / 3),
            ),
            ranges=("scale", "ratio"),
        ),
        Operation(
            "color",
            "colour",
            (
                Parameter("brightness", 0, 1, 0.4),
                Parameter("contrast", 0, 1, 0.4),
                Parameter("saturation", 0, 1, 0.4),
                Parameter("hue", 0, 0.5, 0.1),
            ),
        ),
        Operation("trivial", "colour"),
        Operation(
            "randaug",
            "colour",
            (Parameter("steps", 1, 16, whole=True), Parameter("level", 0, 30, whole=True)),
        ),
        Operation(
            "erase",
            "erase",
            (
                Parameter("probability", 0, 1, 0.5),
                Parameter("scale_min", 0.001, 1, 0.02),
                Parameter("scale_max", 0.001, 1, 0.33),
                Parameter("ratio_min", 0.1, 10, 0.3),
                Parameter("ratio_max", 0.1, 10, 3.3),
            ),
            ranges=("scale", "ratio"),
        ),
        Operation("mask", "erase", (Parameter("ratio", 0, 1),)),
        Operation("mixup", "mix", (Parameter("alpha", 0.01, 100),)),
        Operation("cutmix", "mix", (Parameter("alpha", 0.01, 100),)),
    )
}
