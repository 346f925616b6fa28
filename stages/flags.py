"""Flags and params files: a stage's settings as the command line and YAML give them.

A flag overrides the stage's section of the params file, and the file the default. All unknown keys and wrong values are
reported together.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kdpipe.errors import ParamsError, did_you_mean
from kdpipe.printable import printable
from kdpipe.reading import read_yaml
from kdpipe.settings import Parsed, Setting, Settings, element, expected
from kdpipe.stages.trust import refuse_code_in

S = TypeVar("S", bound=Settings)

_MOST_SHOWN = 100
"""Characters of a wrong value in a message."""


def parser_of(stage: type[Settings], *, command: str, example: str) -> argparse.ArgumentParser:
    """Return the parser of a stage's flags, with its help in groups; every flag is optional and read as text."""
    parser = _Parser(
        prog=f"kdpipe {command}",
        usage=f"kdpipe {command} [flags]",
        description=(stage.__doc__ or "").partition("\n")[0],
        epilog=f"example:\n\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    section = command.replace("-", "_")
    parser.add_argument(
        "--params", type=Path, metavar="FILE", help=f"YAML file whose section '{section}' gives settings; flags win."
    )
    groups: dict[str, Any] = {"": parser}
    for setting in _in_order(stage):
        if setting.title not in groups:
            groups[setting.title] = parser.add_argument_group(setting.title)
        _add(groups[setting.title], setting)
        if _is_positional(setting):
            name = setting.key.upper()
            parser.usage = f"kdpipe {command} {name} [flags]"
            parser.add_argument(setting.key, nargs="?", metavar=name, help=f"The same as --{setting.key}.")
    return parser


def resolve(stage: type[S], *, section: str, file: Path | None, flags: Mapping[str, Any]) -> S:
    """Merge flags over the params file's section over the defaults.

    Raises:
        ParamsError: one line with every unknown key and every wrong value.
        UntrustedCodeError: the file names code, and --trust-code is not a flag.
    """
    values = {} if file is None else _section(file, section)
    known = stage.flat()
    refuse_code_in(values, flags, file=file, section=section)
    problems = [f"{file}: {section}.{key} is unknown{did_you_mean(key, known)}" for key in values if key not in known]
    try:
        resolved = stage.of({**{key: value for key, value in values.items() if key in known}, **flags})
    except ValidationError as error:
        names = {key: f"{file}: {section}.{key}" for key in values if key not in flags}
        problems += in_words(error, stage, names=names)
        resolved = None
    if problems or resolved is None:
        raise ParamsError(as_sentence(problems))
    return resolved


def in_words(error: ValidationError, stage: type[Settings], *, names: Mapping[str, str] = {}) -> list[str]:
    """Return one line for each fault of a stage's settings, by ``names`` of their keys or else by their flags."""
    groups = {setting.group for setting in stage.flat().values()}
    lines = []
    for fault in error.errors():
        if fault["type"] == "too_short" and fault["input"]:
            continue  # its values are wrong, and reported themselves
        place = fault["loc"][1:] if fault["loc"] and fault["loc"][0] in groups else fault["loc"]
        key = str(place[0]) if place else None
        setting = None if key is None else stage.flat().get(key)
        if key is None:
            lines.append(fault["msg"].removeprefix("Value error, "))
        elif fault["type"] == "missing":
            lines.append(f"{flag(key)} is missing: give it, or put {key} into a --params file")
        elif setting is None:
            lines.append(f"{names.get(key, flag(key))}: there is no such setting{did_you_mean(key, stage.flat())}")
        else:
            lines.append(f"{names.get(key, flag(key))}: {_wrong(setting, fault)}")
    return list(dict.fromkeys(lines))  # a union reports each of its types


def as_sentence(lines: Sequence[str]) -> str:
    """Return faults in one line, each once, with a mark at its end."""
    text = "; ".join(dict.fromkeys(lines))
    return text if text.endswith("?") else f"{text}."


def flag(key: str) -> str:
    """Return the flag of a setting."""
    return "--" + key.replace("_", "-")


def _is_positional(setting: Setting) -> bool:
    """Return whether a setting may be given without its flag."""
    extra = setting.field.json_schema_extra
    return isinstance(extra, dict) and extra.get("positional") is True


class _Parser(argparse.ArgumentParser):
    """Refuses wrong flags with a ``ParamsError`` that names the nearest."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split("=")[0].split()[0]
        hint = did_you_mean(unknown, self._option_string_actions) if unknown.startswith("--") else ""
        raise ParamsError(f"{message}{hint}. See {self.prog} --help.")


def _in_order(stage: type[Settings]) -> list[Setting]:
    """Return the settings in the order of the help: the stage's own first, then group by group."""
    titles = ("", "Data", "Teacher", "Logits", "Soft targets", "Teacher network", "Loss", "Views")
    places = {title: place for place, title in enumerate(titles)}
    return sorted(stage.flat().values(), key=lambda each: places.get(each.title, len(titles)))


def _add(group: Any, setting: Setting) -> None:
    field = setting.field
    text = " ".join((field.description or "").split())
    if field.is_required():
        text = text.removesuffix(".") + " (required)."
    elif field.default not in (None, False, ()) and "default" not in text:
        shown = " and ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = text.removesuffix(".") + f" (default: {str(shown).lower()})."
    kind = field.annotation
    names = (flag(setting.key),)
    help_text = text.replace("%", "%%")
    if kind in (bool, bool | None):
        group.add_argument(*names, action=argparse.BooleanOptionalAction, help=help_text)
    elif get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
        group.add_argument(*names, action="append", metavar=_metavar(get_args(kind)[0]), help=help_text)
    else:
        metavar = next((each.metavar for each in _metadata(kind, field.metadata) if isinstance(each, Parsed)), None)
        group.add_argument(*names, metavar=metavar or _metavar(kind), help=help_text)


def _metadata(kind: Any, metadata: Sequence[Any]) -> list[Any]:
    """Return the annotations of a type, also those within ``X | None``."""
    found = list(metadata)
    for each in (kind, *get_args(kind)):
        if get_origin(each) is Annotated:
            found += get_args(each)[1:]
    return found


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return _metavar(get_args(kind)[0]) if get_args(kind)[-1] is Ellipsis else "R,G,B"
    inner = [each for each in get_args(kind) if each is not type(None)]
    if inner:
        return _metavar(inner[0])
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _wrong(setting: Setting, fault: ErrorDetails) -> str:
    """Return what a setting takes and what was found, with the nearest of its choices."""
    value = fault["input"]
    if fault["type"] == "value_error":  # the messages of the project's own parsers contain the value
        return fault["msg"].removeprefix("Value error, ")
    wanted = "at least one value" if fault["type"] == "too_short" else expected(setting.field) or fault["msg"]
    if fault["type"] == "finite_number":
        wanted = wanted.replace("a number", "a finite number")
    kind, _ = element(setting.field)
    hint = did_you_mean(str(value), map(str, get_args(kind))) if get_origin(kind) is Literal else ""
    return f"expected {wanted}, found {_shown(value)}{hint}"


def _shown(value: Any) -> str:
    """Return a value of a flag or of YAML in a few characters of one line."""
    if value is None or value in ((), [], ""):
        return "none"
    text = str(value).lower() if isinstance(value, bool) else printable(repr(value))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _section(file: Path, section: str) -> dict[str, Any]:
    content = read_yaml(file, error=ParamsError)
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ParamsError(f"{file} has no section '{section}' of keys and values; found: {found}.")
    values: dict[str, Any] = content[section]
    return values
