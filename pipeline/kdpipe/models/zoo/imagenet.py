"""ImageNet's ResNet-18, ResNet-50 and VGG networks, changed for small images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.models.zoo.resnet import initialize

VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions of VGG per block, by depth; the paper's configurations A, B, D and E, and a smaller one for depth 8."""


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


RESNET_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""Block and number of blocks per stage of ResNets, by depth; the paper's table 1."""


class WideStemResNet(nn.Module):
    """He et al., 2016, "Deep residual learning for image recognition", table 1, with a 3x3 stem and no max pooling."""

    def __init__(self, depth: int, num_classes: int) -> None:
        """Build four stages of 64, 128, 256 and 512 channels, times the block's expansion."""
        super().__init__()
        block, blocks = RESNET_BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        out = [channels * block.expansion for channels in (64, 128, 256, 512)]
        self.layer1 = stage(block, 64, 64, blocks=blocks[0], stride=1)
        self.layer2 = stage(block, out[0], 128, blocks=blocks[1], stride=2)
        self.layer3 = stage(block, out[1], 256, blocks=blocks[2], stride=2)
        self.layer4 = stage(block, out[2], 512, blocks=blocks[3], stride=2)
        self.linear = nn.Linear(out[3], num_classes)
        initialize(self)

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


class VGG(nn.Module):
    """Simonyan & Zisserman, 2015, "Very deep convolutional networks", table 1, made smaller for CIFAR.

    Batch norm follows every convolution, and one linear layer on the pooled features replaces three. As in
    RepDistiller, the last two blocks have one resolution unless the input is 64 pixels or larger.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        """Build the five blocks of ``depth``'s configuration."""
        super().__init__()
        channels_in = 3
        for index, (width, convolutions) in enumerate(zip(VGG_WIDTHS, VGG_CONVOLUTIONS[depth], strict=True)):
            self.add_module(f"block{index}", convolution_block(channels_in, width, convolutions))
            channels_in = width
        self.classifier = nn.Linear(512, num_classes)
        initialize(self, linear_std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        pools = 4 if x.shape[2] >= 64 else 3
        for index in range(5):
            x = torch.relu(self.get_submodule(f"block{index}")(x))
            if index < pools:
                x = F.max_pool2d(x, 2)
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits


def convolution_block(channels_in: int, width: int, convolutions: int) -> nn.Sequential:
    """Chain 3x3 convolutions with batch norm and ReLU; the last ReLU is left to the caller."""
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(channels_in, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels_in = width
    return nn.Sequential(*layers[:-1])
