"""Distillation losses by name: ``make("kd", temperature=4.0)`` returns the term alone, without cross-entropy.

``docs/LOSSES.md`` has the table of them.
"""

from __future__ import annotations

from typing import Any

from kdpipe.errors import UnsupportedLossError, did_you_mean
from kdpipe.student.losses.base import DistillationLoss, Parameter, parameters_of
from kdpipe.student.losses.dist import DIST
from kdpipe.student.losses.dkd import DKD
from kdpipe.student.losses.hard import Hard
from kdpipe.student.losses.kd import KD
from kdpipe.student.losses.mixed import Mixed
from kdpipe.student.losses.mse import MSE
from kdpipe.student.losses.nkd import NKD
from kdpipe.student.losses.soft_ce import SoftCE
from kdpipe.student.losses.standardized import StandardizedKD
from kdpipe.student.losses.wsld import WSLD

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "LOSSES",
    "MSE",
    "NKD",
    "WSLD",
    "DistillationLoss",
    "Hard",
    "Mixed",
    "Parameter",
    "SoftCE",
    "StandardizedKD",
    "make",
    "parameters",
]

LOSSES: dict[str, type[Any]] = {
    "kd": KD,
    "soft-ce": SoftCE,
    "hard": Hard,
    "mixed": Mixed,
    "mse": MSE,
    "dkd": DKD,
    "dist": DIST,
    "nkd": NKD,
    "wsld": WSLD,
    "standardized-kd": StandardizedKD,
}
"""Every distillation loss, a ``DistillationLoss``, by the name that ``--loss`` takes."""


def make(name: str, **settings: float) -> DistillationLoss:
    """Return the loss called ``name`` with its settings, such as ``temperature``; the rest have their defaults.

    Raises:
        UnsupportedLossError: there is no such loss or parameter, or a value is out of range; the message names the
            nearest, and the loss's parameters.
    """
    known = {each.name: each for each in parameters(name)}
    listed = ", ".join(f"{each.name} ({each.range.description})" for each in known.values()) or "none"
    for setting, value in settings.items():
        if setting not in known:
            hint = did_you_mean(setting, known) or "."
            raise UnsupportedLossError(f"the loss {name} has no parameter '{setting}'{hint} Its parameters: {listed}.")
        if value not in known[setting].range:
            raise UnsupportedLossError(f"the loss {name} cannot take {setting}={value}. Its parameters: {listed}.")
    loss: DistillationLoss = LOSSES[name](**settings)
    return loss


def parameters(name: str) -> tuple[Parameter, ...]:
    """Return the parameters of the loss called ``name``, in order.

    Raises:
        UnsupportedLossError: there is no such loss; the message names the nearest.
    """
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES) or "."
        raise UnsupportedLossError(f"unknown loss '{name}'{hint} Known: {', '.join(LOSSES)}.")
    return parameters_of(LOSSES[name])
