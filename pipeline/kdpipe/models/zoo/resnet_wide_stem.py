"""ImageNet's ResNet-18 and ResNet-50 with a 3x3 stem and no max pooling, for small images."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.models.zoo.initialisation import initialise


def projection(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Return the shortcut: empty where the shape stays, else a 1x1 convolution and a batch norm."""
    if stride == 1 and channels_in == channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build the block for ``channels_in`` -> ``channels`` at ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = projection(channels_in, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, channels, H / stride, W / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution, and a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build the block for ``channels_in`` -> ``4 * channels`` at ``stride``."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.shortcut = projection(channels_in, 4 * channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, 4 * channels, H / stride, W / stride)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class WideStemResNet(nn.Module):
    """He et al., 2016, "Deep residual learning for image recognition", table 1, with a small stem."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], num_classes: int
    ) -> None:
        """Build four stages of 64, 128, 256 and 512 channels, times the block's expansion."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        out = [channels * block.expansion for channels in (64, 128, 256, 512)]
        self.layer1 = stage(block, 64, 64, blocks=blocks[0], stride=1)
        self.layer2 = stage(block, out[0], 128, blocks=blocks[1], stride=2)
        self.layer3 = stage(block, out[1], 256, blocks=blocks[2], stride=2)
        self.layer4 = stage(block, out[2], 512, blocks=blocks[3], stride=2)
        self.linear = nn.Linear(out[3], num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


def stage(
    block: type[BasicBlock] | type[Bottleneck], channels_in: int, channels: int, *, blocks: int, stride: int
) -> nn.Sequential:
    """Chain ``blocks`` blocks, the first of which changes width and resolution."""
    rest = (block(channels * block.expansion, channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(channels_in, channels, stride), *rest)
