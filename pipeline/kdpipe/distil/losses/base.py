"""What a distillation loss is, and what it says of itself and of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from math import inf
from typing import Any, Protocol, cast

import torch


class DistillationLoss(Protocol):
    """A distillation term, without cross-entropy to the labels and without warm-up.

    It is called with raw logits of the student and of the teacher, float ``(n, classes)``, at least two classes, and
    with labels, int64 ``(n,)``, -1 where there is none. It returns a scalar: the mean over the batch. A term that reads
    labels is the mean over the labelled samples, and 0 where there are none. Half precision is computed in float32.
    """

    @property
    def needs_label(self) -> bool:
        """Whether it reads the labels, one class each: it has no meaning for mixed images."""

    @property
    def kd_weight(self) -> float:
        """The published weight of this term."""

    @property
    def ce_weight(self) -> float:
        """The published weight of cross-entropy to the labels beside it."""

    @property
    def warmup_epochs(self) -> int:
        """Epochs over which the authors raise this term's weight to its whole."""

    @property
    def teacher_temperature(self) -> float | None:
        """The highest temperature at which it reads the teacher's probabilities.

        0 if it only asks for the likeliest class; ``None`` if it depends on logits of unlikely classes as much as on
        those of likely ones, which no encoding made for a temperature keeps.
        """

    def __call__(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the scalar loss."""


@dataclass(frozen=True)
class Range:
    """The values that a parameter may take."""

    description: str
    holds: Callable[[float], bool]

    def __contains__(self, value: object) -> bool:
        """Whether ``value`` is a number within the range."""
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.holds(float(value))


POSITIVE = Range("above 0", lambda value: 0 < value < inf)
NOT_NEGATIVE = Range("0 or more", lambda value: 0 <= value < inf)
SHARE = Range("0 to 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class Parameter:
    """A number that a loss can be given."""

    name: str
    default: float
    range: Range


def parameter(default: float, allowed: Range) -> float:
    """Declare a field of a loss."""
    return field(default=default, metadata={"range": allowed})


def parameters_of(loss: type[Any]) -> tuple[Parameter, ...]:
    """Return what a loss's class declares, in order."""
    declared: tuple[Field[Any], ...] = fields(loss)
    return tuple(Parameter(each.name, cast(float, each.default), each.metadata["range"]) for each in declared)
