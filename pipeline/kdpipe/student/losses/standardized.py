"""Knowledge distillation of standardised logits."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch

from kdpipe.student.losses.base import POSITIVE, parameter
from kdpipe.student.losses.kd import KD
from kdpipe.student.losses.terms import at_least_float32, directions


@dataclass(frozen=True)
class StandardizedKD:
    """``kd`` of z-scores: both rows of logits minus their mean, divided by their standard deviation.

    Sun et al., "Logit Standardization in Knowledge Distillation" (2024), algorithm 1: the student need not match the
    size of the teacher's logits. On CIFAR-100 ``T = 2`` and weight 9, beside mdistiller's 0.1 for cross-entropy. As in
    the authors' code (sunshangquan/logit-standardization-KD) the standard deviation is the unbiased one. A row whose
    logits are all equal has z-scores of 0 and no gradient.
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 9.0
    ce_weight: ClassVar[float] = 0.1
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(2.0, POSITIVE)

    @property
    def teacher_temperature(self) -> None:
        """The standard deviation is that of all logits alike."""
        return None

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        return KD(self.temperature)(_z_scores(student_logits), _z_scores(teacher_logits), labels)


def _z_scores(logits: torch.Tensor) -> torch.Tensor:
    units, _ = directions(at_least_float32(logits), dim=1)
    return units * sqrt(logits.shape[1] - 1)
