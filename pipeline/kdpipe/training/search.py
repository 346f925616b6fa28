"""Random search with successive halving: drawn settings, and the rungs on which the best of them train longer.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016). Settings are
drawn at random: all trials of a rung train together, so a sampler would have learned nothing when they are drawn.
Importing this does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdpipe.errors import ParamsError, did_you_mean

Draw = dict[str, str]
"""The drawn settings of one trial, by key, as text."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, uniform in their logarithms if ``log``."""

    low: float
    high: float
    log: bool

    def draw(self, random: np.random.Generator) -> str:
        """Return a number of three significant digits."""
        place = random.random()
        drawn = self.low * (self.high / self.low) ** place if self.log else self.low + (self.high - self.low) * place
        return f"{drawn:.3g}"


@dataclass(frozen=True)
class Choice:
    """Some values, equally likely."""

    values: tuple[str, ...]

    def draw(self, random: np.random.Generator) -> str:
        """Return one of the values."""
        return self.values[int(random.integers(len(self.values)))]


@dataclass(frozen=True)
class Rung:
    """Trials that train for equally many epochs, each with a whole schedule."""

    trials: int
    epochs: int


def parse_space(texts: Sequence[str], *, known: Sequence[str]) -> dict[str, Range | Choice]:
    """Parse ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH,log`` and ``KEY=A|B|C``, whose keys are among ``known``.

    Raises:
        ParamsError: one cannot be parsed, or a key is unknown or given twice.
    """
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        key = name.strip().replace("-", "_")
        if not equals or not values.strip():
            raise ParamsError(f"'{text}' is no search, expected such as lr=0.01..0.3,log or loss=kd|dkd|dist.")
        if key not in known:
            raise ParamsError(f"'{name.strip()}' cannot be searched{did_you_mean(key, known) or '.'}")
        if key in space:
            raise ParamsError(f"'{name.strip()}' is searched twice: give all its values at once.")
        space[key] = _parsed(values.strip(), text)
    return space


def _parsed(values: str, text: str) -> Range | Choice:
    if ".." not in values or "|" in values:
        choices = tuple(value.strip() for value in values.split("|"))
        if not all(choices) or len(set(choices)) < len(choices):
            raise ParamsError(f"'{text}': the values must differ, none of them empty.")
        return Choice(choices)
    ends, comma, scale = values.partition(",")
    low, _, high = ends.partition("..")
    try:
        found = Range(float(low), float(high), log=bool(comma))
    except ValueError:
        raise ParamsError(f"'{text}': expected two numbers, LOW..HIGH.") from None
    if (comma and scale.strip() != "log") or not found.low < found.high or not math.isfinite(found.high - found.low):
        raise ParamsError(f"'{text}': expected LOW..HIGH or LOW..HIGH,log with LOW below HIGH.")
    if found.log and found.low <= 0:
        raise ParamsError(f"'{text}': log needs numbers above 0.")
    return found


def draws(space: Mapping[str, Range | Choice], trials: int, *, seed: int) -> list[Draw]:
    """Return the settings of each trial; fewer trials have the first of more.

    Raises:
        ParamsError: the space has fewer different settings than ``trials``.
    """
    random, found = np.random.default_rng(seed), list[Draw]()
    for _ in range(100 * trials):
        drawn = {key: values.draw(random) for key, values in space.items()}
        if drawn not in found:
            found.append(drawn)
        if len(found) == trials:
            return found
    raise ParamsError(f"the search has only {len(found)} different settings: give --trials {len(found)}.")


def rungs(trials: int, epochs: int, *, reduction: int) -> list[Rung]:
    """Return the rungs: each has ``1 / reduction`` of the trials before, and ``reduction`` times their epochs.

    The last rung trains for ``epochs``, and the first for 1 at least. There is one rung where neither trials nor epochs
    can be divided.
    """
    count = 0
    while reduction ** (count + 1) <= min(trials, epochs):
        count += 1
    return [
        Rung(max(1, trials // reduction**step), max(1, round(epochs / reduction ** (count - step))))
        for step in range(count + 1)
    ]


def best_first(scores: Mapping[str, float | None]) -> list[str]:
    """Return names by score, the highest first; of equal ones the first given. Those without one are left out."""
    known = {name: score for name, score in scores.items() if score is not None}
    return sorted(known, key=lambda name: -known[name])


def as_row(trial: str, drawn: Draw, scores: Sequence[float | None]) -> list[Any]:
    """Return a trial with its settings and its score on each rung, empty where it was not trained to its end."""
    return [trial, *drawn.values(), *("" if score is None else f"{score:.6f}" for score in scores)]
