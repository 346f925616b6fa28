"""A network with its normalization inside, and the packages that write it in other formats."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from kdpipe.models import AnyPreset, Preset
from kdpipe.models.layout import arrange
from kdpipe.printable import first_line


class Wrapped(nn.Module):
    """A copy of a network behind the normalization of its preset, in evaluation mode on the CPU.

    One of tensors takes packed items, uint8 ``(n, 3, 1, width)``, see ``kdpipe.dataset.forms``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, module: nn.Module, preset: AnyPreset) -> None:
        """Copy ``module``, which is left as it is."""
        super().__init__()
        self.module = copy.deepcopy(module).to("cpu")
        arrange(self.module, channels_last=False)
        self.size = preset.size
        mean, std = (preset.mean, preset.std) if isinstance(preset, Preset) else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval()
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images ``(n, 3, S, S)`` to float32 logits ``(n, classes)``."""
        if isinstance(self.size, int):
            scaled = images.to(torch.float32) / 255
            logits: torch.Tensor = self.module((scaled - self.mean) / self.std)
        else:
            logits = self.module(self.size.unpack(images))
        return logits.to(torch.float32)

    def example(self) -> torch.Tensor:
        """Return two blank images, to trace with: of a single one, the batch would be taken for a constant."""
        if isinstance(self.size, int):
            return torch.zeros(2, 3, self.size, self.size, dtype=torch.uint8)
        return torch.from_numpy(np.stack([self.size.blank()] * 2))


def reason(error: BaseException) -> str:
    """Return the first line of an exporter's error, or of what caused it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
