"""A large and a small convolutional network for MNIST, as ``networks:large`` and ``networks:small``.

Both take float32 ``(n, 3, 28, 28)``, since kdpipe reads every image as RGB, and return logits ``(n, classes)``.
"""

from torch import nn


def large(num_classes: int) -> nn.Module:
    """Return four convolutions and two linear layers: 871,402 parameters for ten classes."""
    return nn.Sequential(
        *_convolution(3, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 256),
        nn.ReLU(),
        nn.Linear(256, num_classes),
    )


def small(num_classes: int) -> nn.Module:
    """Return two strided convolutions and one linear layer: 9,266 parameters for ten classes."""
    return nn.Sequential(
        *_convolution(3, 8, stride=2),
        *_convolution(8, 16, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, num_classes),
    )


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
