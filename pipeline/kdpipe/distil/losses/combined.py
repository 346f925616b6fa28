"""Several distillation losses in one: the sum of their weighted terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdpipe.distil.losses.base import DistillationLoss


@dataclass(frozen=True)
class Combined:
    """``sum of weight * term``; what it needs of labels and of the teacher is what its terms need."""

    terms: tuple[tuple[float, DistillationLoss], ...]
    """Each term's weight and loss."""

    kd_weight = 1.0
    warmup_epochs = 0

    @property
    def ce_weight(self) -> float:
        """That of the first term."""
        return self.terms[0][1].ce_weight

    @property
    def needs_label(self) -> bool:
        """Whether any term does."""
        return any(loss.needs_label for _, loss in self.terms)

    @property
    def teacher_temperature(self) -> float | None:
        """The highest of the terms; ``None`` where one is."""
        temperatures = [loss.teacher_temperature for _, loss in self.terms]
        known = [temperature for temperature in temperatures if temperature is not None]
        return max(known) if len(known) == len(temperatures) else None

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar sum for logits ``(n, classes)`` and labels ``(n,)``."""
        return torch.stack([weight * loss(student_logits, teacher_logits, labels) for weight, loss in self.terms]).sum()
