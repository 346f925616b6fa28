"""From a source image to a model's square input: resize the shorter side, cut out the centre."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdpipe.models import Preset
from kdpipe.views.resample import resize


@dataclass(frozen=True)
class Geometry:
    """The part of a ``Preset`` that moves pixels; the rest is normalisation."""

    size: int
    resize: int
    interpolation: str

    @classmethod
    def of(cls, preset: Preset) -> Geometry:
        """Take the geometry of a model's preset."""
        return cls(preset.size, preset.resize, preset.interpolation)

    def fit(self, images: torch.Tensor) -> torch.Tensor:
        """Fit uint8 ``(n, 3, H, W)`` to ``(n, 3, size, size)``; the identity when the sides already match.

        Resizing is antialiased; the longer side becomes ``floor(resize * long / short)``.
        """
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        if short != self.resize:
            stretched = self.resize * long // short
            height, width = (self.resize, stretched) if height <= width else (stretched, self.resize)
            images = resize(images, height, width, kernel=self.interpolation)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return images[..., top : top + self.size, left : left + self.size]
