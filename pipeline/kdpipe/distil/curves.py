"""Numbers that change over the epochs: the weights of the loss terms and the temperature.

A plain number is a constant; a curve is written in the grammar of ``kdpipe.spec``:

    0.9                         always
    linear:1,0                  from 1 in the first epoch towards 0 after the last, in a straight line
    cosine:0.5,0,every=5        along half a cosine, changed every 5 epochs only
    cosine:8,2,over=100         at its end after 100 epochs, and constant from then on
    step:0.9,0.5,every=30       multiplied by 0.5 every 30 epochs
    constant:8,warmup=20        1/20 in the first epoch, 2/20 in the second, and so on to the whole
    plateau:0.9,0.5,patience=3  multiplied by 0.5 after every 3 epochs in a row without a new best validation accuracy

A temperature can also be learned: ``learned:1,21``, see ``kdpipe.distil.learned``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kdpipe.errors import ParamsError
from kdpipe.registry import Count, NotNegative, Positive, Registry, Share
from kdpipe.spec import number, shortest

CURVES: Registry[Curve] = Registry("curve")


@dataclass(frozen=True)
class Curve:
    """A number for each epoch."""

    shape: str
    """constant, linear, cosine, step, plateau or learned."""
    first: float
    """The value in the first epoch, without warm-up."""
    second: float = 1.0
    """The value at the end of linear and cosine, the factor of step and plateau, the highest of learned."""
    every: int | None = None
    """Epochs between two changes."""
    over: int | None = None
    """Epochs after which linear and cosine are at their end; ``None`` for all. Those of the curriculum of learned."""
    warmup: int = 0
    """Epochs over which the value is raised to its whole in equal parts.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), as in its authors' code: ``min(epoch / 20, 1)``, the first
    epoch being 1.
    """
    patience: int | None = None
    """Epochs in a row without a new best validation accuracy before plateau multiplies its value."""
    floor: float = 0.0
    """The lowest value of plateau."""
    text: str = field(default="", compare=False, repr=False)
    """The text that it was parsed from; empty for none."""

    @classmethod
    def parse(cls, text: str) -> Curve:
        """Parse a number, or a curve as in the module's description.

        Raises:
            ParamsError: it cannot be parsed, or a number is negative or not finite.
        """
        term = CURVES.one(text)
        if term.name in CURVES or term.values or term.settings:
            return replace(CURVES.make(term), text=text)
        try:
            value = number(term.name)
        except ValueError:
            value = -1.0
        if value < 0:
            raise ParamsError(
                f"expected a number of 0 or more, or a curve such as cosine:0.9,0.1,every=5, not '{text}'"
            )
        return cls("constant", value, text=text)

    @property
    def written(self) -> str:
        """The curve in the words of whoever wrote it, for messages."""
        return self.text or str(self)

    @property
    def is_constant(self) -> bool:
        """Whether every epoch has the same value."""
        return self.shape == "constant" and not self.warmup

    @property
    def is_learned(self) -> bool:
        """Whether the value is a parameter that is learned; ``at`` then returns the highest that it can have."""
        return self.shape == "learned"

    @property
    def follows_validation(self) -> bool:
        """Whether the value depends on the validation accuracies of the epochs before."""
        return self.shape == "plateau"

    def at(self, epoch: int, epochs: int, *, validated: Sequence[float] = ()) -> float:
        """Return the value in ``epoch``, from 0, of a training of ``epochs``.

        ``validated`` are the validation accuracies of the epochs before, for a curve that follows them.

        Raises:
            ParamsError: the curve follows them, and they are not there.
        """
        if self.is_constant:
            return self.first
        value = self._shaped(epoch, epochs, validated)
        return value * min(1.0, (epoch + 1) / self.warmup) if self.warmup else value

    def _shaped(self, epoch: int, epochs: int, validated: Sequence[float]) -> float:
        """Return the value without its warm-up."""
        changes = epoch // (self.every or 1)
        part = min(1.0, changes * (self.every or 1) / (self.over or epochs))
        match self.shape:
            case "linear":
                return self.first + (self.second - self.first) * part
            case "cosine":
                return self.second + (self.first - self.second) * (1 + math.cos(math.pi * part)) / 2
            case "step":
                return self.first * self.second**changes
            case "plateau":
                return max(self.floor, self.first * self.second ** self._stalls(epoch, validated))
            case "learned":
                return self.second
        return self.first

    def _stalls(self, epoch: int, validated: Sequence[float]) -> int:
        if self.patience is None:
            return 0
        if len(validated) != epoch:
            raise ParamsError(
                f"{self.written} needs the validation accuracy of each epoch: hold samples out with --validation"
            )
        return stalls(validated, patience=self.patience)

    def values(self, epochs: int) -> list[float]:
        """Return the value in each epoch of a training, for a curve that does not follow the validation."""
        return [self.at(epoch, epochs) for epoch in range(epochs)]

    def __str__(self) -> str:
        """Return the curve as ``parse`` reads it."""
        if self.is_constant:
            return shortest(self.first)
        numbers = [self.first] if self.shape == "constant" else [self.first, self.second]
        options = [
            f"{name}={value}" for name in ("every", "over", "warmup", "patience") if (value := getattr(self, name))
        ]
        if self.floor:
            options.append(f"floor={shortest(self.floor)}")
        return f"{self.shape}:{','.join([*map(shortest, numbers), *options])}"


def stalls(figures: Sequence[float], *, patience: int) -> int:
    """Return how often ``patience`` figures in a row were no new best; each time, counting starts anew."""
    best, waited, count = -math.inf, 0, 0
    for figure in figures:
        waited = 0 if figure > best else waited + 1
        best = max(best, figure)
        if waited == patience:
            waited, count = 0, count + 1
    return count


@CURVES.register("constant")
def _constant(value: NotNegative, *, warmup: Count | None = None) -> Curve:
    """The same value in every epoch, after a warm-up."""
    return Curve("constant", value, warmup=warmup or 0)


@CURVES.register("linear")
def _linear(
    start: NotNegative,
    end: NotNegative,
    *,
    every: Count | None = None,
    over: Count | None = None,
    warmup: Count | None = None,
) -> Curve:
    """A straight line from START in the first epoch to END after the last."""
    return Curve("linear", start, end, every, over, warmup or 0)


@CURVES.register("cosine")
def _cosine(
    start: NotNegative,
    end: NotNegative,
    *,
    every: Count | None = None,
    over: Count | None = None,
    warmup: Count | None = None,
) -> Curve:
    """Half a cosine from START in the first epoch to END after the last."""
    return Curve("cosine", start, end, every, over, warmup or 0)


@CURVES.register("step")
def _step(start: NotNegative, factor: NotNegative, *, every: Count, warmup: Count | None = None) -> Curve:
    """START, multiplied by FACTOR every EVERY epochs."""
    return Curve("step", start, factor, every, warmup=warmup or 0)


@CURVES.register("plateau")
def _plateau(
    start: NotNegative, factor: Share, *, patience: Count, floor: NotNegative = 0.0, warmup: Count | None = None
) -> Curve:
    """START, multiplied by FACTOR after PATIENCE epochs in a row without a new best validation accuracy."""
    if floor > start:
        raise ParamsError(f"the curve plateau starts at {shortest(start)}, below its floor of {shortest(floor)}")
    return Curve("plateau", start, factor, warmup=warmup or 0, patience=patience, floor=floor)


@CURVES.register("learned", source="Li et al. 2023 (CTKD)")
def _learned(low: Positive = 1.0, high: Positive = 21.0, *, over: Count = 10) -> Curve:
    """A temperature from LOW to HIGH, learned against the student, ever more over the first OVER epochs."""
    if high <= low:
        raise ParamsError(f"a learned temperature needs a HIGH above LOW, got {shortest(low)} and {shortest(high)}")
    return Curve("learned", low, high, over=over)
