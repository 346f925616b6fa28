"""What a loss on signals is: on what layers of student and teacher show, instead of their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from kdpipe.models.signals import Shape


@dataclass(frozen=True)
class NoLogits:
    """The loss on logits of a student that learns from signals alone: 0, beside which cross-entropy counts in full."""

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 1.0
    warmup_epochs: ClassVar[int] = 0
    teacher_temperature: ClassVar[float | None] = 0.0

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,  # noqa: ARG002
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return 0."""
        return student_logits.new_zeros(())


class SignalLoss(Protocol):
    """A distillation term between a layer of the student and one of the teacher; the sum over pairs of layers counts.

    It is called with the signals of a batch, float32: features ``(n, channels)``, the student's after its projection,
    or attention maps ``(n, H, W)``. It returns a scalar.
    """

    @property
    def kind(self) -> str:
        """Which signals it reads: ``features`` or ``attention``."""

    @property
    def weight(self) -> float:
        """The weight that this term has where none is given."""

    def projection(self, student: Shape, teacher: Shape) -> torch.nn.Module:
        """Return what is learned beside the student to bring its signal to the teacher's; shapes are per image."""

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss."""
