"""Which preset a model gets: from flags, its weights, its package, or the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from kdpipe.errors import ModelError, ParamsError, did_you_mean
from kdpipe.models.preset import INTERPOLATIONS, Interpolation, Preset
from kdpipe.models.registry import import_timm
from kdpipe.models.weights import WeightsFile, parse_list

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Known:
    """What one source says about the preset; None where it says nothing."""

    source: str
    mean: Triple | None = None
    std: Triple | None = None
    size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None


def choose(
    sources: Sequence[Known], *, fallback_statistics: Callable[[], tuple[Triple, Triple]], fallback_size: int
) -> tuple[Preset, str]:
    """Merge what the sources say, the first to speak winning; the fallbacks serve where none does.

    Mean and standard deviation come from one source. A resize that belongs to another size than the one
    chosen is scaled with it. Returns the preset and the source of its normalisation.
    """
    size = next((known.size for known in sources if known.size is not None), fallback_size)
    geometries = ((known.size, known.resize) for known in sources)
    cut, shorter = next(((c, s) for c, s in geometries if c is not None and s is not None), (size, size))
    resize = max(size, round(shorter * size / cut))
    kernels = (known.interpolation for known in sources)
    interpolation: Interpolation = next((kernel for kernel in kernels if kernel is not None), "bilinear")
    for known in sources:
        if known.mean is not None and known.std is not None:
            return Preset(size, resize, interpolation, known.mean, known.std), known.source
    mean, std = fallback_statistics()
    return Preset(size, resize, interpolation, mean, std), "dataset"


def from_flags(
    mean: Sequence[float] | None, std: Sequence[float] | None, *, size: int | None, interpolation: str | None
) -> Known:
    """Check what the caller asks for.

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


def from_weights(weights: WeightsFile) -> Known:
    """Read the preset that a weights file's header records.

    Raises:
        ModelError: the header's strings cannot be read.
    """
    said = weights.metadata
    try:
        size = positive(int(said["input_size"])) if "input_size" in said else None
        both = "mean" in said and "std" in said
        return Known(
            "weights",
            mean=triple(parse_list(said["mean"])) if both else None,
            std=triple(parse_list(said["std"]), positive=True) if both else None,
            size=size,
            resize=positive(int(said["resize"])) if "resize" in said else size,
            interpolation=kernel(said["interpolation"]) if "interpolation" in said else None,
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"{weights.path}: its header records an unusable preset: {error}") from error


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
    import_timm()
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
    """Turn three numbers or numerals into floats."""
    numbers = [float(value) for value in values]
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"expected three finite numbers, found {numbers}")
    if positive and min(numbers) <= 0:
        raise ValueError(f"expected standard deviations above 0, found {numbers}")
    return numbers[0], numbers[1], numbers[2]


def positive(value: int) -> int:
    """Return ``value`` if it is at least 1."""
    if value < 1:
        raise ValueError(f"expected a size of at least 1, found {value}")
    return value


def kernel(name: str) -> Interpolation:
    """Return the resampling kernel called ``name``."""
    for known in get_args(Interpolation):
        if name == known:
            found: Interpolation = known
            return found
    allowed = ", ".join(INTERPOLATIONS)
    raise ValueError(f"unknown interpolation '{name}'{did_you_mean(name, INTERPOLATIONS)} (expected {allowed})")
