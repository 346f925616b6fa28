"""ShuffleNet V1 (three groups) and V2 (width 1) for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Interleave the channels of ``groups`` groups (Zhang et al., 2018, figure 1); the shape stays."""
    n, channels, height, width = x.shape
    grouped = x.reshape(n, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(n, channels, height, width)


class GroupedBottleneck(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; the pooled input is concatenated at stride 2."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, groups: int) -> None:
        """Build the block; at stride 2 the input's channels are passed on beside its ``channels``."""
        super().__init__()
        inner = channels // 4
        # The 24 channels of the stem are too few to be grouped.
        self.groups = 1 if channels_in == 24 else groups
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, C, H / stride, W / stride)``."""
        out = shuffle(torch.relu(self.bn1(self.conv1(x))), self.groups)
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return torch.relu(out + x)


class ShuffleNetV1(nn.Module):
    """Zhang et al., 2018, "ShuffleNet", table 1 with three groups, and a 1x1 stem at stride 1 for CIFAR."""

    def __init__(self, num_classes: int) -> None:
        """Build stages of 240, 480 and 960 channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self.stage(24, 240, blocks=4)
        self.layer2 = self.stage(240, 480, blocks=8)
        self.layer3 = self.stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def stage(channels_in: int, channels: int, *, blocks: int) -> nn.Sequential:
        """Chain ``blocks`` bottlenecks, the first of which halves the resolution."""
        first = GroupedBottleneck(channels_in, channels - channels_in, stride=2, groups=3)
        rest = (GroupedBottleneck(channels, channels, stride=1, groups=3) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits


class SplitBlock(nn.Module):
    """Pass one half of the channels through, convolve the other, and shuffle (Ma et al., 2018, figure 3c)."""

    def __init__(self, channels: int) -> None:
        """Build the block; the number of channels stays."""
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, C, H, W)`` to the same shape."""
        kept, out = x.chunk(2, dim=1)
        out = torch.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = torch.relu(self.bn3(self.conv3(out)))
        return shuffle(torch.cat([kept, out], 1), 2)


class DownBlock(nn.Module):
    """Halve the resolution in two branches, concatenate and shuffle (Ma et al., 2018, figure 3d)."""

    def __init__(self, channels_in: int, channels: int) -> None:
        """Build the block for ``channels_in`` -> ``channels``, half from each branch."""
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, channels, H / 2, W / 2)``."""
        left = torch.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = torch.relu(self.bn3(self.conv3(x)))
        right = torch.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(nn.Module):
    """Ma et al., 2018, "ShuffleNet V2", table 5 at 1x, with a 1x1 stem at stride 1 for CIFAR.

    As in RepDistiller, each stage is a down block and then 3, 7 and 3 split blocks.
    """

    def __init__(self, num_classes: int) -> None:
        """Build stages of 116, 232 and 464 channels and a last convolution of 1024."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self.stage(24, 116, blocks=3)
        self.layer2 = self.stage(116, 232, blocks=7)
        self.layer3 = self.stage(232, 464, blocks=3)
        self.conv2 = nn.Conv2d(464, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    @staticmethod
    def stage(channels_in: int, channels: int, *, blocks: int) -> nn.Sequential:
        """Chain a down block and ``blocks`` split blocks."""
        return nn.Sequential(DownBlock(channels_in, channels), *(SplitBlock(channels) for _ in range(blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        logits: torch.Tensor = self.linear(x.mean((2, 3)))
        return logits
