"""Encodings by name and from the description in a manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from kdpipe.encoding.base import Encoding
from kdpipe.encoding.dense import Dense
from kdpipe.encoding.sqrtp import SqrtP
from kdpipe.encoding.tailp import TailP
from kdpipe.encoding.topk import TopK
from kdpipe.errors import CorruptStoreError, ParamsError, did_you_mean

FORMS = ("fp32", "fp16", "fp16r<1-9>", "sqrtp<2-8>@<T0>", "tailp<2-8>@<T>", "topk<k>")
"""The forms of a name, for help texts."""

_MAX_K = 65_535
_TEMPERATURES = (0.01, 1000.0)


def _sqrtp(bits: str, temperature: str) -> SqrtP | None:
    value = _temperature(temperature)
    return None if value is None else SqrtP.nominal(int(bits), value)


def _tailp(bits: str, temperature: str) -> TailP | None:
    value = _temperature(temperature)
    return None if value is None else TailP.nominal(int(bits), value)


def _temperature(text: str) -> float | None:
    value = float(text)
    plain = float(f"{value:g}") == value and "e" not in f"{value:g}"
    return value if plain and _TEMPERATURES[0] <= value <= _TEMPERATURES[1] else None


def _topk(k: str) -> TopK | None:
    return TopK(int(k)) if int(k) <= _MAX_K else None


_PATTERNS: dict[str, Callable[..., Encoding | None]] = {
    r"fp32": lambda: Dense("float32"),
    r"fp16": lambda: Dense("float16"),
    r"fp16r([1-9])": lambda bits: Dense("float16", mantissa=int(bits)),
    r"sqrtp([2-8])@([0-9]{1,6}(?:\.[0-9]{1,6})?)": _sqrtp,
    r"tailp([2-8])@([0-9]{1,6}(?:\.[0-9]{1,6})?)": _tailp,
    r"topk([1-9][0-9]{0,5})": _topk,
}

_EXAMPLES = (
    *("fp32", "fp16", *(f"fp16r{bits}" for bits in range(1, 10))),
    *(f"sqrtp{bits}@{temperature}" for bits in range(2, 9) for temperature in (1, 2, 4, 8, 16)),
    *(f"tailp{bits}@{temperature}" for bits in range(2, 9) for temperature in (1, 2, 4, 8, 16, 32)),
    *("topk5", "topk10", "topk50", "topk100"),
)


def get(name: str) -> Encoding:
    """Return the encoding called ``name``, before calibration; its own ``name`` is the canonical one.

    Raises:
        ParamsError: there is none; the message names the nearest and all forms.
    """
    for pattern, make in _PATTERNS.items():
        match = re.fullmatch(pattern, name, flags=re.ASCII)
        found = make(*match.groups()) if match else None
        if found is not None:
            return found
    hint = did_you_mean(name, _EXAMPLES) or "."
    raise ParamsError(
        f"unknown encoding '{name}'{hint} Known: {', '.join(FORMS)}, with T0 and T from {_TEMPERATURES[0]:g} to "
        f"{_TEMPERATURES[1]:g} in at most six digits and k up to {_MAX_K}."
    )


def from_description(description: Mapping[str, Any]) -> Encoding:
    """Return the encoding that ``describe`` described, calibration included.

    Raises:
        CorruptStoreError: the description is not one that ``describe`` returns.
    """
    name = description.get("name")
    if not isinstance(name, str) or len(name) > 64:
        raise CorruptStoreError("the encoding's description has no name.")
    try:
        found = get(name)
    except ParamsError as error:
        raise CorruptStoreError(f"the encoding's description is of no known encoding: {error}") from None
    if isinstance(found, SqrtP):
        found = _with_table(found, description, name)
    elif isinstance(found, TailP):
        found = TailP(_with_table(found.levels, description, name))
    expected = found.describe()
    for key in sorted(expected.keys() | description.keys()):
        if key not in description or key not in expected or not _same(description[key], expected[key]):
            raise CorruptStoreError(f"the description of encoding '{name}' has an entry '{key}' that does not fit it.")
    return found


def _with_table(levels: SqrtP, description: Mapping[str, Any], name: str) -> SqrtP:
    return SqrtP(levels.bits, levels.temperature, _table(description.get("table"), 2**levels.bits, name))


def _table(values: Any, levels: int, name: str) -> tuple[float, ...]:
    """Check a decode table: float32 values, finite, not decreasing, zero at the end."""
    if not isinstance(values, list) or len(values) != levels or not all(type(value) is float for value in values):
        raise CorruptStoreError(f"the table of encoding '{name}' is not a list of {levels} floats.")
    limit = float(np.finfo(np.float32).max)
    if not all(math.isfinite(value) and abs(value) <= limit and float(np.float32(value)) == value for value in values):
        raise CorruptStoreError(f"the table of encoding '{name}' has values that are not finite float32.")
    if values[-1] != 0 or any(after < before for before, after in pairwise(values)):
        raise CorruptStoreError(f"the table of encoding '{name}' does not rise to zero.")
    return tuple(values)


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and bool(found == expected)
