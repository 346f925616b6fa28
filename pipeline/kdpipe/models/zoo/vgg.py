"""The VGG networks with batch norm and one linear layer: vgg8, vgg11, vgg13, vgg16 and vgg19."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kdpipe.models.zoo.initialisation import initialise

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Convolutions per block; the paper's configurations A, B, D and E, and a smaller one for depth 8."""


class VGG(nn.Module):
    """Simonyan & Zisserman, 2015, "Very deep convolutional networks", table 1, made smaller for CIFAR.

    Batch norm follows every convolution, and one linear layer on the pooled features replaces three. As in
    RepDistiller, the last two blocks have one resolution unless the input is 64 pixels or larger.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        """Build the five blocks of ``depth``'s configuration."""
        super().__init__()
        channels_in = 3
        for index, (width, convolutions) in enumerate(zip(WIDTHS, CONVOLUTIONS[depth], strict=True)):
            self.add_module(f"block{index}", convolution_block(channels_in, width, convolutions))
            channels_in = width
        self.classifier = nn.Linear(512, num_classes)
        initialise(self, linear_std=0.01)

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
