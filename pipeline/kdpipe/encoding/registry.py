"""Encodings by name, and from the description in a manifest.

Names follow the grammar of ``kdpipe.spec``, such as ``sqrtp:8,4`` or ``sqrtp:bits=8,temperature=4``. Manifests record
the canonical form ``sqrtp8@4``, which is accepted as well. An encoding of your own must be registered (see
``kdpipe.encoding.base``) before its stores are opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import kdpipe.encoding.kinds  # noqa: F401 (registers the encodings)
from kdpipe.encoding.base import ENCODINGS, Encoding
from kdpipe.errors import CorruptStoreError, ParamsError, did_you_mean
from kdpipe.spec import Term

_MAX_NAME = 64
_VALUE = r"[0-9]+(?:\.[0-9]+)?"
_RECORDED_VALUES = re.compile(rf"{_VALUE}(?:@{_VALUE})*", re.ASCII)


def get_encoding(name: str) -> Encoding:
    """Return the encoding called ``name``, before calibration; its own ``name`` is the canonical one.

    Raises:
        ParamsError: the name is unknown (the message names the nearest and lists all forms), or a value is wrong.
    """
    recorded = _recorded(name)
    term = recorded or ENCODINGS.one(name)
    if term.name not in ENCODINGS:
        raise _unknown(name, did_you_mean(term.name, ENCODINGS.names))
    found = ENCODINGS.make(term)
    if recorded and found.name != name:
        raise _unknown(name, f"; did you mean '{found.name}'?")
    return found


def restore_encoding(description: Mapping[str, Any]) -> Encoding:
    """Return the encoding that ``describe`` described, calibration included.

    Raises:
        CorruptStoreError: ``describe`` returns no such description.
    """
    name = description.get("name")
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise CorruptStoreError("the encoding's description has no name.")
    try:
        found = get_encoding(name)
    except ParamsError as error:
        raise CorruptStoreError(f"the description of the encoding is not of a known one: {error}") from None
    found = found.restored(description)
    expected = found.describe()
    for key in sorted(expected.keys() | description.keys()):
        if key not in description or key not in expected or not _same(description[key], expected[key]):
            raise CorruptStoreError(f"the description of encoding '{name}' has an entry '{key}' that does not fit it.")
    return found


def _recorded(name: str) -> Term | None:
    """Return the term of a name as manifests record it: ``sqrtp8@4`` stands for ``sqrtp:8,4``."""
    for entry in sorted(ENCODINGS, key=lambda entry: len(entry.name), reverse=True):
        values = name.removeprefix(entry.name)
        if entry.parameters and values != name and _RECORDED_VALUES.fullmatch(values):
            return Term(entry.name, tuple(values.split("@")))
    return None


def _unknown(name: str, hint: str) -> ParamsError:
    known = ", ".join(entry.usage for entry in ENCODINGS)
    return ParamsError(f"unknown encoding '{name}'{hint or '.'} Known: {known}.")


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and bool(found == expected)
