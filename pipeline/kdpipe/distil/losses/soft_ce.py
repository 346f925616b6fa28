"""Cross-entropy to the teacher's tempered probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdpipe.distil.losses.base import POSITIVE, parameter
from kdpipe.distil.losses.terms import log_probabilities


@dataclass(frozen=True)
class SoftCE:
    """``-T^2 * sum_i p_i log q_i``, the mean over the batch, with ``p = softmax(teacher / T)`` and ``q`` the student's.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2, as they wrote it. It is
    ``kd`` plus ``T^2`` times the teacher's entropy: the gradients are the same, the values are not, and its least value
    is not 0. Temperature and weights as for ``kd``.
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
        teacher = log_probabilities(teacher_logits, self.temperature).exp()
        return -(teacher * log_student).sum(dim=1).mean() * self.temperature**2
