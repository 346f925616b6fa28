"""Losses on logits that read the labels: means over the labeled samples of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.distil.losses.arithmetic import (
    at_least_float32,
    log_probabilities,
    mean_over_labeled,
    of_class,
    of_other_classes,
)
from kdpipe.distil.losses.contract import loss
from kdpipe.registry import NotNegative, Positive


# Where the teacher is sure of the label, NCKD reads probabilities that are next to nothing at any temperature.
@loss("dkd", kd_weight=1.0, ce_weight=1.0, warmup_epochs=20, teacher_temperature=None, source="Zhao et al. 2022")
def dkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: Positive = 4.0,
    alpha: NotNegative = 1.0,
    beta: NotNegative = 8.0,
) -> Tensor:
    """``T^2 * (alpha * KL of label against rest + beta * KL among the rest)``, both at temperature ``T``.

    That is ``T^2 * (alpha * TCKD + beta * NCKD)``, the mean over the labeled samples. TCKD is the KL divergence between
    teacher and student of (the label's probability, the rest's); NCKD that of the probabilities among the other
    classes. With ``alpha = 1`` and, in place of ``beta``, the teacher's probability of the other classes, their sum is
    ``kd``.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), equation 7, with ``alpha = 1`` and, on CIFAR-100, ``T = 4``
    and a ``beta`` that depends on the teacher (``T = 1`` and ``beta = 0.5`` on ImageNet); 8, the factor ``T^2`` on both
    terms and the weights of 1 are the defaults of the authors' code (megvii-research/mdistiller). There the weight
    grows linearly over the first 20 epochs on CIFAR-100.
    """
    target, non_target = (
        F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
        for ours, theirs in zip(
            _decoupled(student, labels, temperature), _decoupled(teacher, labels, temperature), strict=True
        )
    )
    return mean_over_labeled(alpha * target + beta * non_target, labels) * temperature**2


def _decoupled(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (label, rest), ``(n, 2)``, and among the rest, ``(n, classes - 1)``."""
    every = log_probabilities(logits, temperature)
    others = of_other_classes(every, labels)
    rest = others.logsumexp(dim=1)
    return torch.stack([of_class(every, labels), rest], dim=1), others - rest[:, None]


# Where the teacher is sure of the label, the others are next to nothing at any temperature.
@loss("nkd", kd_weight=1.0, ce_weight=1.0, teacher_temperature=None, source="Yang et al. 2023")
def nkd(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: Positive = 1.0, gamma: NotNegative = 1.5
) -> Tensor:
    """Cross-entropy to the label times the teacher's probability of it, plus ``gamma * T^2`` times that among the rest.

    That is ``-p_y log q_y - gamma * T^2 * sum_(i != y) p^_i log q^_i``, the mean over the labeled samples. ``p`` and
    ``q`` are teacher's and student's probabilities at temperature 1, ``y`` is the label, and ``p^`` and ``q^`` are
    softmaxes at temperature ``T`` over the other classes only. Both parts are cross-entropies: the least value is not
    0.

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
    and Customized Soft Labels" (2023). The defaults are those of the authors' code and of its ImageNet configurations,
    beside cross-entropy of weight 1 (yzd-v/cls_KD); its CIFAR-100 configuration has ``T = 3`` and ``gamma = 3.5``.
    """
    log_student, log_teacher = log_probabilities(student), log_probabilities(teacher)
    target = -of_class(log_teacher, labels).exp() * of_class(log_student, labels)
    other_student, other_teacher = (
        log_probabilities(of_other_classes(at_least_float32(logits), labels), temperature)
        for logits in (student, teacher)
    )
    non_target = -(other_teacher.exp() * other_student).sum(dim=1) * temperature**2
    return mean_over_labeled(target + gamma * non_target, labels)


@loss(
    "wsld",
    kd_weight=2.25,
    ce_weight=1.0,
    teacher_temperature=lambda settings: max(1.0, settings["temperature"]),
    source="Zhou et al. 2021",
)
def wsld(student: Tensor, teacher: Tensor, labels: Tensor, temperature: Positive = 4.0) -> Tensor:
    """``soft-ce`` times ``1 - exp(-a / b)``: student's and teacher's cross-entropy to the label are ``a`` and ``b``.

    That is ``T^2 * w * soft cross-entropy`` with ``w = 1 - exp(-log q_y / log p_y)``, the mean over the labeled
    samples. ``p_y`` and ``q_y`` are teacher's and student's probability of the label at temperature 1: a sample that
    is easier for the student than for the teacher weighs less. The weight is a constant for the gradient.

    Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective" (2021). On
    CIFAR-100 ``T = 4`` and weights 2.25 and 1 for cross-entropy, on ImageNet ``T = 2`` and 2.5. As in the authors' code
    (bellymonster/Weighted-Soft-Label-Distillation) the soft term is cross-entropy rather than KL, which changes the
    value but not the gradient, and 1e-7 is added to ``-log p_y``.
    """
    log_student = log_probabilities(student, temperature)
    probabilities = log_probabilities(teacher, temperature).exp()
    soft = -(probabilities * log_student).sum(dim=1)
    weight = -torch.expm1(-_label_loss(student.detach(), labels) / (_label_loss(teacher, labels) + 1e-7))
    return mean_over_labeled(weight * soft, labels) * temperature**2


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy to the labels, ``(n,)``, precise where it is tiny, because it is a divisor."""
    logits = at_least_float32(logits)
    return F.softplus(of_other_classes(logits, labels).logsumexp(dim=1) - of_class(logits, labels))
