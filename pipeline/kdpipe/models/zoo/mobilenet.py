"""MobileNetV2 at half width for small images."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.models.zoo.initialisation import initialise

STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
"""Expansion, channels, blocks and stride of each stage: half the channels of the paper's table 2."""


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by a linear 1x1; add the input where it fits."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, expansion: int) -> None:
        """Build the block for ``channels_in`` -> ``channels`` at ``stride``."""
        super().__init__()
        inner = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, channels, H / stride, W / stride)``."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Sandler et al., 2018, "MobileNetV2: inverted residuals and linear bottlenecks", width 0.5, expansion 6.

    As in RepDistiller: ReLU in place of ReLU6, stride 2 in the stem and in three stages (1/16 in all), and
    the last convolution keeps its 1280 channels.
    """

    def __init__(self, num_classes: int) -> None:
        """Build the seven stages of ``STAGES``."""
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        channels_in = 16
        for expansion, channels, blocks, stride in STAGES:
            first = InvertedResidual(channels_in, channels, stride=stride, expansion=expansion)
            rest = (InvertedResidual(channels, channels, stride=1, expansion=expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels_in = channels
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels_in, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialise(self, linear_std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.classifier(self.conv2(x).mean((2, 3)))
        return logits
