"""The loss on logits that compares probabilities across classes: optimal transport among related classes."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from kdpipe.distil.losses.arithmetic import at_least_float32, log_probabilities, mean_over_labeled, of_class
from kdpipe.distil.losses.contract import loss
from kdpipe.registry import Count, NotNegative, Positive, Range

Blur = Annotated[float, Range("0.02 or more", lambda value: value >= 0.02)]
"""Entropic regularization; below 0.02, kernels would leave the range of float32."""


@loss("wkd", kd_weight=1.0, ce_weight=1.0, teacher_temperature=None, source="Lv et al. 2024 (WKD-L)")
def wkd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    relations: Tensor | None,
    temperature: Positive = 8.0,
    gamma: NotNegative = 800.0,
    sharpness: Positive = 1.0,
    blur: Blur = 0.05,
    steps: Count = 10,
    features: bool = False,  # noqa: ARG001 (read by those who compute the relations)
) -> Tensor:
    """Cross-entropy to the label times the teacher's probability of it, plus ``gamma`` times a Wasserstein distance.

    That is ``-p_y log q_y + gamma * W(p^, q^)``, the mean over the labeled samples: ``p`` and ``q`` are teacher's and
    student's probabilities at temperature 1, ``p^`` and ``q^`` are softmaxes at ``T`` over the classes other than the
    label ``y``. ``W`` is the cost of moving ``q^`` to ``p^``, where from class ``i`` to ``j`` costs
    ``1 - exp(-sharpness * (1 - relations_ij))``, by ``steps`` steps of Sinkhorn's algorithm with the entropic
    regularization ``blur``. ``relations``, ``(classes, classes)``, are cosines between the classes' mean logits in the
    store, or with ``features`` their mean penultimate features (``kdpipe.distil.relations``); without any, all classes
    are unrelated.

    Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation" (2024):
    WKD-L with target separation. The defaults are those of the authors' configuration for resnet32x4
    -> resnet8x4 on CIFAR-100, where ``gamma`` falls to 0 along a cosine after epoch 150 of 240. They relate classes by
    CKA between the features of single samples; cosines between prototypes are their second choice. Here products are
    taken in logarithms, so nothing is added to divisors (they add 1e-8).
    """
    target = -of_class(log_probabilities(teacher), labels).exp() * of_class(log_probabilities(student), labels)
    related = torch.eye(student.shape[1], device=student.device) if relations is None else relations
    among = related.to(at_least_float32(student))
    cost = -torch.expm1(-sharpness * (1 - among))
    ours, theirs = (_of_others(logits, labels, temperature) for logits in (student, teacher))
    distance = _transport_cost(ours, theirs, cost, blur=blur, steps=steps)
    return mean_over_labeled(target + gamma * distance, labels)


def _of_others(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities among the classes that are not the label, ``(n, classes)``; -inf for the label."""
    hidden = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels.clamp(min=0)[:, None], value=True)
    return log_probabilities(at_least_float32(logits).masked_fill(hidden, -torch.inf), temperature)


def _transport_cost(source: Tensor, target: Tensor, cost: Tensor, *, blur: float, steps: int) -> Tensor:
    """Return the cost ``(n,)`` of moving each row of ``exp(source)`` to that of ``exp(target)``.

    Cuturi, "Sinkhorn Distances" (2013), algorithm 1, in logarithms; ``cost`` is symmetric, ``(classes, classes)``.
    """
    kernel = torch.exp(-cost / blur)
    u, v = torch.where(source.isinf(), source, 0).detach(), target
    for _ in range(steps):
        v = target - _log_product(u, kernel)
        u = source - _log_product(v, kernel)
    of_u, of_v = (each.detach().amax(dim=1, keepdim=True) for each in (u, v))
    moved = ((u - of_u).exp() @ (kernel * cost)) * (v - of_v).exp()
    return moved.sum(dim=1) * (of_u + of_v).exp()[:, 0]


def _log_product(log_vectors: Tensor, kernel: Tensor) -> Tensor:
    """Return ``log(exp(log_vectors) @ kernel)``; each row is divided by its largest entry meanwhile."""
    largest = log_vectors.detach().amax(dim=1, keepdim=True)
    return ((log_vectors - largest).exp() @ kernel).log() + largest
