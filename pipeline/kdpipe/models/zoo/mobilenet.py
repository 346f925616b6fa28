"""MobileNets: V1, a usual student for ImageNet, and V2 at half width, for small images."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.models.zoo.resnet import initialize

V1_BLOCKS = (
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
"""MobileNetV1's channels and stride of each block, the paper's table 1."""

V2_STAGES = (
    (1, 8, 1, 1),
    (6, 12, 2, 1),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 2),
    (6, 160, 1, 1),
)
"""MobileNetV2's expansion, channels, blocks and stride of each stage: half the channels of the paper's table 2."""


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
    table 1 gives the last block stride 2 as well, at an unchanged resolution; it has 1 here, as in mdistiller, from
    which the keys are taken, too. The initial weights are torch's defaults, as there.
    """

    def __init__(self, num_classes: int) -> None:
        """Build the blocks of ``V1_BLOCKS``."""
        super().__init__()
        widths = (32, *(channels for channels, _ in V1_BLOCKS))
        self.model = nn.Sequential(
            nn.Sequential(*convolution(3, 32, kernel=3, stride=2)),
            *(separable(before, *block) for before, block in zip(widths, V1_BLOCKS, strict=False)),
        )
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        logits: torch.Tensor = self.fc(self.model(x).mean((2, 3)))
        return logits


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
        """Build the seven stages of ``V2_STAGES``."""
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList()
        channels_in = 16
        for expansion, channels, blocks, stride in V2_STAGES:
            first = InvertedResidual(channels_in, channels, stride=stride, expansion=expansion)
            rest = (InvertedResidual(channels, channels, stride=1, expansion=expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(first, *rest))
            channels_in = channels
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels_in, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(inplace=True)
        )
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialize(self, linear_std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = self.conv1(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.classifier(self.conv2(x).mean((2, 3)))
        return logits
