"""One grammar for everything that is chosen by name: ``name:value,key=value+name...``.

Losses, view operations, encodings, curves, attacks and signals are all written like this:

    kd                                              a name
    rrc:0.25+flip+mixup:0.2                         several, joined with +
    dkd:alpha=1,beta=8,temperature=4                parameters by key
    randaug:2,9                                     or by position, in the order in which they are declared
    pgd:8/255,10                                    a number may be a fraction
    step:0.9,(1/2),every=30                         a value in parentheses may contain any of these signs

``kdpipe.registry`` has the things that names stand for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kdpipe.errors import ParamsError


@dataclass(frozen=True)
class Term:
    """One name with its values, as written."""

    name: str
    values: tuple[str, ...] = ()
    """Values by position."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Values by key."""

    def __str__(self) -> str:
        """Return the term as ``parse`` reads it."""
        written = ",".join([*map(_bracketed, self.values), *(f"{k}={_bracketed(v)}" for k, v in self.settings.items())])
        return f"{self.name}:{written}" if written else self.name


def parse(text: str, *, error: type[Exception] = ParamsError) -> tuple[Term, ...]:
    """Parse terms joined with ``+``.

    Raises:
        ParamsError: a name is missing, a key stands twice, or parentheses are unbalanced; or ``error`` in its place.
    """
    return tuple(_term(part, text, error) for part in _split(text, "+", error))


def number(text: str) -> float:
    """Return ``A`` or the fraction ``A/B`` as a finite number.

    Raises:
        ValueError: it is none.
    """
    above, line, below = text.partition("/")
    try:
        value = float(above) / float(below) if line else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError("a number") from None
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def shortest(value: float) -> str:
    """Return a number in as few digits as read back to it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _term(part: str, text: str, error: type[Exception]) -> Term:
    name, colon, rest = (each.strip() for each in part.strip().partition(":"))
    if not name:
        raise error(f"'{text}' has a name missing: write NAME:VALUE,KEY=VALUE, several joined with '+'.")
    values: list[str] = []
    settings: dict[str, str] = {}
    for piece in _split(rest, ",", error) if colon else ():
        key, equals, value = _assignment(piece)
        if not equals:
            values.append(_inner(piece))
        elif key in settings:
            raise error(f"'{name}' has {key} twice in '{text}': write it once.")
        else:
            settings[key] = _inner(value)
    return Term(name, tuple(values), settings)


def _assignment(piece: str) -> tuple[str, str, str]:
    """Split ``key=value``; an equals sign in parentheses belongs to the value."""
    key, equals, value = piece.strip().partition("=")
    return ("", "", piece) if "(" in key else (key.strip(), equals, value)


def _inner(value: str) -> str:
    value = value.strip()
    return value[1:-1].strip() if value.startswith("(") and value.endswith(")") else value


def _bracketed(value: str) -> str:
    return f"({value})" if any(sign in value for sign in ",+=") else value


def _split(text: str, sign: str, error: type[Exception]) -> list[str]:
    """Split at a sign outside parentheses; the sign of an exponent, as in ``1e+3``, is no joint."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
        exponent = (
            place > 1
            and text[place - 1] in "eE"
            and text[place - 2].isdigit()
            and text[place + 1 : place + 2].isdigit()
        )
        if character == sign and not depth and not exponent:
            parts.append(text[start:place])
            start = place + 1
    if depth:
        raise error(f"the parentheses in '{text}' are not balanced.")
    return [*parts, text[start:]]
