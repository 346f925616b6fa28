"""The wide residual networks wrn_16_1, wrn_16_2, wrn_40_1 and wrn_40_2."""

from __future__ import annotations

import torch
from torch import nn

from kdpipe.models.zoo.initialisation import initialise


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
    """A chain of blocks under the name ``layer``, as the published keys have it."""

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
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(n, 3, S, S)`` to logits ``(n, classes)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: torch.Tensor = self.fc(torch.relu(self.bn1(x)).mean((2, 3)))
        return logits
