"""Regression of the teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from kdpipe.distil.losses.terms import at_least_float32


@dataclass(frozen=True)
class MSE:
    """The squared difference of logits, each row minus its mean, averaged over classes and batch.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014), equation 1, trained on this term alone, whence the
    weights 1 and 0; Kim et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation" (2021). Both papers sum over the classes; the mean is that of the latter's code (jhoon-oh/kd_data,
    ``nn.MSELoss()``), and half of it is what ``kd`` tends to as ``T`` grows (Hinton et al. 2015, section 2.1).
    Rows are centred, as there: no probability depends on what is added to a whole row.
    """

    needs_label: ClassVar[bool] = False
    kd_weight: ClassVar[float] = 1.0
    ce_weight: ClassVar[float] = 0.0
    warmup_epochs: ClassVar[int] = 0

    @property
    def teacher_temperature(self) -> None:
        """The logits themselves are read."""
        return None

    def __call__(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        labels: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Return the scalar loss for logits ``(n, classes)``; ``labels`` are not used."""
        return F.mse_loss(_centred(student_logits), _centred(teacher_logits))


def _centred(logits: torch.Tensor) -> torch.Tensor:
    logits = at_least_float32(logits)
    return logits - logits.mean(dim=1, keepdim=True)
