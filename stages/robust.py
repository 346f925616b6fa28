"""What the stages make of `--adversarial`: how a model learns from attacked images, and what that is called."""

from __future__ import annotations

from kdpipe.student import Attack, Robust
from stages.params import TrainStudent, TrainTeacher


def robust(params: TrainTeacher | TrainStudent) -> Robust | None:
    """Return how the model learns from attacked images; ``None`` where they are shown as they are."""
    if params.adversarial is None:
        return None
    loss = params.robust_loss if isinstance(params, TrainStudent) else None
    return Robust(Attack.parse(params.adversarial), loss or "rslad")


def loss_name(params: TrainTeacher | TrainStudent, *, taught: bool) -> str:
    """Return what ``run.json`` and reports call the loss of a model that a teacher has ``taught``, or of one alone."""
    name = params.loss_name if taught and isinstance(params, TrainStudent) else "ce"
    settings = robust(params)
    if settings is None:
        return name
    return f"{name}, {settings.loss if taught else 'adversarial'}"
