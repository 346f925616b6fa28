"""Knowledge distillation as Hinton, Vinyals and Dean defined it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.base import POSITIVE, parameter
from kdpipe.distil.losses.terms import log_probabilities


@dataclass(frozen=True)
class KD:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: the factor
    ``T^2`` keeps the gradient's size when the temperature changes. On CIFAR, ``T = 4`` with weights 0.9 for
    this term and 0.1 for cross-entropy is the usual setting (the CRD paper's RepDistiller, mdistiller).
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 0.9
    ce_weight: ClassVar[float] = 0.1
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(4.0, POSITIVE)

    @property
    def teacher_temperature(self) -> float:
        """``temperature``."""
        return self.temperature

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        log_student = log_probabilities(student_logits, self.temperature)
        log_teacher = log_probabilities(teacher_logits, self.temperature)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2
