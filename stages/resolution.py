"""From flags and a params file to a stage's parameters.

A flag wins over the stage's section of the params file, and the file over the default. Unknown keys and all
wrong values are reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from kdpipe.errors import ParamsError, did_you_mean
from stages.params import StageParams

P = TypeVar("P", bound=StageParams)


def resolve(model: type[P], *, section: str, file: Path | None, flags: Mapping[str, Any]) -> P:
    """Merge flags over the params file's section over the defaults.

    Raises:
        ParamsError: one line with every unknown key and every wrong value.
    """
    values = _section(file, section) if file is not None else {}
    problems = [
        f"{file}: {section}.{key} is unknown{did_you_mean(key, model.model_fields)}"
        for key in values
        if key not in model.model_fields
    ]
    known = {key: value for key, value in values.items() if key in model.model_fields}
    try:
        resolved = model.model_validate({**known, **flags})
    except ValidationError as error:
        for fault in error.errors():
            problems.append(_describe(fault["loc"], fault["msg"], fault["input"], flags, file, section))
        resolved = None
    if problems or resolved is None:
        raise ParamsError("; ".join(dict.fromkeys(problems)) + ".")
    return resolved


def in_words(error: ValidationError) -> str:
    """Return what is wrong with a stage's parameters, each by the name of its flag."""
    return "; ".join(_describe(fault["loc"], fault["msg"], fault["input"], {}, None, "") for fault in error.errors())


def _describe(
    place: Sequence[int | str],
    message: str,
    value: Any,
    flags: Mapping[str, Any],
    file: Path | None,
    section: str,
) -> str:
    if not place:
        return message.removeprefix("Value error, ")
    key = str(place[0])
    flag = "--" + key.replace("_", "-")
    name = flag if key in flags or file is None else f"{file}: {section}.{key}"
    if message == "Field required":
        return f"{flag} is missing: give it, or put {key} into a --params file"
    return f"{name}: {message.removeprefix('Value error, ')}, got {value!r}"


def _section(file: Path, section: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{file} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ParamsError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ParamsError(f"{file} has no section '{section}' of keys and values; found: {found}.")
    values: dict[str, Any] = content[section]
    return values
