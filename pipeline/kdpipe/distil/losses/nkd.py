"""Normalised knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdpipe.distil.losses.base import NOT_NEGATIVE, POSITIVE, parameter
from kdpipe.distil.losses.terms import (
    at_least_float32,
    log_probabilities,
    mean_over_labelled,
    of_class,
    of_other_classes,
)


@dataclass(frozen=True)
class NKD:
    """``-p_y log q_y - gamma * T^2 * sum_(i != y) p^_i log q^_i``, the mean over the labelled samples.

    ``p`` and ``q`` are teacher's and student's probabilities at temperature 1, ``y`` is the label, and ``p^`` and
    ``q^`` are softmaxes at temperature ``T`` over the other classes only. Both parts are cross-entropies: the least
    value is not 0.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels" (2023). The defaults are those of the authors' code and of its ImageNet configurations,
    beside cross-entropy of weight 1 (yzd-v/cls_KD); its CIFAR-100 configuration has ``T = 3`` and ``gamma = 3.5``.
    """

    needs_label: ClassVar[bool] = True
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 1.0
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(1.0, POSITIVE)
    gamma: float = parameter(1.5, NOT_NEGATIVE)

    @property
    def teacher_temperature(self) -> None:
        """Where the teacher is sure of the label, the others are next to nothing at any temperature."""
        return None

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        log_student, log_teacher = log_probabilities(student_logits), log_probabilities(teacher_logits)
        target = -of_class(log_teacher, labels).exp() * of_class(log_student, labels)
        other_student, other_teacher = (
            log_probabilities(of_other_classes(at_least_float32(logits), labels), self.temperature)
            for logits in (student_logits, teacher_logits)
        )
        non_target = -(other_teacher.exp() * other_student).sum(dim=1) * self.temperature**2
        return mean_over_labelled(target + self.gamma * non_target, labels)
