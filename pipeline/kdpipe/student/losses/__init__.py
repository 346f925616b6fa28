"""Distillation losses by name: ``make("kd", temperature=4.0)`` returns the term alone, without cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kdpipe.errors import UnsupportedLossError, did_you_mean
from kdpipe.student.losses.kd import KD

__all__ = ["KD", "LOSSES", "DistillationLoss", "make"]

DistillationLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(student_logits, teacher_logits, labels) -> scalar``, the mean over the batch."""

LOSSES: dict[str, Callable[..., DistillationLoss]] = {"kd": KD}
"""Every distillation loss by the name that ``--loss`` takes."""


def make(name: str, **settings: float) -> DistillationLoss:
    """Return the loss called ``name`` with its settings, such as ``temperature``.

    Raises:
        UnsupportedLossError: there is no such loss; the message names the nearest.
    """
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES) or "."
        raise UnsupportedLossError(f"unknown loss '{name}'{hint} Known: {', '.join(LOSSES)}.")
    return LOSSES[name](**settings)
