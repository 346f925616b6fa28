"""Small networks for commands, such as ``--student tests.networks:small --input-size 16``."""

from __future__ import annotations

import os

import torch
from torch import nn

from kdpipe.testing.doubles import Dropping, Starving, small_network

SMALL, DROPPING = (f"tests.networks:{name}" for name in ("small", "dropping"))

SEEN: list[tuple[int, ...]] = []
"""Shapes of the batches that ``counting`` networks took."""

PROBES = 2
"""Forward passes in evaluation mode before a command trains."""


def small(num_classes: int) -> nn.Module:
    """Return a network that takes 3 ms for a step on 32 images of 16 x 16 pixels."""
    return small_network(num_classes, seed=None)


def plain(num_classes: int) -> nn.Module:
    """Return a network without batch normalization: each image's logits are its own."""
    layers = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, num_classes)
    return nn.Sequential(*layers)


def dropping(num_classes: int) -> nn.Module:
    """Return a network that draws from torch's generator at every step."""
    return Dropping(small(num_classes))


def drifting(num_classes: int) -> nn.Module:
    """Return a network with the same weights on each rank of a launcher, and other logits."""
    return _Drifting(small(num_classes), float(os.environ.get("RANK", "0")))


class _Drifting(nn.Module):
    def __init__(self, network: nn.Module, drift: float) -> None:
        super().__init__()
        self.network, self._drift = network, drift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits + self._drift


def starving(num_classes: int) -> nn.Module:
    """Return a network whose memory suffices for seven steps, and from then on for batches of 8."""
    return Starving(small(num_classes), 7, training=True)


def blind(num_classes: int) -> nn.Module:
    """Return a network whose memory suffices for training, and not for a validation."""
    return Starving(small(num_classes), PROBES, training=False)


def untestable(num_classes: int) -> nn.Module:
    """Return a network whose memory suffices for training and two validations, and not for the test."""
    return Starving(small(num_classes), PROBES + 4, training=False)


def counting(num_classes: int) -> nn.Module:
    """Return always the same network; it adds the shape of each batch to ``SEEN``."""
    network = small_network(num_classes)
    network.register_forward_pre_hook(lambda _network, images: SEEN.append(tuple(images[0].shape)))
    return network
