"""MobileNet v1, a student that is usual for ImageNet."""

from __future__ import annotations

import torch
from torch import nn

BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
"""Channels and stride of each block, the paper's table 1."""


def convolution(channels_in: int, channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a padded convolution without bias, its batch norm and a ReLU."""
    return [
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def separable(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Filter each channel by 3x3 at ``stride``, then mix the channels by 1x1."""
    depthwise = convolution(channels_in, channels_in, kernel=3, stride=stride, groups=channels_in)
    return nn.Sequential(*depthwise, *convolution(channels_in, channels, kernel=1))


class MobileNetV1(nn.Module):
    """Howard et al., 2017, "MobileNets: efficient convolutional neural networks for mobile vision", width 1.

    A stem of stride 2 and thirteen depthwise separable blocks, four of which have stride 2 (1/32 in all). The paper's
    table 1 gives the last block stride 2 as well, at an unchanged resolution; it has 1 here, as in mdistiller, whose
    keys these are. The initial weights are torch's defaults, as there.
    """

    def __init__(self, num_classes: int) -> None:
        """Build the blocks of ``BLOCKS``."""
        super().__init__()
        widths = (32, *(channels for channels, _ in BLOCKS))
        self.model = nn.Sequential(
            nn.Sequential(*convolution(3, 32, kernel=3, stride=2)),
            *(separable(before, *block) for before, block in zip(widths, BLOCKS, strict=False)),
        )
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        logits: torch.Tensor = self.fc(self.model(x).mean((2, 3)))
        return logits
