"""Knowledge distillation as Hinton, Vinyals and Dean defined it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class KD:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: the factor
    ``T^2`` keeps the gradient's size when the temperature changes. On CIFAR, ``T = 4`` with weights 0.9 for
    this term and 0.1 for cross-entropy is the usual setting.
    """

    temperature: float = 4.0

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        log_student = F.log_softmax(student_logits / self.temperature, dim=1)
        log_teacher = F.log_softmax(teacher_logits / self.temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2
