"""Soft and hard targets of the teacher in one term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdpipe.distil.losses.base import POSITIVE, SHARE, parameter
from kdpipe.distil.losses.hard import Hard
from kdpipe.distil.losses.kd import KD


@dataclass(frozen=True)
class Mixed:
    """``soft_weight * kd + (1 - soft_weight) * hard``, the mean over the batch.

    The third of the textbook's forms: soft-target distillation is ``kd`` (Hinton et al. 2015), hard-target distillation
    ``hard`` (the teacher's decision, Touvron et al. 2021), and this is their weighted mean. The true label, the other
    hard target of Hinton et al., is cross-entropy's, which stands beside every loss with a weight of its own.
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 0.9
    ce_weight: ClassVar[float] = 0.1
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(4.0, POSITIVE)
    soft_weight: float = parameter(0.5, SHARE)

    @property
    def teacher_temperature(self) -> float:
        """``temperature``."""
        return self.temperature

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        soft = KD(self.temperature)(student_logits, teacher_logits, labels)
        return self.soft_weight * soft + (1 - self.soft_weight) * Hard()(student_logits, teacher_logits, labels)
