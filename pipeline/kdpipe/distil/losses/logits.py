"""Losses on logits: of probabilities, decisions, logits and relations, and those that read the labels.

Losses that read labels are means over the labeled samples of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.distil.losses.arithmetic import (
    at_least_float32,
    directions,
    log_probabilities,
    mean_over_labeled,
    of_class,
    of_other_classes,
)
from kdpipe.distil.losses.contract import loss
from kdpipe.registry import NotNegative, Positive, Share


@loss(
    "kd",
    kd_weight=0.9,
    ce_weight=0.1,
    standardized={"temperature": 2.0, "kd_weight": 9.0},
    source="Hinton et al. 2015",
)
def kd(student: Tensor, teacher: Tensor, temperature: Positive = 4.0) -> Tensor:
    """``T^2`` times the KL divergence between teacher and student at temperature ``T``.

    That is ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, the mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: the factor
    ``T^2`` keeps the gradient's size when the temperature changes. On CIFAR, ``T = 4`` with weights 0.9 for
    this term and 0.1 for cross-entropy is the usual setting (the CRD paper's RepDistiller, mdistiller). For z-scores
    ``T = 2`` and a weight of 9 are published for CIFAR-100 (Sun et al. 2024).
    """
    log_student, log_teacher = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


@loss("soft-ce", kd_weight=0.9, ce_weight=0.1, source="Hinton et al. 2015")
def soft_ce(student: Tensor, teacher: Tensor, temperature: Positive = 4.0) -> Tensor:
    """``T^2`` times cross-entropy, ``-T^2 * sum_i p_i log q_i``: the gradient of ``kd``, another value.

    ``p = softmax(teacher / T)`` and ``q = softmax(student / T)``; the mean over the batch.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2, as they wrote it. It is
    ``kd`` plus ``T^2`` times the teacher's entropy: the gradients are the same, the values are not, and its least value
    is not 0. Temperature and weights as for ``kd``.
    """
    log_student = log_probabilities(student, temperature)
    probabilities = log_probabilities(teacher, temperature).exp()
    return -(probabilities * log_student).sum(dim=1).mean() * temperature**2


@loss("hard", kd_weight=0.5, ce_weight=0.5, teacher_temperature=0.0, source="Touvron et al. 2021 (DeiT)")
def hard(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy to the class that the teacher finds likeliest, the mean over the batch.

    Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT, 2021), equation
    3, with weights 1/2 and 1/2 for this term and cross-entropy. DeiT computes this term on a second output, the
    distillation token's; here both terms share one.
    """
    return F.cross_entropy(at_least_float32(student), teacher.argmax(dim=1))


@loss("mixed", kd_weight=0.9, ce_weight=0.1, source="Hinton et al. 2015; Touvron et al. 2021")
def mixed(student: Tensor, teacher: Tensor, temperature: Positive = 4.0, soft_weight: Share = 0.5) -> Tensor:
    """``soft_weight * kd + (1 - soft_weight) * hard``, the mean over the batch.

    The third of the textbook's forms: soft-target distillation is ``kd`` (Hinton et al. 2015), hard-target distillation
    ``hard`` (the teacher's decision, Touvron et al. 2021), and this is their weighted mean. The true label, the other
    hard target of Hinton et al., is the target of cross-entropy, which is added to every loss with a separate weight.
    """
    return soft_weight * kd(student, teacher, temperature) + (1 - soft_weight) * hard(student, teacher)


@loss("mse", kd_weight=1.0, ce_weight=0.0, source="Ba and Caruana 2014; Kim et al. 2021")
def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of logits, each row minus its mean, averaged over classes and batch.

    Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014), equation 1, trained on this term alone, hence the
    weights 1 and 0; Kim et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation" (2021). Both papers sum over the classes; the mean is that of the latter's code (jhoon-oh/kd_data,
    ``nn.MSELoss()``), and half of it is what ``kd`` tends to as ``T`` grows (Hinton et al. 2015, section 2.1).
    Rows are centered, as there: no probability depends on what is added to a whole row.
    """
    return F.mse_loss(_centered(student), _centered(teacher))


def _centered(logits: Tensor) -> Tensor:
    logits = at_least_float32(logits)
    return logits - logits.mean(dim=1, keepdim=True)


@loss("dist", kd_weight=1.0, ce_weight=1.0, source="Huang et al. 2022")
def dist(
    student: Tensor, teacher: Tensor, temperature: Positive = 4.0, beta: NotNegative = 2.0, gamma: NotNegative = 2.0
) -> Tensor:
    """``T^2 * (beta * (1 - correlation of rows) + gamma * (1 - correlation of columns))`` of probabilities at ``T``.

    That is ``T^2 * (beta * inter + gamma * intra)``, with Pearson's distance ``1 - rho``. ``inter`` is the mean over
    the samples of the distance between the student's row and the teacher's; ``intra`` the mean over the classes of that
    between columns, so it is a property of the batch.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), whose weights are 2, 2 and 1 for
    cross-entropy, with ``T = 4`` on CIFAR-100 and 1 on ImageNet. The factor ``T^2`` is that of the authors' code
    (hunto/image_classification_sota, ``dist_kd.py``). The code adds 1e-8 to the product of two lengths, which drops
    columns of small probabilities; here none is added. A row or column in which the teacher does not vary (each column
    of a batch of one) is left out of the mean; where only the student's does not, the distance is 1.
    """
    log_student, log_teacher = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    inter = _pearson_distance(log_student, log_teacher, dim=1)
    intra = _pearson_distance(log_student, log_teacher, dim=0)
    return (beta * inter + gamma * intra) * temperature**2


def _pearson_distance(log_student: Tensor, log_teacher: Tensor, dim: int) -> Tensor:
    """Return the mean Pearson distance of probabilities along ``dim``, over those in which the teacher varies."""
    student, _ = directions(_scaled(log_student, dim), dim)
    teacher, varies = directions(_scaled(log_teacher, dim), dim)
    distances = 1 - (student * teacher).sum(dim)
    return (distances * varies).sum() / varies.sum().clamp(min=1)


def _scaled(log_probabilities: Tensor, dim: int) -> Tensor:
    """Return probabilities divided by the largest along ``dim``: no correlation depends on it, and none underflows."""
    return (log_probabilities - log_probabilities.detach().amax(dim, keepdim=True)).exp()


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


@loss(
    "wttm",
    kd_weight=4.0,
    ce_weight=1.0,
    teacher_temperature=lambda settings: max(1.0, settings["temperature"]),
    source="Zheng and Yang 2024",
)
def wttm(student: Tensor, teacher: Tensor, temperature: Positive = 5.0) -> Tensor:
    """KL from the teacher at ``T`` to the student at 1, each sample times the sum of the teacher's ``p_i^(1/T)``.

    That is ``U * KL(softmax(teacher / T) || softmax(student))``, the mean over the batch, with ``p`` the teacher's
    probabilities at temperature 1 and ``U = sum_i p_i^(1/T)``, from 1 for a sure teacher to ``classes^(1 - 1/T)``:
    samples of smooth soft targets count more.

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching" (2024). ``1 / T`` is
    their exponent ``gamma``. Nothing is multiplied by ``T^2``, as in the authors' code (zkxufo/TTM), whose README has
    an exponent of 0.2 and a weight of 4 beside cross-entropy of weight 1 for vgg13 -> vgg8; the paper tunes both for
    each pair.
    """
    log_student, log_teacher = log_probabilities(student), log_probabilities(teacher)
    log_weight = (log_teacher / temperature).logsumexp(dim=1)
    divergence = F.kl_div(log_student, log_probabilities(teacher, temperature), reduction="none", log_target=True)
    return (log_weight.exp() * divergence.sum(dim=1)).mean()
