"""Regression of the teacher's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.models.signals import Shape


@dataclass(frozen=True)
class FeatureRegression:
    """The squared difference of the teacher's pooled features and a learned linear map of the student's, averaged.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), equation 3, sums half of it over all places of a hint
    layer and trains on it before the rest; here, as in RepDistiller and mdistiller, the mean is added to the other
    terms. They regress unpooled maps through a convolution with a weight of 100. Pooled features are small to store;
    the weight of 10 is ours, since three pairs of layers at 100 are unstable at a learning rate of 0.1
    (docs/guides/signals.md). Several pairs make it hierarchical.
    """

    kind: ClassVar[str] = "features"
    weight: ClassVar[float] = 10.0

    def projection(self, student: Shape, teacher: Shape) -> torch.nn.Module:
        """Return the linear regressor."""
        return torch.nn.Linear(student[0], teacher[0])

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss for projected and teacher's features ``(n, channels)``."""
        return F.mse_loss(student, teacher)
