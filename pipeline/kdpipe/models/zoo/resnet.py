"""The CIFAR ResNets, three stages of basic blocks: resnet8 to resnet110, and the four times wider x4."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.models.zoo.initialisation import initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build the block for ``channels_in`` -> ``channels`` at ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, channels, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """The residual network of He et al., 2016, "Deep residual learning for image recognition", section 4.2.

    ``depth`` is 6n + 2. The paper's CIFAR networks pad their shortcuts with zeros (option A); these project
    them with a 1x1 convolution (option B), as RepDistiller and mdistiller do.
    """

    def __init__(self, depth: int, stem: int, num_classes: int) -> None:
        """Build three stages of 16, 32 and 64 channels after a stem of 16; of 64, 128 and 256 after 32."""
        super().__init__()
        blocks = (depth - 2) // 6
        width = 16 if stem == 16 else 2 * stem
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(stem, width, blocks=blocks, stride=1)
        self.layer2 = stage(width, 2 * width, blocks=blocks, stride=2)
        self.layer3 = stage(2 * width, 4 * width, blocks=blocks, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def stage(channels_in: int, channels: int, *, blocks: int, stride: int) -> nn.Sequential:
    """Chain ``blocks`` basic blocks, the first of which changes width and resolution."""
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
