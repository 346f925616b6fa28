"""Distillation from a stronger teacher: relations instead of probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdpipe.distil.losses.base import NOT_NEGATIVE, POSITIVE, parameter
from kdpipe.distil.losses.terms import directions, log_probabilities


@dataclass(frozen=True)
class DIST:
    """``T^2 * (beta * inter + gamma * intra)``, with Pearson's distance ``1 - rho`` of tempered probabilities.

    ``inter`` is the mean over the samples of the distance between the student's row and the teacher's; ``intra`` the
    mean over the classes of that between columns, so it is a property of the batch. Labels are not used.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), whose weights are 2, 2 and 1 for
    cross-entropy, with ``T = 4`` on CIFAR-100 and 1 on ImageNet. The factor ``T^2`` is that of the authors' code
    (hunto/image_classification_sota, ``dist_kd.py``). The code adds 1e-8 to the product of two lengths, which forgets
    columns of small probabilities; here none is added. A row or column in which the teacher does not vary (each column
    of a batch of one) is left out of the mean; where only the student's does not, the distance is 1.
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 1.0
    warmup_epochs: ClassVar[int] = 0

    temperature: float = parameter(4.0, POSITIVE)
    beta: float = parameter(2.0, NOT_NEGATIVE)
    gamma: float = parameter(2.0, NOT_NEGATIVE)

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
        inter = _distance(log_student, log_teacher, dim=1)
        intra = _distance(log_student, log_teacher, dim=0)
        return (self.beta * inter + self.gamma * intra) * self.temperature**2


def _distance(log_student: torch.Tensor, log_teacher: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the mean Pearson distance of probabilities along ``dim``, over those in which the teacher varies."""
    student, _ = directions(_scaled(log_student, dim), dim)
    teacher, varies = directions(_scaled(log_teacher, dim), dim)
    distances = 1 - (student * teacher).sum(dim)
    return (distances * varies).sum() / varies.sum().clamp(min=1)


def _scaled(log_probabilities: torch.Tensor, dim: int) -> torch.Tensor:
    """Return probabilities as shares of the largest along ``dim``, which no correlation depends on; none underflows."""
    return (log_probabilities - log_probabilities.detach().amax(dim, keepdim=True)).exp()
