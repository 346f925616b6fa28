"""Recipes: which random pixels an augmented view is made of.

A recipe is a short string of operations joined with ``+``, each with its numbers after a colon:

    crop-flip
    rrc-flip:0.25+color+erase
    rrc-flip+randaug:2,9+mixup:0.2+cutmix:1

or the same as YAML, with names for the numbers: ``[rrc-flip: {scale: [0.25, 1]}, randaug: {steps: 2, level: 9}]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from kdpipe.errors import RecipeError, did_you_mean
from kdpipe.views.beta import thresholds
from kdpipe.views.operations import OPERATIONS, PHASES, Operation

Thresholds = Mapping[str, Sequence[int]]
"""For each mixing operation, the table that its lambda is drawn with; see ``kdpipe.views.beta``."""


@dataclass(frozen=True)
class Step:
    """One operation and its numbers, in the order of its parameters."""

    operation: Operation
    values: tuple[float, ...]

    def __getitem__(self, parameter: str) -> float:
        """Return the value of a parameter by its name."""
        names = [known.name for known in self.operation.parameters]
        return self.values[names.index(parameter)]

    def __str__(self) -> str:
        """Return the canonical form: numbers up to the last one that is not the default."""
        given = len(self.values)
        defaults = [parameter.default for parameter in self.operation.parameters]
        while given and self.values[given - 1] == defaults[given - 1]:
            given -= 1
        numbers = ",".join(map(_shortest, self.values[:given]))
        return f"{self.operation.name}:{numbers}" if given else self.operation.name


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe; ``str(recipe)`` is its canonical form."""

    steps: tuple[Step, ...]
    _given: Thresholds | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, recipe: str | Sequence[Any] | Mapping[str, Any], *, thresholds: Thresholds | None = None) -> Recipe:
        """Parse a short string such as ``"crop-flip"``, YAML, or what YAML stands for.

        ``thresholds`` are those that a store keeps for its mixing operations; without them they are computed.

        Raises:
            RecipeError: an operation is unknown (the message names the nearest one), is given twice or in the wrong
                place, or a number is missing or out of range.
        """
        entries = _entries(recipe)
        steps = tuple(_step(name, numbers, recipe) for name, numbers in entries)
        _check_order(steps, recipe)
        return cls(tuple(step for step in steps if step.operation.name != "none"), thresholds or None)

    @property
    def augments(self) -> bool:
        """Whether views above 0 differ from the plain view."""
        return bool(self.steps)

    @property
    def mixes(self) -> bool:
        """Whether views above 0 hold parts of other samples."""
        return any(step.operation.phase == "mix" for step in self.steps)

    def of(self, phase: str) -> tuple[Step, ...]:
        """Return the steps of one of ``PHASES``."""
        return tuple(step for step in self.steps if step.operation.phase == phase)

    @cached_property
    def thresholds(self) -> dict[str, tuple[int, ...]]:
        """The table of each mixing operation's lambda, 256 integers each."""
        if self._given is not None:
            return {name: tuple(table) for name, table in self._given.items()}
        return {step.operation.name: thresholds(step["alpha"]) for step in self.of("mix")}

    @property
    def version(self) -> str:
        """The versions of the operations, to be stored beside the recipe."""
        return "+".join(f"{operation.name}/{operation.version}" for operation in self._operations)

    def __str__(self) -> str:
        """Return the canonical form."""
        return "+".join(map(str, self.steps)) or "none"

    @property
    def _operations(self) -> tuple[Operation, ...]:
        return tuple(step.operation for step in self.steps) or (OPERATIONS["none"],)


def _entries(recipe: str | Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the operations' names, each with its numbers: a list, or a mapping of names to numbers."""
    if isinstance(recipe, str):
        text = recipe.strip()
        if not text.startswith(("[", "{", "- ")) and "\n" not in text:
            return [_short(part) for part in text.split("+")]
        try:
            recipe = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"the recipe is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(recipe, str):
        return [_short(part) for part in recipe.split("+")]
    parts = [recipe] if isinstance(recipe, Mapping) else recipe
    entries: list[tuple[str, Any]] = []
    for part in parts if isinstance(parts, Sequence) else [parts]:
        if isinstance(part, str):
            entries.append(_short(part))
        elif isinstance(part, Mapping) and all(isinstance(name, str) for name in part):
            entries += part.items()
        else:
            raise RecipeError(f"the recipe has {part!r}, expected the name of an operation, or a name and its numbers.")
    return entries


def _short(part: str) -> tuple[str, list[str]]:
    name, colon, numbers = part.strip().partition(":")
    return name.strip(), numbers.split(",") if colon else []


def _step(name: str, numbers: Any, recipe: Any) -> Step:
    operation = OPERATIONS.get(name)
    if operation is None:
        hint = did_you_mean(name, OPERATIONS) or "."
        raise RecipeError(f"unknown recipe '{name}'{hint} Known: {', '.join(OPERATIONS)}.")
    values = [parameter.default for parameter in operation.parameters]
    for place, number in _places(operation, numbers):
        values[place] = _number(operation, place, number)
    missing = [known.name for known, value in zip(operation.parameters, values, strict=True) if value is None]
    if missing:
        raise RecipeError(f"'{name}' in the recipe '{recipe}' lacks {missing[0]}: write {operation.usage}.")
    step = Step(operation, tuple(value for value in values if value is not None))
    for known in operation.ranges:
        low, high = step[f"{known}_min"], step[f"{known}_max"]
        if low > high:
            raise RecipeError(f"'{name}' has the {known} {low:g} to {high:g}; swap them.")
    return step


def _places(operation: Operation, numbers: Any) -> list[tuple[int, Any]]:
    """Say which parameter each number is for."""
    names = [parameter.name for parameter in operation.parameters]
    if isinstance(numbers, Mapping):
        numbers = dict(_ends(operation, numbers))
        unknown = next((name for name in numbers if name not in names), None)
        if unknown is not None:
            hint = did_you_mean(str(unknown), names) or "."
            raise RecipeError(
                f"'{operation.name}' has no number '{unknown}'{hint} Known: {', '.join(names) or 'none'}."
            )
        return [(names.index(name), number) for name, number in numbers.items()]
    listed = [] if numbers is None else list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    if len(listed) > len(names):
        raise RecipeError(
            f"'{operation.name}' takes {len(names)} numbers at most, got {len(listed)}: write {operation.usage}."
        )
    return list(enumerate(listed))


def _ends(operation: Operation, numbers: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the numbers with each range, ``scale: [0.1, 1]``, as its two ends."""
    for name, number in numbers.items():
        if name in operation.ranges and isinstance(number, list | tuple) and len(number) == 2:
            yield from ((f"{name}_min", number[0]), (f"{name}_max", number[1]))
        else:
            yield name, number


def _number(operation: Operation, place: int, number: Any) -> float:
    parameter = operation.parameters[place]
    try:
        value = math.nan if isinstance(number, bool) else float(number)
    except (TypeError, ValueError):
        value = math.nan
    if not parameter.low <= value <= parameter.high or (parameter.whole and value != int(value)):
        kind = "a whole number" if parameter.whole else "a number"
        raise RecipeError(
            f"'{operation.name}' has {parameter.name} {str(number)!r}, expected {kind} from {parameter.low:g} to "
            f"{parameter.high:g}."
        )
    return value


def _check_order(steps: Sequence[Step], recipe: Any) -> None:
    names = [step.operation.name for step in steps]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"the recipe '{recipe}' has '{twice}' twice; write it once.")
    if "none" in names and len(names) > 1:
        raise RecipeError(f"the recipe '{recipe}' joins 'none' with other operations; leave it out.")
    boxes = [name for name, step in zip(names, steps, strict=True) if step.operation.phase == "box"]
    if len(boxes) > 1:
        raise RecipeError(f"the recipe '{recipe}' crops twice, by {' and '.join(boxes)}; choose one.")
    ordered = sorted(steps, key=lambda step: PHASES.index(step.operation.phase))
    if list(steps) != ordered:
        raise RecipeError(
            f"the recipe '{recipe}' is not in the order in which an image is made: crops first, then colours, then "
            f"erasing, then mixing. Write '{'+'.join(map(str, ordered))}'."
        )


def _shortest(value: float) -> str:
    """Write a number in as few digits as read back to it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
