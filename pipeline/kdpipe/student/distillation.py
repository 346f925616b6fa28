"""The distillation term of a student's loss, and how much each term weighs in an epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdpipe.student.curves import Curve
from kdpipe.student.losses import DistillationLoss
from kdpipe.student.signals import SignalTerms
from kdpipe.student.targets import SoftTargets


@dataclass(frozen=True)
class Tempered:
    """A loss whose temperature follows the epochs."""

    temperature: Curve
    make: Callable[[float], DistillationLoss]
    """Returns the loss at a temperature."""


@dataclass(frozen=True)
class Terms:
    """The loss and the weights of one epoch."""

    loss: DistillationLoss
    kd_weight: float
    ce_weight: float
    moving: dict[str, float]
    """Those of ``kd_weight``, ``ce_weight`` and ``temperature`` that are not the same in every epoch."""


@dataclass(frozen=True)
class Distillation:
    """The distillation term and the weights of both terms, each a number or a curve over the epochs."""

    targets: SoftTargets
    loss: DistillationLoss | Tempered
    kd_weight: float | Curve
    ce_weight: float | Curve
    signals: SignalTerms | None = None
    """What is added to the distillation term for what the teacher's layers show."""

    def terms(self, epoch: int, epochs: int) -> Terms:
        """Return what holds in ``epoch``, from 0, of a training of ``epochs``."""
        curves = {"kd_weight": _curve(self.kd_weight), "ce_weight": _curve(self.ce_weight)}
        loss = self.loss
        if isinstance(loss, Tempered):
            curves["temperature"] = loss.temperature
            loss = loss.make(loss.temperature.at(epoch, epochs))
        values = {name: curve.at(epoch, epochs) for name, curve in curves.items()}
        moving = {name: values[name] for name, curve in curves.items() if not curve.is_constant}
        return Terms(loss, values["kd_weight"], values["ce_weight"], moving)


def _curve(weight: float | Curve) -> Curve:
    return weight if isinstance(weight, Curve) else Curve("constant", weight)
