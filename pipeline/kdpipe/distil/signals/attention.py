"""Attention transfer: where the teacher's layers are active."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.models.signals import Shape


@dataclass(frozen=True)
class AttentionTransfer:
    """Half the squared difference of attention maps, each over its Euclidean length, averaged over batch and places.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017), equation 2: ``beta / 2`` times the squared
    lengths, with ``beta`` 1000 over the number of places and samples, which makes them a mean, times 1000; RepDistiller
    and mdistiller leave the half out, so their 1000 is 2000 here. Where maps differ in size, both are averaged down to
    the smaller height and width. A map that is 0 throughout stays so.
    """

    kind: ClassVar[str] = "attention"
    weight: ClassVar[float] = 1000.0

    def projection(self, student: Shape, teacher: Shape) -> torch.nn.Module:  # noqa: ARG002
        """Return nothing that is learned."""
        return torch.nn.Identity()

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss for maps ``(n, H, W)``, whose sizes may differ."""
        height, width = (min(sides) for sides in zip(student.shape[1:], teacher.shape[1:], strict=True))
        ours, theirs = (_unit(F.adaptive_avg_pool2d(maps, (height, width))) for maps in (student, teacher))
        return F.mse_loss(ours, theirs) / 2


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """Return maps ``(n, H, W)`` as rows ``(n, H * W)`` of length 1; as shares of the largest first: none underflows."""
    rows = maps.flatten(1)
    largest = rows.detach().amax(1, keepdim=True)
    return F.normalize(rows / largest.where(largest > 0, 1), dim=1)
