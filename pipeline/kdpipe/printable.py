"""Foreign text for people: names, titles and messages from files, made harmless for terminals and spreadsheets."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories without a glyph: control and format characters (U+202E turns text around), and line separators."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet takes for a formula."""


def printable(text: object) -> str:
    """Return ``str(text)`` on one line, with every character that has no glyph as an escape such as ``\\x1b``."""
    written = str(text)
    if written.isascii() and written.isprintable():
        return written
    return "".join(map(_escaped, written))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, printable and cut at 200 characters; its type if it has none."""
    return printable(str(error).strip().partition("\n")[0] or type(error).__name__)[:200]


def printable_json(value: Any) -> str:
    """Return ``value`` as indented JSON in ASCII; NaN and infinity raise ``ValueError``."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)


def cell(text: object) -> str:
    """Return ``str(text)`` for a CSV file: as ``printable`` does, and with ``'`` before what would be a formula."""
    if isinstance(text, int | float):
        return str(text)
    written = printable(text)
    return f"'{written}" if str(text).startswith(_FORMULA) else written


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _ESCAPED:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
