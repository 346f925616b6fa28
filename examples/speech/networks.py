"""Acoustic networks for spectrograms ``(n, frames, bands)``: ``networks:teacher``, ``assistant`` and ``student``.

All end in the largest value over frequencies and the mean over time, so that a voice that is higher makes little
difference. Most of their parameters are in convolutions over time and frequency.
"""

import torch
from torch import nn


def teacher(num_classes: int) -> nn.Module:
    """Return five convolutions of 24 to 96 channels: 79,426 parameters for ten classes."""
    return Acoustic(_convolutions(24, dropout=0.3), 96, num_classes)


def assistant(num_classes: int) -> nn.Module:
    """Return the same with half the channels: 20,278 parameters for ten classes."""
    return Acoustic(_convolutions(12, dropout=0.2), 48, num_classes)


def student(num_classes: int) -> nn.Module:
    """Return four depthwise separable convolutions of 10 and 20 channels: 2,380 parameters for ten classes."""
    channels = 10
    layers = [
        *_convolution(1, channels, width=5, stride=2),
        *_separable(channels, channels),
        *_separable(channels, 2 * channels, stride=2),
        *_separable(2 * channels, 2 * channels),
        *_separable(2 * channels, 2 * channels),
    ]
    return Acoustic(nn.Sequential(*layers), 2 * channels, num_classes)


class Acoustic(nn.Module):
    """Convolutions over time and frequency, and a linear layer."""

    def __init__(self, convolutions: nn.Module, channels: int, num_classes: int) -> None:
        """Take ``convolutions`` to ``(n, channels, time, frequency)``."""
        super().__init__()
        self.convolutions = convolutions
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return logits ``(n, classes)``."""
        return self.classifier(self.convolutions(frames[:, None]).amax(3).mean(2))


def _convolutions(channels: int, *, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        *_convolution(1, channels, stride=2),
        *_convolution(channels, channels),
        nn.MaxPool2d(2),
        *_convolution(channels, 2 * channels),
        *_convolution(2 * channels, 2 * channels),
        nn.MaxPool2d(2),
        *_convolution(2 * channels, 4 * channels),
        nn.Dropout(dropout),
    )


def _convolution(inputs: int, outputs: int, *, width: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, width, stride, width // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _separable(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    """Return a depthwise and a pointwise convolution, as in MobileNet (Howard et al., 2017)."""
    return [*_convolution(inputs, inputs, stride=stride, groups=inputs), *_convolution(inputs, outputs, width=1)]
