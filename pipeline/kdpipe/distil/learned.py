"""A temperature that is learned against the student, by a curriculum: CTKD.

Li et al., "Curriculum Temperature for Knowledge Distillation" (2023): one parameter is moved up the gradient of the
distillation term while the student is moved down, so that the term stays hard, and the ascent sets in over the first
epochs. As in the authors' code (zhengli97/CTKD, ``Global_T``), the temperature is
``low + (high - low) * sigmoid(parameter)`` with a parameter that begins at 1 and is changed by the student's optimizer,
weight decay included; its gradient is multiplied by ``-strength``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.distil.curves import Curve


class LearnedTemperature(nn.Module):
    """The temperature of one training; its parameter is learned beside the student and part of the checkpoint."""

    def __init__(self, curve: Curve) -> None:
        """Learn the temperature between the ends of ``curve``, which is ``learned``."""
        super().__init__()
        self._low, self._range, self._over = curve.first, curve.second - curve.first, curve.over or 1
        self.parameter = nn.Parameter(torch.ones(()))
        self._strength = 0.0

    def begin(self, epoch: int) -> None:
        """Take the strength of ``epoch``, from 0: along half a cosine to 1, as the authors' ``CosineDecay``."""
        part = min(1.0, (epoch + 1) / self._over)
        self._strength = (1 - math.cos(math.pi * part)) / 2

    def forward(self) -> Tensor:
        """Return the temperature, a scalar, whose gradient reaches the parameter times ``-strength``."""
        parameter: Tensor = _Reversed.apply(self.parameter, self._strength)
        return self._low + self._range * torch.sigmoid(parameter)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``-strength``.

    Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation" (2015).
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None
