"""What a model wants to see: the geometry of its evaluation view, and its normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Interpolation = Literal["nearest", "bilinear", "bicubic"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)


@dataclass(frozen=True)
class Preset:
    """How an image becomes a model's input.

    The shorter side is resized to ``resize`` with antialiasing, a centred square of ``size`` is cut out, and
    the pixels are normalised with ``(x / 255 - mean) / std`` per channel.
    """

    size: int
    """Side of the square input, in pixels."""
    resize: int
    """Length of the shorter side before the centre crop, in pixels; at least ``size``."""
    interpolation: Interpolation
    """Resampling kernel of the resize."""
    mean: tuple[float, float, float]
    """Per-channel mean of RGB in 0..1."""
    std: tuple[float, float, float]
    """Per-channel standard deviation of RGB in 0..1."""

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 ``(n, 3, H, W)`` into normalised float32 of the same shape, on the same device."""
        mean, std = self._statistics(pixels.device)
        return self.scaled(pixels).sub_(mean).div_(std)

    @staticmethod
    def scaled(pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 pixels into new float32 ones in 0..1."""
        return pixels.to(torch.float32).div_(255)

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images ``(n, 3, H, W)`` that are ``scaled`` already, as ``normalise`` does; differentiable."""
        mean, std = self._statistics(images.device)
        return (images - mean) / std

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
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
        """Rebuild a preset from ``describe()``."""
        red, green, blue = map(float, described["mean"])
        std_red, std_green, std_blue = map(float, described["std"])
        return cls(
            size=int(described["size"]),
            resize=int(described["resize"]),
            interpolation=described["interpolation"],
            mean=(red, green, blue),
            std=(std_red, std_green, std_blue),
        )
