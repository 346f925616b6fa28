"""Weighted soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.base import POSITIVE, parameter
from kdpipe.distil.losses.terms import (
    at_least_float32,
    log_probabilities,
    mean_over_labelled,
    of_class,
    of_other_classes,
)


@dataclass(frozen=True)
class WSLD:
    """``T^2 * w * soft cross-entropy``, the mean over the labelled samples, with ``w = 1 - exp(-log q_y / log p_y)``.

    ``p_y`` and ``q_y`` are teacher's and student's probability of the label at temperature 1: a sample that the student
    finds easier than the teacher does weighs less. The weight is a constant for the gradient.

    Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective" (2021). On
    CIFAR-100 ``T = 4`` and weights 2.25 and 1 for cross-entropy, on ImageNet ``T = 2`` and 2.5. As in the authors' code
    (bellymonster/Weighted-Soft-Label-Distillation) the soft term is cross-entropy rather than KL, which changes the
    value but not the gradient, and 1e-7 is added to ``-log p_y``.
    """

    needs_label: ClassVar[bool] = True
    kd_weight: ClassVar[float] = 2.25
    ce_weight: ClassVar[float] = 1.0
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(4.0, POSITIVE)

    @property
    def teacher_temperature(self) -> float:
        """``temperature``, at least 1: the label's probability is read at 1."""
        return max(1.0, self.temperature)

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        log_student = log_probabilities(student_logits, self.temperature)
        teacher = log_probabilities(teacher_logits, self.temperature).exp()
        soft = -(teacher * log_student).sum(dim=1)
        weight = -torch.expm1(
            -_label_loss(student_logits.detach(), labels) / (_label_loss(teacher_logits, labels) + 1e-7)
        )
        return mean_over_labelled(weight * soft, labels) * self.temperature**2


def _label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy to the labels, ``(n,)``, precise where it is tiny, for it is divided by."""
    logits = at_least_float32(logits)
    return F.softplus(of_other_classes(logits, labels).logsumexp(dim=1) - of_class(logits, labels))
