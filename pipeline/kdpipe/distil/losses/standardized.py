"""Standardised logits: a pre-process of any distillation loss."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch

from kdpipe.distil.losses.base import DistillationLoss
from kdpipe.distil.losses.kd import KD
from kdpipe.distil.losses.terms import at_least_float32, directions

KD_TEMPERATURE = 2.0
"""The published temperature of ``kd`` of z-scores, for CIFAR-100."""


@dataclass(frozen=True)
class Standardized:
    """A loss of z-scores: both rows of logits minus their mean, divided by their standard deviation.

    Sun et al., "Logit Standardization in Knowledge Distillation" (2024), algorithm 1: the student need not match the
    size of the teacher's logits. As in the authors' code (sunshangquan/logit-standardization-KD) the standard deviation
    is the unbiased one. A row whose logits are all equal has z-scores of 0 and no gradient. Labels are passed on.
    """

    loss: DistillationLoss

    @property
    def needs_label(self) -> bool:
        """Whether the loss does."""
        return self.loss.needs_label

    @property
    def kd_weight(self) -> float:
        """9 for ``kd``, as published for CIFAR-100; else that of the loss."""
        return 9.0 if isinstance(self.loss, KD) else self.loss.kd_weight

    @property
    def ce_weight(self) -> float:
        """That of the loss."""
        return self.loss.ce_weight

    @property
    def warmup_epochs(self) -> int:
        """Those of the loss."""
        return self.loss.warmup_epochs

    @property
    def teacher_temperature(self) -> None:
        """The standard deviation is that of all logits alike."""
        return None

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        return self.loss(_z_scores(student_logits), _z_scores(teacher_logits), labels)


def _z_scores(logits: torch.Tensor) -> torch.Tensor:
    units, _ = directions(at_least_float32(logits), dim=1)
    return units * sqrt(logits.shape[1] - 1)
