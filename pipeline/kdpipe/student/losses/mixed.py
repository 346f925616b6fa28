"""Soft and hard targets in one term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdpipe.student.losses.base import POSITIVE, SHARE, parameter
from kdpipe.student.losses.kd import KD
from kdpipe.student.losses.terms import log_probabilities, mean_over_labelled, of_class


@dataclass(frozen=True)
class Mixed:
    """``soft_weight * kd + (1 - soft_weight) * cross-entropy to the true label``.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: "a weighted average of
    two different objective functions". The hard target is the true label; ``hard`` takes the teacher's decision. The
    soft part is the mean over all samples, the hard part over the labelled ones. Since cross-entropy is inside, the
    weights are 1 and 0: it is the same objective as ``kd`` with ``kd_weight`` 0.9 and ``ce_weight`` 0.1, the usual
    setting on CIFAR.
    """

    needs_label: ClassVar[bool] = True
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 0.0

    temperature: float = parameter(4.0, POSITIVE)
    soft_weight: float = parameter(0.9, SHARE)

    @property
    def teacher_temperature(self) -> float:
        """``temperature``."""
        return self.temperature

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        soft = KD(self.temperature)(student_logits, teacher_logits, labels)
        hard = mean_over_labelled(-of_class(log_probabilities(student_logits), labels), labels)
        return self.soft_weight * soft + (1 - self.soft_weight) * hard
