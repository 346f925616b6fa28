"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.base import NOT_NEGATIVE, POSITIVE, parameter
from kdpipe.distil.losses.terms import log_probabilities, mean_over_labelled, of_class, of_other_classes


@dataclass(frozen=True)
class DKD:
    """``T^2 * (alpha * TCKD + beta * NCKD)``, the mean over the labelled samples.

    TCKD is the KL divergence between teacher and student of (the label's probability, the rest's); NCKD that of the
    probabilities among the other classes; all at temperature ``T``. With ``alpha = 1`` and, in place of ``beta``, the
    teacher's probability of the other classes, their sum is ``kd``.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), equation 7, with ``alpha = 1`` and, on CIFAR-100, ``T = 4``
    and a ``beta`` that depends on the teacher (``T = 1`` and ``beta = 0.5`` on ImageNet); 8, the factor ``T^2`` on both
    terms and the weights of 1 are the defaults of the authors' code (megvii-research/mdistiller). There the weight
    grows linearly over the first 20 epochs on CIFAR-100.
    """

    needs_label: ClassVar[bool] = True
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 1.0
    warmup_epochs: ClassVar[int] = 20

    temperature: float = parameter(4.0, POSITIVE)
    alpha: float = parameter(1.0, NOT_NEGATIVE)
    beta: float = parameter(8.0, NOT_NEGATIVE)

    @property
    def teacher_temperature(self) -> None:
        """Where the teacher is sure of the label, NCKD reads what is next to nothing at any temperature."""
        return None

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)`` and labels ``(n,)``."""
        student, teacher = self._decoupled(student_logits, labels), self._decoupled(teacher_logits, labels)
        target, non_target = (
            F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
            for ours, theirs in zip(student, teacher, strict=True)
        )
        return mean_over_labelled(self.alpha * target + self.beta * non_target, labels) * self.temperature**2

    def _decoupled(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities of (label, rest), ``(n, 2)``, and among the rest, ``(n, classes - 1)``."""
        every = log_probabilities(logits, self.temperature)
        others = of_other_classes(every, labels)
        rest = others.logsumexp(dim=1)
        return torch.stack([of_class(every, labels), rest], dim=1), others - rest[:, None]
