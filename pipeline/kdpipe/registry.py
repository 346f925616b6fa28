"""Things that are chosen by name: each registers a function or a dataclass, whose signature has its parameters.

    LOSSES = Registry("loss")

    @LOSSES.register("kd", source="Hinton et al., 2015")
    def kd(temperature: Positive = 4.0) -> Loss:
        \"\"\"One line of help.\"\"\"

``LOSSES.make("kd:temperature=2")`` reads the grammar of ``kdpipe.spec``; all kinds refuse mistakes in the same words.
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from kdpipe.errors import ParamsError, did_you_mean
from kdpipe.spec import Term, number, parse, shortest

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers that a parameter may be: ``Annotated[float, Range("above 0", lambda x: x > 0)]``."""

    description: str
    holds: Callable[[float], bool]

    def __contains__(self, value: object) -> bool:
        """Return whether ``value`` is a finite number in the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and math.isfinite(value) and self.holds(float(value))  # type: ignore[arg-type]


def between(low: float, high: float) -> Range:
    """Return the range from ``low`` to ``high``, both included."""
    return Range(f"{low:g} to {high:g}", lambda value: low <= value <= high)


Positive = Annotated[float, Range("above 0", lambda value: value > 0)]
NotNegative = Annotated[float, Range("0 or more", lambda value: value >= 0)]
Share = Annotated[float, between(0, 1)]
Count = Annotated[int, Range("1 or more", lambda value: value >= 1)]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a registered thing."""

    name: str
    type: Any
    """``float``, ``int``, ``bool``, ``str``, or a class with a ``parse`` method for text in the same grammar."""
    default: Any
    """``inspect.Parameter.empty`` where it must be given."""
    range: Range | None = None
    many: bool = False
    """Whether it takes all values that are given by position: ``*layers``."""
    keyed: bool = False
    """Whether it is written by its key only."""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty and not self.many

    def __str__(self) -> str:
        """Return its name and the values that it takes, for messages."""
        return self.name if self.range is None else f"{self.name} ({self.range.description})"

    def read(self, written: Any) -> Any:
        """Convert text, or check a value that is given from Python.

        Raises:
            ValueError: it is not of the parameter's type, or out of its range; the message says what is expected.
        """
        value = _read(self.type, written) if isinstance(written, str) else written
        whole = self.type is int
        numbers = int if whole else (int, float)
        if self.type in (int, float) and (isinstance(value, bool) or not isinstance(value, numbers)):
            raise ValueError("a whole number" if whole else "a number")
        if self.type is bool and not isinstance(value, bool):
            raise ValueError("true or false")
        if self.range is not None and isinstance(value, int | float) and value not in self.range:
            raise ValueError(f"{'a whole number' if whole else 'a number'}, {self.range.description}")
        return value


@dataclass(frozen=True)
class Entry(Generic[T]):
    """Something registered: what makes it, and what ``kdpipe list`` says about it."""

    name: str
    make: Callable[..., T]
    parameters: tuple[Parameter, ...]
    help: str
    """One line."""
    source: str
    """Paper or repository, empty where it has none."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further columns of ``kdpipe list``: values by title."""

    @property
    def usage(self) -> str:
        """Its form, with required parameters in capitals and optional ones with their defaults."""
        given = [_usage(each) for each in sorted(self.parameters, key=lambda each: not each.required)]
        return f"{self.name}:{','.join(given)}" if given else self.name


class Registry(Generic[T]):
    """The things of one kind, by name."""

    def __init__(self, kind: str, *, error: type[Exception] = ParamsError, modules: Sequence[str] = ()) -> None:
        """Hold things of a ``kind``, such as "loss"; refuse what is written wrongly with ``error``.

        ``modules`` are the names of those that register something. They are imported with the first look-up, since they
        may need torch, and entries are in their order.
        """
        self.kind, self.error = kind, error
        self._modules = tuple(modules)
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, *, source: str = "") -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Register a function or a dataclass under ``name``; the first line of its docstring is its help."""

        def add(make: Callable[..., T]) -> Callable[..., T]:
            self.add(name, make, source=source)
            return make

        return add

    def add(
        self,
        name: str,
        make: Callable[..., T],
        *,
        skip: int = 0,
        before: Sequence[Parameter] = (),
        source: str = "",
        help_line: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> Entry[T]:
        """Register ``make``; its first ``skip`` parameters are not settings, such as the tensors of a loss.

        Parameters ``before`` those of its signature are passed to it as well. ``help_line`` stands in for the first
        line of its docstring.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} '{name}' already")
        help_line = help_line or (inspect.getdoc(make) or "").partition("\n")[0]
        parameters = (*before, *parameters_of(make)[skip:])
        self._entries[name] = Entry(name, make, parameters, help_line, source, facts or {})
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry[T]]:
        """Iterate over the entries in the order of their registration."""
        return iter(self._all.values())

    def __contains__(self, name: object) -> bool:
        """Return whether something is registered under ``name``."""
        return name in self._all

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of their registration."""
        return tuple(self._all)

    def __getitem__(self, name: str) -> Entry[T]:
        """Return the entry called ``name``; raises ``error`` with the nearest name where there is none."""
        if name not in self._all:
            hint = did_you_mean(name, self._all) or "."
            raise self.error(f"unknown {self.kind} '{name}'{hint} Known: {', '.join(self._all)}.")
        return self._all[name]

    def bind(self, term: Term, *, besides: Sequence[str] = ()) -> tuple[Entry[T], dict[str, Any], dict[str, str]]:
        """Return the entry of a term, its arguments by name, and the settings called like one of ``besides``.

        Arguments that are not written are left out. An argument of ``many`` is a tuple.

        Raises:
            the registry's ``error``: a name, a key or a value is wrong. See ``require`` for those that are missing.
        """
        entry = self[term.name]
        settings = dict(term.settings)
        extra = {key: settings.pop(key) for key in besides if key in settings}
        given: dict[str, Any] = {}
        many = next((each for each in entry.parameters if each.many), None)
        if many is not None:
            given[many.name] = tuple(self.value(entry, many, value) for value in term.values)
        placed = [each for each in entry.parameters if not each.keyed]
        if many is None and len(term.values) > len(placed):
            raise self.error(
                f"the {self.kind} {entry.name} takes {len(placed) or 'no'} values without a key"
                f"{' at most' if placed else ''}, found {len(term.values)}: write {entry.usage}."
            )
        positional = [] if many else list(zip(placed, term.values, strict=False))
        for parameter, value in positional:
            if parameter.name in settings:
                raise self.error(f"the {self.kind} {entry.name} has {parameter.name} twice: write {entry.usage}.")
            given[parameter.name] = self.value(entry, parameter, value)
        return entry, given | self.check(entry, settings, besides=besides), extra

    def check(self, entry: Entry[T], settings: Mapping[str, Any], *, besides: Sequence[str] = ()) -> dict[str, Any]:
        """Return settings by key as values of their parameters' types.

        Raises:
            the registry's ``error``: a key is unknown (the message names the nearest), or a value is wrong.
        """
        known = {each.name: each for each in entry.parameters if not each.many}
        for key in settings:
            if key not in known:
                hint = did_you_mean(key, (*known, *besides)) or "."
                listed = ", ".join([*map(str, known.values()), *besides]) or "none"
                raise self.error(
                    f"the {self.kind} {entry.name} has no parameter '{key}'{hint} Its parameters: {listed}."
                )
        return {key: self.value(entry, known[key], value) for key, value in settings.items()}

    def require(self, entry: Entry[T], given: Mapping[str, Any]) -> None:
        """Raise the registry's ``error`` where a parameter without a default is not ``given``."""
        missing = [each.name for each in entry.parameters if each.required and each.name not in given]
        if missing:
            raise self.error(f"the {self.kind} {entry.name} lacks {missing[0]}: write {entry.usage}.")

    def make(self, term: Term | str, **settings: Any) -> T:
        """Return what a term stands for, or, from Python, what is registered under a name with ``settings``.

        Raises:
            the registry's ``error``: as for ``bind``.
        """
        entry, given, _ = self.bind(term if isinstance(term, Term) else self.one(term))
        given |= self.check(entry, settings)
        self.require(entry, given)
        many = next((each.name for each in entry.parameters if each.many), None)
        return entry.make(*given.pop(many, ()), **given) if many else entry.make(**given)

    def one(self, text: str) -> Term:
        """Parse text that must be a single term; raises ``error`` where it is several."""
        terms = parse(text, error=self.error)
        if len(terms) > 1:
            raise self.error(f"'{text}' is {len(terms)} terms, expected one {self.kind}: leave out what follows a '+'.")
        return terms[0]

    @property
    def _all(self) -> dict[str, Entry[T]]:
        """The entries by name, of all modules that register some."""
        if self._modules:
            for module in self._modules:
                importlib.import_module(module)
            order = {module: place for place, module in enumerate(self._modules)}
            place = {name: order.get(each.make.__module__, len(order)) for name, each in self._entries.items()}
            self._entries = {name: self._entries[name] for name in sorted(self._entries, key=place.__getitem__)}
            self._modules = ()
        return self._entries

    def value(self, entry: Entry[T], parameter: Parameter, written: Any) -> Any:
        """Return a value of a parameter; raises ``error`` where it has another type or is out of range."""
        try:
            return parameter.read(written)
        except ValueError as error:
            raise self.error(
                f"the {self.kind} {entry.name} cannot take {parameter.name}={written}, expected {error}."
            ) from None


def parameters_of(make: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a function's or a dataclass's signature, in order, with their types and ranges."""
    hints = typing.get_type_hints(make, include_extras=True)
    found = []
    for each in inspect.signature(make).parameters.values():
        hint, allowed = _given(hints.get(each.name, str)), None
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            allowed = next((extra for extra in extras if isinstance(extra, Range)), None)
        many, keyed = (each.kind is kind for kind in (each.VAR_POSITIONAL, each.KEYWORD_ONLY))
        found.append(Parameter(each.name, _given(hint), each.default, allowed, many, keyed))
    return tuple(found)


def _given(hint: Any) -> Any:
    """Return ``X`` for ``X | None``, with its annotations."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return next(kind for kind in get_args(hint) if kind is not NoneType)


def _read(kind: Any, text: str) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    if kind is int:
        return int(text) if text.removeprefix("-").isdecimal() else _whole(text)
    if kind is float:
        return number(text)
    if hasattr(kind, "parse"):
        try:
            return kind.parse(text)
        except ParamsError as error:
            raise ValueError(str(error).rstrip(".")) from None
    return text


def _whole(text: str) -> int:
    """Return a whole number that is written as one with a point or an exponent, such as ``2.0``."""
    try:
        value = number(text)
    except ValueError:
        value = math.nan
    if not value.is_integer():
        raise ValueError("a whole number")
    return int(value)


def _usage(parameter: Parameter) -> str:
    name, capitals = parameter.name, parameter.name.upper()
    if parameter.many:
        return f"[{capitals}...]"
    if parameter.required:
        return f"{name}={capitals}" if parameter.keyed else capitals
    return f"[{name}={capitals}]" if parameter.default is None else f"{name}={_shown(parameter.default)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).lower()
    fraction = str(Fraction(value).limit_denominator(1000))
    return min(shortest(value), fraction, key=len) if number(fraction) == value else shortest(value)
