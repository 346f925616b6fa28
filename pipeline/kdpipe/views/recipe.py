"""Recipes, and the registry of the operations that they are made of.

A recipe is a string of operations joined with ``+``, in the grammar of ``kdpipe.spec``:

    crop
    rrc:0.25+flip+color+erase
    rrc:scale_min=0.25+flip+randaug:steps=2,level=9+mixup:0.2+cutmix:1

An operation is a function that registers itself in the file that computes it. Its first parameters are what its phase
passes to it (see ``PHASES``); the others are those that a recipe may set:

    class Stream(IntEnum):
        GRAY = 1000

    claim(Stream)

    @operation("gray", "color")
    def gray(images: torch.Tensor, draws: Draws, probability: Share = 0.2) -> torch.Tensor:
        "Gray levels, in a share of the images."
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_args

from kdpipe.errors import RecipeError
from kdpipe.registry import Entry, Registry, between
from kdpipe.spec import Term, parse, shortest

Phase = Literal["box", "flip", "rotate", "color", "erase", "mix", "tensor"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The order in which an image is made, and so that of a recipe.

An operation is called with two arguments and its values:

- ``box``: the source images (``geometry.Sources``) and the draws; it returns one box of each, int64 ``(n, 4)``;
- ``flip``, ``rotate``, ``color``, ``erase``: uint8 ``(n, 3, H, W)`` at the input size and the draws; it returns such;
- ``mix``: the table that lambda is drawn with and the draws; it returns the ``mixing.Amounts``;
- ``tensor``: ``tensors.Items`` instead of images, and the draws; it returns the items' changed first array.
"""

Scale = Annotated[float, between(0.001, 1)]
"""The area of a box as a share of the image's."""
Ratio = Annotated[float, between(0.1, 10)]
"""One side of a box over the other."""

Thresholds = Mapping[str, Sequence[int]]
"""For each mixing operation, the table that its lambda is drawn with; see ``kdpipe.views.mixing``."""

OPERATIONS: Registry[Any] = Registry(
    "operation",
    error=RecipeError,
    modules=[f"kdpipe.views.{file}" for file in ("geometry", "affine", "augment", "erase", "mixing", "tensors")],
)
"""All operations, in the order in which an image is made; a file of new ones has its name here."""


@dataclass(frozen=True)
class Operation:
    """The facts of an operation that pixels depend on."""

    entry: Entry[Any]
    phase: Phase
    version: int
    """Rises when the operation's pixels change, so that old stores are told apart."""
    table: Callable[..., Sequence[int]] | None = None
    """Computes the table of lambda from the values, for the phase ``mix``."""
    parts: tuple[str, ...] = ()
    """The names of the operations that the name of a pair stands for."""


_OPERATIONS: dict[str, Operation] = {}
_CLAIMED: dict[int, str] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def operation(
    name: str, phase: Phase, *, version: int = 1, source: str = "", table: Callable[..., Sequence[int]] | None = None
) -> Callable[[Function], Function]:
    """Register a function as an operation; the first line of its docstring is its help."""

    def register(function: Function) -> Function:
        entry = OPERATIONS.add(name, function, skip=2, source=source)
        _OPERATIONS[name] = Operation(entry, phase, version, table)
        return function

    return register


def pair(name: str, first: str, then: str, *, version: int = 1) -> None:
    """Register ``name`` for two operations; its values are those of the first, and the second has none."""
    one = _OPERATIONS[first]
    entry = OPERATIONS.add(
        name, one.entry.make, skip=2, source=one.entry.source, help_line=f"{first}+{then} in one name."
    )
    _OPERATIONS[name] = Operation(entry, one.phase, version, parts=(first, then))


def claim(streams: type[IntEnum], *more: int) -> None:
    """Reserve the numbers of a file's streams, and ``more``; a number is never used for another parameter again.

    Any number from 0 to 2^31 - 1 will do that no other file has.

    Raises:
        ValueError: a number is taken.
    """
    for number in (*streams, *more):
        if number in _CLAIMED:
            raise ValueError(f"stream {number:d} belongs to {_CLAIMED[number]}: choose another number")
        _CLAIMED[int(number)] = streams.__module__


@dataclass(frozen=True)
class Step:
    """One operation of a recipe, with its values in the order of its parameters."""

    name: str
    values: tuple[float, ...] = ()

    @property
    def operation(self) -> Operation:
        """The operation of that name."""
        return _OPERATIONS[OPERATIONS[self.name].name]

    @property
    def parts(self) -> tuple[Step, ...]:
        """The step, or those of the two operations that its name stands for."""
        first, *others = self.operation.parts or (self.name,)
        return Step(first, self.values), *map(Step, others)

    def __call__(self, given: Any, draws: Any) -> Any:
        """Call the operation; see ``PHASES``."""
        return self.operation.entry.make(given, draws, *self.values)

    def __str__(self) -> str:
        """Return the canonical form: values by position up to the last one that is not the default."""
        given = len(self.values)
        defaults = [parameter.default for parameter in self.operation.entry.parameters]
        while given and self.values[given - 1] == defaults[given - 1]:
            given -= 1
        return str(Term(self.name, tuple(map(shortest, self.values[:given]))))


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe; ``str(recipe)`` is its canonical form."""

    steps: tuple[Step, ...]
    """As written, without ``none``."""
    _given: Thresholds | None = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, recipe: str, *, thresholds: Thresholds | None = None) -> Recipe:
        """Parse a recipe such as ``"crop+flip"``.

        ``thresholds`` are those that a store keeps for its mixing operations; without them they are computed.

        Raises:
            RecipeError: an operation is unknown (the message names the nearest one), is given twice or in the wrong
                place, or a value is missing or out of range.
        """
        steps = tuple(map(_step, parse(recipe, error=RecipeError)))
        _check_order(steps, recipe)
        return cls(tuple(step for step in steps if step.name != "none"), thresholds or None)

    @property
    def augments(self) -> bool:
        """Whether views above 0 differ from the plain view."""
        return bool(self.steps)

    @property
    def mixes(self) -> bool:
        """Whether views above 0 hold parts of other samples."""
        return bool(self.of("mix"))

    def of(self, *phases: Phase) -> tuple[Step, ...]:
        """Return the steps of some phases; a pair is given as its two parts."""
        return tuple(part for step in self.steps for part in step.parts if part.operation.phase in phases)

    @cached_property
    def thresholds(self) -> dict[str, tuple[int, ...]]:
        """The table of each mixing operation's lambda, 256 integers each."""
        if self._given is not None:
            return {name: tuple(table) for name, table in self._given.items()}
        steps = [(step, step.operation.table) for step in self.of("mix")]
        return {step.name: tuple(table(*step.values)) for step, table in steps if table is not None}

    @property
    def version(self) -> str:
        """The versions of the operations, to be stored beside the recipe."""
        return "+".join(f"{step.name}/{step.operation.version}" for step in self.steps or (Step("none"),))

    def __str__(self) -> str:
        """Return the canonical form."""
        return "+".join(map(str, self.steps)) or "none"


def _step(term: Term) -> Step:
    entry, given, _ = OPERATIONS.bind(term)
    OPERATIONS.require(entry, given)
    values = {parameter.name: parameter.default for parameter in entry.parameters} | given
    for low in values:
        known = low.removesuffix("_min")
        high = f"{known}_max"
        if known != low and values[low] > values[high]:
            raise RecipeError(f"'{entry.name}' has the {known} {values[low]:g} to {values[high]:g}; swap them.")
    return Step(entry.name, tuple(values.values()))


def _check_order(steps: Sequence[Step], recipe: str) -> None:
    names = [step.name for step in steps]
    _check_twice(names, recipe)
    if "none" in names and len(names) > 1:
        raise RecipeError(f"the recipe '{recipe}' joins 'none' with other operations; leave it out.")
    boxes = [step.name for step in steps if step.operation.phase == "box"]
    if len(boxes) > 1:
        raise RecipeError(f"the recipe '{recipe}' crops twice, by {' and '.join(boxes)}; choose one.")
    _check_twice([part.name for step in steps for part in step.parts], recipe)
    ordered = sorted(steps, key=lambda step: PHASES.index(step.operation.phase))
    if list(steps) != ordered:
        raise RecipeError(
            f"the recipe '{recipe}' is not in the order in which an image is made: crops first, then flips, rotation, "
            f"colors, erasing, mixing. Write '{'+'.join(map(str, ordered))}'."
        )


def _check_twice(names: Sequence[str], recipe: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"the recipe '{recipe}' has '{twice}' twice; write it once.")
