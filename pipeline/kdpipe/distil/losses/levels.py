"""The loss on logits at three levels: single samples, pairs of samples, and pairs of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.distil.losses.arithmetic import log_probabilities
from kdpipe.distil.losses.contract import loss
from kdpipe.registry import NotNegative, Positive

_BESIDE = (2.0, 3.0, 5.0, 6.0)
"""Temperatures beside that of the setting."""
_BATCH = 64
"""The authors' batch size, to which the sums over a batch of their code belong."""


@loss(
    "mlkd",
    kd_weight=0.9,
    ce_weight=0.2,
    teacher_temperature=lambda settings: max(*_BESIDE, settings["temperature"]),
    source="Jin et al. 2023",
)
def mlkd(
    student: Tensor,
    teacher: Tensor,
    temperature: Positive = 4.0,
    instance: NotNegative = 1.5,
    batch: NotNegative = 0.5,
    classes: NotNegative = 0.5,
) -> Tensor:
    """``kd``, and squared differences of the products between samples and between classes, at five temperatures.

    That is ``instance * kd + batch * 64 * mean((P P' - Q Q')^2) + classes * 64^2 / c * sum(((P'P - Q'Q) / n)^2)``,
    added up over the temperatures ``T``, 2, 3, 5 and 6, with probabilities ``P`` and ``Q`` of teacher and student,
    ``(n, c)``.

    Jin, Wang and Lin, "Multi-Level Logit Distillation" (2023). The authors' code
    (Jin-Ying/Multi-Level-Logit-Distillation) has a weak and a strong view of each image: what it adds up over both is,
    on average over two views, 1.5 times ``kd`` and half of each of the other terms at every temperature, which it masks
    to half by the teacher's confidence, with 0.9 for all of them beside 0.1 times cross-entropy of either view. So
    these are the weights here, for any number of views. Sums over a batch are scaled so that they are those of the
    authors for 64 samples and do not depend on the batch size.
    """
    total = student.new_zeros((), dtype=torch.promote_types(student.dtype, torch.float32))
    for heat in (temperature, *_BESIDE):
        ours, theirs = log_probabilities(student, heat), log_probabilities(teacher, heat)
        single = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * heat**2
        q, p = ours.exp(), theirs.exp()
        samples = (p @ p.T - q @ q.T).square().mean() * _BATCH
        between = ((p.T @ p - q.T @ q) / len(p)).square().sum() / p.shape[1] * _BATCH**2
        total = total + instance * single + batch * samples + classes * between
    return total
