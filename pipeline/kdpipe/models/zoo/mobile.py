"""Networks for phones: MobileNet V1, a usual student for ImageNet, and V2 at half width, for small images;
ShuffleNet V1 (three groups) and V2 (width 1), for small images.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

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
