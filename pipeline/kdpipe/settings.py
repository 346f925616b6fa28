"""Settings: each is one field of a frozen model, its help the docstring under it, its value already parsed.

Every room has its own models. A stage is composed of them, and flags, ``params.yaml``, help and documentation are made
from the fields. Importing a model imports neither torch nor zarr: types that need them are parsed by ``Parsed``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from kdpipe.errors import KdpipeError
from kdpipe.spec import shortest


class Settings(BaseModel):
    """Base of all settings: frozen, without unknown fields, each field described by its docstring.

    A model may be composed of others. From outside, its settings are flat: ``lr``, not ``optimization.lr``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def flat(cls) -> dict[str, Setting]:
        """Return every setting by its key: first those of the model itself, then those of each group."""
        own: dict[str, Setting] = {}
        grouped: dict[str, Setting] = {}
        for name, field in cls.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                title = (kind.__doc__ or "").partition("\n")[0]
                grouped |= {key: Setting(key, title, each, name) for key, each in kind.model_fields.items()}
            else:
                own[name] = Setting(name, "", field, None)
        return own | grouped

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the model with ``values`` by key.

        Raises:
            ValidationError: a value is wrong or missing, or there is no such setting; all faults are reported at once.
        """
        known = cls.flat()
        nested: dict[str, Any] = {each.group: {} for each in known.values() if each.group is not None}
        for key, value in values.items():
            group = known[key].group if key in known else None
            (nested if group is None else nested[group])[key] = value
        return cls.model_validate(nested)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given, by key, without those that have their defaults."""
        found: dict[str, Any] = {}
        for key, setting in self.flat().items():
            holder = self if setting.group is None else getattr(self, setting.group)
            if key in holder.model_fields_set:
                found[key] = getattr(holder, key)
        return found

    def but(self, **values: Any) -> Self:
        """Return the model with other values for some keys."""
        return self.of({**self.given, **values})

    def dump(self) -> dict[str, Any]:
        """Return all settings by key, as JSON values, without those that no file keeps."""
        written = self.model_dump(mode="json")
        return {
            key: written[key] if each.group is None else written[each.group][key]
            for key, each in self.flat().items()
            if not each.field.exclude
        }


@dataclass(frozen=True)
class Setting:
    """One setting of a composed model."""

    key: str
    title: str
    """Title of its group, the first line of the group's docstring; empty for the model's own."""
    field: FieldInfo
    group: str | None
    """Name of the attribute that holds its group."""


def expected(field: FieldInfo) -> str:
    """Return the values that a setting takes, each of them where it takes several: ``a number above 0 and below 1``.

    Empty for a type that has no such words.
    """
    kind, limits = element(field)
    if get_origin(kind) is Literal:
        *others, last = map(str, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if kind is str:
        bounds = {"min_length": "at least", "max_length": "at most"}
        lengths = [f"{words} {limits[name]:,} characters" for name, words in bounds.items() if name in limits]
        return f"text of {' and '.join(lengths)}" if lengths else "text"
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_range(limits)}"
    return {bool: "true or false", Path: "a path"}.get(kind, "")


def _range(limits: Mapping[str, Any]) -> str:
    """Return the words for the limits of a number."""
    if {"ge", "le"} <= limits.keys():
        return f" of {shortest(limits['ge'])} to {shortest(limits['le'])}"
    words = {"gt": " above {}", "ge": " of {} or more", "lt": " below {}", "le": " of {} or less"}
    return " and".join(words[name].format(shortest(limits[name])) for name in words if name in limits)


def element(field: FieldInfo) -> tuple[Any, dict[str, Any]]:
    """Return the type of a setting's values without ``None`` and ``tuple``, and their limits by name, such as gt."""
    kind, found = field.annotation, list(field.metadata)
    while True:
        inner = [each for each in get_args(kind) if each not in (type(None), Ellipsis)]
        if get_origin(kind) is Annotated:
            kind, *annotations = get_args(kind)
            found += [more for each in annotations for more in getattr(each, "metadata", [each])]
        elif inner and get_origin(kind) is not Literal:
            found = [] if get_origin(kind) is tuple else found
            kind = Path if Path in inner else inner[0]
        else:
            break
    names = ("gt", "ge", "lt", "le", "min_length", "max_length")
    limits = {name: getattr(each, name) for each in found for name in names if getattr(each, name, None) is not None}
    return kind, limits


@dataclass(frozen=True)
class Parsed:
    """Parses text with a function that is imported when it is needed: ``Annotated[Any, Parsed("module:function")]``.

    Lists and mappings of YAML are refused; other values that are no text pass as they are. In JSON the value is its
    ``str``.
    """

    function: str
    """``package.module:name``, or ``package.module:Class.method``."""
    metavar: str = "TEXT"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of a value that is parsed if it is text or a number."""
        return core_schema.no_info_plain_validator_function(
            self._parse, serialization=core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        )

    def _parse(self, value: Any) -> Any:
        if isinstance(value, list | dict):
            raise ValueError(f"write {self.metavar} as text, not as a list or a mapping of YAML")
        if not isinstance(value, str | int | float):
            return value
        module, _, name = self.function.partition(":")
        parse = attrgetter(name)(importlib.import_module(module))
        try:
            return parse(value.strip() if isinstance(value, str) else f"{value:.12g}")
        except KdpipeError as error:
            raise ValueError(str(error).rstrip(".")) from None


def as_many(value: Any) -> Any:
    """Return a lone value as one of a sequence."""
    return value if isinstance(value, list | tuple) else (value,)


def _split(value: Any) -> Any:
    """Return one list of numbers: on the command line they are separated by commas, or the flag is repeated."""
    parts = value if isinstance(value, list | tuple) else [value]
    split: list[Iterable[Any]] = [
        [each.strip() for each in part.split(",")] if isinstance(part, str) else [part] for part in parts
    ]
    return [number for part in split for number in part]


def _channels(value: Any) -> Any:
    """Return three numbers."""
    numbers = _split(value)
    if len(numbers) != 3:
        found = ",".join(map(str, numbers))
        raise ValueError(f"expected three numbers separated by commas, as in 0.5,0.5,0.5, got '{found}'")
    return numbers


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values in their order, each once."""
    return tuple(dict.fromkeys(values))


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(_split)]
Epochs = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_split)]
"""Epochs, separated by commas."""
Channels = Annotated[tuple[float, float, float], BeforeValidator(_channels)]
"""Three numbers, one each for red, green and blue, separated by commas."""
Counts = Annotated[tuple[Positive, ...], BeforeValidator(_split), AfterValidator(_once), Field(min_length=1)]
"""Whole numbers, separated by commas, each once."""
Choices = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_once), Field(min_length=1)]
"""Names, separated by commas, each once."""
Names = Annotated[tuple[str, ...], BeforeValidator(as_many)]
"""One name or several; in YAML a lone name needs no list."""
Paths = Annotated[tuple[Path, ...], BeforeValidator(as_many)]


def _path_or_url(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and "://" not in value else value


def without_password(place: Path | str) -> str:
    """Return a path or URL as it may be printed and recorded: without password and query."""
    if isinstance(place, Path) or "://" not in place:
        return str(place)
    scheme, _, rest = re.sub(r"[?#][^/]*", "", place).partition("://")
    host, slash, path = rest.partition("/")
    user, at, name = host.rpartition("@")
    shown = f"{user.partition(':')[0]}@" if at and scheme == "ssh" else ""
    return f"{scheme}://{shown}{name}{slash}{path}"


PathOrUrl = Annotated[
    Path | str, BeforeValidator(_path_or_url), PlainSerializer(without_password, return_type=str, when_used="json")
]
PathsOrUrls = Annotated[tuple[PathOrUrl, ...], BeforeValidator(as_many)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_many)]
