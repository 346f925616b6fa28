"""Doubles for tests of trainings: small networks, networks that draw or run out of memory, known soft targets, stops.

run = RunDirectory(folder)
student = Student(Dropping(small_network(10)), renderer, CrossEntropy(preset), settings, run)
train(student, IndexedTargets(10), order=order, should_stop=StopAfter(3))
assert not differences(run.load_checkpoint(), expected)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

Indices = npt.NDArray[np.int64]

TIMES = frozenset({"seconds", "images_per_second"})
"""Keys of a checkpoint and columns of a history that differ between two runs of the same training."""


def small_network(num_classes: int = 10, *, width: int = 8, seed: int | None = 1) -> nn.Sequential:
    """Return a convolutional network for images of 8 x 8 pixels or more.

    It has two batch norms, and penultimate features ``(n, 2 * width)``, the input of its last layer. A step on 32
    images of 16 x 16 pixels takes about 2 ms on one core. The weights are drawn by ``seed``, which leaves torch's
    generator as it was; with ``None`` they are drawn by that generator.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, num_classes),
        )


class Dropping(nn.Module):
    """A model that draws from torch's generator at each step: a tenth of its input is set to 0 in training mode."""

    def __init__(self, body: nn.Module) -> None:
        """Wrap ``body``."""
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``body``, of images with dropout."""
        logits: torch.Tensor = self.body(F.dropout(images, 0.1, self.training))
        return logits


class Starving(nn.Module):
    """A model whose memory does not suffice after some forward passes, except for small batches.

    The error is that of torch's allocator on the CPU.
    """

    def __init__(self, body: nn.Module, after: int, *, fitting: int = 8, training: bool | None = None) -> None:
        """Wrap ``body``; after ``after`` forward passes only batches of up to ``fitting`` images find the memory.

        With ``training`` only the passes in training mode (true) or in evaluation mode (false) count and fail.
        """
        super().__init__()
        self.body = body
        self._left, self._fitting, self._mode = after, fitting, training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``body``.

        Raises:
            RuntimeError: memory does not suffice.
        """
        if self._mode is None or self.training is self._mode:
            self._left -= 1
            if self._left < 0 and len(images) > self._fitting:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        logits: torch.Tensor = self.body(images)
        return logits


class IndexedTargets:
    """Soft targets, and signals, that are functions of the sample alone; ``by_index`` computes them.

    With an ``order`` each epoch's samples must be requested in it. ``requested`` are the indices of all batches.
    """

    renderer = None

    def __init__(
        self, num_classes: int, *, signals: Mapping[str, int] | None = None, order: Indices | None = None
    ) -> None:
        """Return logits ``(n, num_classes)``, and ``signals`` by name, each of a length."""
        self._num_classes, self._signals, self._order = num_classes, dict(signals or {}), order
        self.requested: list[Indices] = []

    def start_epoch(self, view: int, next_view: int | None) -> None:
        """Prepare nothing: every view has the same soft targets."""

    def order(self, samples: Indices, *, data_seed: int, epoch: int) -> Indices | None:  # noqa: ARG002
        """Return the order that this was made with."""
        return self._order

    def skip(self, samples: int) -> None:
        """Skip nothing."""

    def logits(self, indices: Indices, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch, float32 ``(n, classes)``."""
        return self.take(indices, pixels)[0]

    def take(self, indices: Indices, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits and the signals of a batch."""
        self.requested.append(indices)
        device = pixels.device
        signals = {name: by_index(indices, length).to(device) for name, length in self._signals.items()}
        return by_index(indices, self._num_classes).to(device), signals


class ConstantTargets(IndexedTargets):
    """The same logits for every sample."""

    def __init__(self, *logits: float, order: Indices | None = None) -> None:
        """Return ``logits``, one for each class."""
        super().__init__(len(logits), order=order)
        self.row = torch.tensor(logits)

    def take(self, indices: Indices, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the logits of a batch, and no signals."""
        self.requested.append(indices)
        return self.row.repeat(len(indices), 1).to(pixels.device), {}


def by_index(indices: Indices, length: int) -> torch.Tensor:
    """Return ``sin(index * 1), ..., sin(index * length)`` for each sample, float32 ``(n, length)``."""
    return torch.sin(torch.from_numpy(indices)[:, None] * torch.arange(1.0, 1 + length))


class StopAfter:
    """A ``should_stop`` that asks a training to stop once, after a number of steps; never with 0."""

    def __init__(self, steps: int) -> None:
        """Stop after ``steps``."""
        self._left = steps

    def __call__(self) -> bool:
        """Return whether the training is to stop now."""
        self._left -= 1
        return self._left == 0


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Return where two checkpoints, histories or other nested values differ; tensors are compared to the bit.

    Durations and speeds, ``TIMES``, are not compared.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        unshared = [f"{place}.{key}" for key in found.keys() ^ expected.keys()]
        shared = (found.keys() & expected.keys()) - TIMES
        return unshared + [each for key in shared for each in differences(found[key], expected[key], f"{place}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [each for number, (mine, other) in pairs for each in differences(mine, other, f"{place}.{number}")]
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [place]
    return [] if type(found) is type(expected) and found == expected else [place]
