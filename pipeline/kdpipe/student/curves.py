"""Numbers that follow the epochs: the weights of the loss terms and the temperature.

A curve is written ``SHAPE:NUMBERS[,every=N][,over=N][,warmup=N]``, and a plain number is a constant:

    0.9                         always
    linear:1,0                  from 1 in the first epoch towards 0 after the last, in a straight line
    cosine:0.5,0,every=5        along half a cosine, changed every 5 epochs only
    cosine:8,2,over=100         there after 100 epochs, and constant from then on
    step:0.9,0.5,every=30       multiplied by 0.5 every 30 epochs
    constant:8,warmup=20        1/20 in the first epoch, 2/20 in the second, and so on to the whole

In YAML ``cosine:0.5,0,every=5`` may be written ``{cosine: [0.5, 0], every: 5}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.errors import ParamsError, did_you_mean

_NUMBERS = {"constant": ("value",), "linear": ("from", "to"), "cosine": ("from", "to"), "step": ("from", "factor")}
"""What the numbers of each shape are."""
_OPTIONS = ("every", "over", "warmup")


@dataclass(frozen=True)
class Curve:
    """A number for each epoch."""

    shape: str
    """constant, linear, cosine or step."""
    first: float
    """The value in the first epoch, warm-up left out."""
    second: float = 1.0
    """The value at the end of linear and cosine, the factor of step."""
    every: int | None = None
    """Epochs between two changes."""
    over: int | None = None
    """Epochs after which linear and cosine are at their end; ``None`` for all."""
    warmup: int = 0
    """Epochs over which the value is raised to its whole in equal parts.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), as in its authors' code: ``min(epoch / 20, 1)``, the first
    epoch being 1.
    """

    @classmethod
    def parse(cls, written: float | str | Mapping[str, Any]) -> Curve:
        """Read a curve as it is written in the module's description; a number is a constant.

        Raises:
            ParamsError: it cannot be read, or a number is negative or not finite.
        """
        if isinstance(written, Mapping):
            written = _text(written)
        if not isinstance(written, str) or ":" not in written:
            return cls("constant", _number(written))
        shape, _, rest = written.partition(":")
        shape = shape.strip()
        if shape not in _NUMBERS:
            raise ParamsError(
                f"'{shape}' is no shape of a curve{did_you_mean(shape, _NUMBERS) or '.'} Known: {', '.join(_NUMBERS)}"
            )
        parts = [part.strip() for part in rest.split(",")]
        numbers = [_number(part) for part in parts if "=" not in part]
        options = dict(_option(part, shape) for part in parts if "=" in part)
        if len(numbers) != len(_NUMBERS[shape]) or (shape == "step" and "every" not in options):
            raise ParamsError(f"'{written}' is not {_usage(shape)}")
        second = numbers[1] if len(numbers) > 1 else 1.0
        return cls(shape, numbers[0], second, options.get("every"), options.get("over"), options.get("warmup", 0))

    @property
    def is_constant(self) -> bool:
        """Whether every epoch has the same value."""
        return self.shape == "constant" and not self.warmup

    def at(self, epoch: int, epochs: int) -> float:
        """Return the value in ``epoch``, from 0, of a training of ``epochs``."""
        if self.is_constant:
            return self.first
        changes = epoch // (self.every or 1)
        part = min(1.0, changes * (self.every or 1) / (self.over or epochs))
        value = {
            "constant": self.first,
            "linear": self.first + (self.second - self.first) * part,
            "cosine": self.second + (self.first - self.second) * (1 + math.cos(math.pi * part)) / 2,
            "step": self.first * self.second**changes,
        }[self.shape]
        return value * min(1.0, (epoch + 1) / self.warmup) if self.warmup else value

    def values(self, epochs: int) -> list[float]:
        """Return the value in each epoch of a training."""
        return [self.at(epoch, epochs) for epoch in range(epochs)]

    def __str__(self) -> str:
        """Return the curve as ``parse`` reads it."""
        if self.is_constant:
            return f"{self.first:.12g}"
        numbers = [f"{number:.12g}" for number in (self.first, self.second)][: len(_NUMBERS[self.shape])]
        options = [f"{name}={value}" for name in _OPTIONS if (value := getattr(self, name))]
        return f"{self.shape}:{','.join(numbers + options)}"


def _text(mapping: Mapping[str, Any]) -> str:
    shapes = [key for key in mapping if key not in _OPTIONS]
    if len(shapes) != 1:
        raise ParamsError(f"a curve has one shape of {', '.join(_NUMBERS)}, and {', '.join(_OPTIONS)} if wanted")
    numbers = mapping[shapes[0]]
    parts = numbers if isinstance(numbers, list | tuple) else [numbers]
    options = [f"{key}={value}" for key, value in mapping.items() if key in _OPTIONS]
    return f"{shapes[0]}:{','.join([*map(str, parts), *options])}"


def _number(written: Any) -> float:
    try:
        number = float(written)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ParamsError(f"expected a number of 0 or more, or a curve such as cosine:0.9,0.1,every=5, not '{written}'")
    return number


def _option(written: str, shape: str) -> tuple[str, int]:
    name, _, text = written.partition("=")
    name = name.strip()
    allowed = {"constant": ("warmup",), "step": ("every", "warmup")}.get(shape, _OPTIONS)
    if name not in allowed:
        raise ParamsError(f"{shape} has no {name}{did_you_mean(name, allowed) or ';'} it is {_usage(shape)}")
    if not text.strip().isdecimal() or int(text) < 1:
        raise ParamsError(f"{name} is a number of epochs of 1 or more, not '{text}'")
    return name, int(text)


def _usage(shape: str) -> str:
    numbers = ",".join(name.upper() for name in _NUMBERS[shape])
    options = {"constant": "[,warmup=N]", "step": ",every=N[,warmup=N]"}.get(shape, "[,every=N][,over=N][,warmup=N]")
    return f"{shape}:{numbers}{options}"
