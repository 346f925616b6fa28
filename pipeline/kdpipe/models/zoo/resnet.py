"""Residual networks for CIFAR: ResNets of basic blocks, and wide residual networks; the initialization of the zoo."""

from __future__ import annotations

import torch
from torch import nn


def initialize(network: nn.Module, *, linear_std: float | None = None) -> None:
    """Draw convolutions from He et al.'s normal distribution; make batch norms the identity.

    Convolutions have standard deviation ``sqrt(2 / (k * k * out_channels))`` (He et al., 2015, eq. 14) and no
    bias. With ``linear_std``, linear layers are drawn from a normal of that deviation with bias 0; without
    it they keep torch's default. Uses torch's global generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)


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
        initialize(self)

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


class PreactivationBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, and a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input; else the input itself.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Build the block for ``channels_in`` -> ``channels`` at ``stride``."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        # The camel case is part of the published checkpoints' keys.
        self.convShortcut: nn.Module | None = None
        if channels_in != channels:
            self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, channels_in, H, W)`` to ``(n, channels, H / stride, W / stride)``."""
        activated = torch.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out: torch.Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return out + shortcut


class Stage(nn.Module):
    """A chain of blocks called ``layer``, as in the published keys."""

    def __init__(self, channels_in: int, channels: int, *, blocks: int, stride: int) -> None:
        """Chain ``blocks`` blocks, the first of which changes width and resolution."""
        super().__init__()
        first = PreactivationBlock(channels_in, channels, stride)
        rest = (PreactivationBlock(channels, channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks in order."""
        out: torch.Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Zagoruyko & Komodakis, 2016, "Wide residual networks", table 1; depth is 6n + 4, no dropout."""

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        """Build stages of 16, 32 and 64 channels, times ``widen``."""
        super().__init__()
        blocks = (depth - 4) // 6
        one, two, three = 16 * widen, 32 * widen, 64 * widen
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, one, blocks=blocks, stride=1)
        self.block2 = Stage(one, two, blocks=blocks, stride=2)
        self.block3 = Stage(two, three, blocks=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(three)
        self.fc = nn.Linear(three, num_classes)
        initialize(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: torch.Tensor = self.fc(torch.relu(self.bn1(x)).mean((2, 3)))
        return logits
