"""Presets: size, resize, interpolation and normalization of a model's input, and the choice among recorded ones.

Importing this does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from kdpipe.errors import KdpipeError, ModelError, ParamsError, did_you_mean
from kdpipe.printable import printable
from kdpipe.reading import parse_json

if TYPE_CHECKING:
    import torch
    from torch import nn

Triple = tuple[float, float, float]

Interpolation = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

MAX_SIDE = 4096
"""Pixels of the longest side of an input."""
_MAX_RESIZE = 2 * MAX_SIDE
_MAX_STATISTIC = 1000.0
"""Largest mean or standard deviation; published ones are below 1, or 255 for pixels that are not scaled."""
_MIN_STD = 1e-4


@dataclass(frozen=True)
class Preset:
    """The preparation of a model's input image.

    The shorter side is resized to ``resize`` with antialiasing, a centered square of ``size`` is cut out, and
    the pixels are normalized with ``(x / 255 - mean) / std`` per channel.
    """

    size: int
    """Side of the square input, in pixels."""
    resize: int
    """Length of the shorter side before the center crop, in pixels; at least ``size``."""
    interpolation: Interpolation
    """Resampling kernel of the resize."""
    mean: Triple
    """Per-channel mean of RGB in 0..1."""
    std: Triple
    """Per-channel standard deviation of RGB in 0..1."""

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 ``(n, 3, H, W)`` to normalized float32 of the same shape, on the same device."""
        mean, std = self._statistics(pixels.device)
        return self.scaled(pixels).sub_(mean).div_(std)

    @staticmethod
    def scaled(pixels: torch.Tensor) -> torch.Tensor:
        """Convert uint8 pixels to new float32 ones in 0..1."""
        import torch

        return pixels.to(torch.float32).div_(255)

    def standardize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize images ``(n, 3, H, W)`` that are ``scaled`` already, as ``normalize`` does; differentiable."""
        mean, std = self._statistics(images.device)
        return (images - mean) / std

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        return mean, std

    def describe(self) -> dict[str, Any]:
        """Return the preset as plain JSON values."""
        return {
            "size": self.size,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def parse(cls, described: dict[str, Any]) -> Preset:
        """Rebuild a preset from ``describe()``.

        Raises:
            ModelError: it is not one, or a value is out of the bounds of real ones.
        """
        try:
            size = side(str(described["size"]))
            resize = side(str(described["resize"]), most=_MAX_RESIZE)
            mean, std = _bounded(triple(described["mean"])), _bounded(triple(described["std"], positive=True), _MIN_STD)
            return cls(size, resize, kernel(described["interpolation"]), mean, std)
        except (KeyError, ValueError, TypeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ModelError(f"the recorded preset of a model is unusable: {printable(what)[:200]}") from None


@dataclass(frozen=True)
class Known:
    """The parts of a preset that one source records; None where it records none."""

    source: str
    """``flags``, ``weights``, ``torchvision <enum>``, ``timm`` and the like."""
    mean: Triple | None = None
    std: Triple | None = None
    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None


Statistics = Callable[[], tuple[Triple, Triple]]
"""Returns mean and standard deviation of the dataset's pixels."""
Size = int | Callable[[], int | None] | None
"""The side of an input, or a function that returns it; ``None`` if nothing says it."""


def choose(
    sources: Sequence[Known], *, fallback_statistics: Statistics | None, fallback_size: Size, name: str
) -> tuple[Preset, str]:
    """Merge the sources, of which the first has precedence; the fallbacks serve where none records a part.

    Mean and standard deviation come from one source. A resize that belongs to another size than the one
    chosen is scaled with it. Returns the preset and the source of its normalization.

    Raises:
        ModelError: nothing gives the size or the normalization of the model ``name``.
    """
    size = next((known.size for known in sources if known.size is not None), None)
    if size is None:
        size = fallback_size() if callable(fallback_size) else fallback_size
    if size is None:
        raise ModelError(
            f"nothing says which size of images '{name}' takes, and those of the dataset differ in size: give the side "
            "of its input in pixels, --input-size (--teacher-size for a live teacher)."
        )
    geometries = ((known.size, known.resize) for known in sources)
    cut, shorter = next(((c, s) for c, s in geometries if c is not None and s is not None), (size, size))
    resize = max(size, round(shorter * size / cut))
    kernels = (known.interpolation for known in sources)
    interpolation: Interpolation = next((kernel for kernel in kernels if kernel is not None), "bilinear")
    for known in sources:
        if known.mean is not None and known.std is not None:
            return Preset(size, resize, interpolation, known.mean, known.std), known.source
    if fallback_statistics is None:
        raise ModelError(
            f"nothing says how the images of '{name}' are normalized: give its --mean and --std, or --statistics data "
            "if it was trained with the statistics of this dataset."
        )
    mean, std = fallback_statistics()
    return Preset(size, resize, interpolation, mean, std), "dataset"


def from_flags(
    mean: Sequence[float] | None, std: Sequence[float] | None, *, size: int | None, interpolation: str | None
) -> Known:
    """Check the parts that the caller gives.

    Raises:
        ParamsError: mean without std or the reverse, a wrong count, or a value out of range.
    """
    if (mean is None) != (std is None):
        raise ParamsError("mean and std belong together: give both or neither")
    try:
        return Known(
            "flags",
            mean=None if mean is None else triple(mean),
            std=None if std is None else triple(std, positive=True),
            size=None if size is None else positive(size),
            interpolation=None if interpolation is None else kernel(interpolation),
        )
    except ValueError as error:
        raise ParamsError(f"the preset of the model: {error}") from error


def from_header(header: Mapping[str, str], path: Path) -> Known:
    """Read the preset that the header of the weights at ``path`` records.

    Raises:
        ModelError: the header's strings cannot be read.
    """
    try:
        size = side(header["input_size"]) if "input_size" in header else None
        both = "mean" in header and "std" in header
        return Known(
            "weights",
            mean=statistics(header["mean"], path) if both else None,
            std=statistics(header["std"], path, positive=True) if both else None,
            size=size,
            resize=side(header["resize"], most=_MAX_RESIZE) if "resize" in header else size,
            interpolation=kernel(header["interpolation"]) if "interpolation" in header else None,
        )
    except (ValueError, TypeError, KdpipeError) as error:
        raise ModelError(f"{path}: its header records an unusable preset: {printable(error)[:200]}") from error


def side(text: str, *, most: int = MAX_SIDE) -> int:
    """Return a side in pixels that a file gives, 1 to ``most``."""
    if len(text) > 9 or not text.strip().isascii() or not text.strip().isdecimal():
        raise ValueError(f"expected a size in pixels, found '{text[:40]}'")
    if not 1 <= int(text) <= most:
        raise ValueError(f"expected a size of 1 to {most} pixels, found {int(text)}")
    return int(text)


def statistics(text: str, path: Path, *, positive: bool = False) -> Triple:
    """Return a mean or a standard deviation that a file gives, within the bounds of real ones."""
    if len(text) > 1000:
        raise ValueError(f"expected three numbers, found {len(text):,} characters")
    numbers = triple(parse_list(text, of=path), positive=positive)
    return _bounded(numbers, _MIN_STD if positive else -_MAX_STATISTIC)


def _bounded(numbers: Triple, least: float = -_MAX_STATISTIC) -> Triple:
    if max(numbers) > _MAX_STATISTIC or min(numbers) < least:
        raise ValueError(f"expected statistics of pixels, {least:g} to {_MAX_STATISTIC:g}, found {list(numbers)}")
    return numbers


def for_imagenet(source: str) -> Known:
    """Return the usual geometry of ImageNet classifiers: 224 pixels, cropped from images resized to 256."""
    return Known(source, size=224, resize=256)


def of_imagenet(source: str) -> Known:
    """Return the usual preset of weights that were trained on ImageNet: its geometry and its statistics."""
    return Known(source, IMAGENET_MEAN, IMAGENET_STD, size=224, resize=256)


def from_torchvision(weights: Any) -> Known:
    """Read the preset of a member of a torchvision weights enum."""
    transforms = weights.transforms()
    return Known(
        f"torchvision {weights.name}",
        mean=triple(transforms.mean),
        std=triple(transforms.std, positive=True),
        size=int(transforms.crop_size[0]),
        resize=int(transforms.resize_size[0]),
        interpolation=kernel(transforms.interpolation.value),
    )


def from_timm(module: nn.Module) -> Known:
    """Read the preset of a timm model's configuration."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=module)
    size = int(config["input_size"][-1])
    try:
        interpolation = kernel(config["interpolation"])
    except ValueError as error:
        raise ModelError(f"timm's configuration of this model: {error}; pass --interpolation") from error
    return Known(
        "timm",
        mean=triple(config["mean"]),
        std=triple(config["std"], positive=True),
        size=size,
        resize=math.floor(size / config["crop_pct"]),
        interpolation=interpolation,
    )


def triple(values: Sequence[Any], *, positive: bool = False) -> Triple:
    """Convert three numbers or numerals to floats."""
    numbers = [float(value) for value in values]
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"expected three finite numbers, found {numbers}")
    if positive and min(numbers) <= 0:
        raise ValueError(f"expected standard deviations above 0, found {numbers}")
    return numbers[0], numbers[1], numbers[2]


def positive(value: int) -> int:
    """Return ``value`` if it is at least 1, and at most ``MAX_SIDE``."""
    if value < 1:
        raise ValueError(f"expected a size of at least 1, found {value}")
    if value > MAX_SIDE:
        raise ValueError(f"expected a size of at most {MAX_SIDE}, found {value}")
    return value


def kernel(name: str) -> Interpolation:
    """Return the resampling kernel called ``name``."""
    for known in INTERPOLATIONS:
        if name == known:
            return known
    allowed = ", ".join(INTERPOLATIONS)
    raise ValueError(f"unknown interpolation '{name}'{did_you_mean(name, INTERPOLATIONS)} (expected {allowed})")


def parse_list(text: str, *, of: Path) -> list[Any]:
    """Split a header string of the file ``of`` that is a JSON list of texts and numbers, or separated by commas.

    Raises:
        ModelError: it is a list of something else.
    """
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",")]
    values: list[Any] = parse_json(text.encode(), of=of, error=ModelError)
    if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
        raise ModelError(f"{of}: expected a list of texts or numbers in its header")
    return values
