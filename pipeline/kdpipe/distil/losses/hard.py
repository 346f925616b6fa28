"""Distillation with the teacher's hard decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.terms import at_least_float32


@dataclass(frozen=True)
class Hard:
    """Cross-entropy to the class that the teacher finds likeliest, the mean over the batch.

    Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT, 2021), equation
    3, with weights 1/2 and 1/2 for this term and cross-entropy. DeiT gives this term to an output of its own, the
    distillation token's; here both terms share one.
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 0.5
    ce_weight: ClassVar[float] = 0.5
    warmup_epochs: ClassVar[int] = 0

    @property
    def teacher_temperature(self) -> float:
        """0: only the likeliest class counts."""
        return 0.0

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        return F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(dim=1))
