"""Arithmetic that several losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Return half-precision logits in float32, others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def log_probabilities(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return ``log softmax(logits / temperature)`` over the classes of ``(n, classes)``."""
    return F.log_softmax(at_least_float32(logits) / temperature, dim=1)


def of_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the value of each row's label, ``(n,)`` from ``(n, classes)``; of class 0 where the label is -1."""
    return values.gather(1, labels.clamp(min=0)[:, None])[:, 0]


def of_other_classes(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return each row without its label's value, ``(n, classes - 1)``; without class 0 where the label is -1."""
    others = torch.arange(values.shape[1] - 1, device=values.device)
    return values.gather(1, others + (others >= labels.clamp(min=0)[:, None]))


def mean_over_labeled(terms: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean of ``(n,)`` over the samples whose label is not -1, or 0 (with a gradient of 0) without any."""
    labeled = labels >= 0
    return (terms * labeled).sum() / labeled.sum().clamp(min=1)


def directions(values: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``values`` minus their mean along ``dim``, of length 1, and which vary (bool, without ``dim``).

    What varies by no more than rounding has no direction: it is 0 and has no gradient, which would else be rounding
    errors divided by rounding errors.
    """
    centred = values - values.mean(dim, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    rounding = 8 * torch.finfo(values.dtype).eps * torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    varies = length > rounding
    unit = torch.where(varies, centred, 0) / torch.where(varies, length, 1)
    return unit, varies.squeeze(dim)
