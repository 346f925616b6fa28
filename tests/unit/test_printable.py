"""Foreign text is harmless for terminals and spreadsheets, and stays readable."""

import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdpipe.printable import cell, first_line, printable, printable_json

HOSTILE = "\x1b[2J\x1b]0;owned\x07 \u202egpj.exe\r\nDone. \u2028\x85\x00\u200b"


@pytest.mark.parametrize("text", ["resnet8", "Grüße, 漢字 (é) – 50 %", "a\\b", ""])
def test_readable_text_stays(text: str) -> None:
    assert printable(text) == text


def test_what_a_terminal_obeys_is_written_out() -> None:
    expected = r"\x1b[2J\x1b]0;owned\x07 \u202egpj.exe\x0d\x0aDone. \u2028\x85\x00\u200b"
    assert printable(HOSTILE) == expected
    assert printable("\udcff\U000e0041") == r"\udcff\U000e0041"


@given(st.text())
@example(HOSTILE)
def test_no_character_without_a_glyph_is_left(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in shown)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown
    shown.encode()


def test_an_error_is_one_short_line() -> None:
    assert first_line(ValueError("\n  broken\x1b[2J at 3\n  and more")) == r"broken\x1b[2J at 3"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert first_line(OSError("x" * 500)) == "x" * 200


@given(st.text())
@example("=HYPERLINK(1)")
@example("\t=1")
def test_no_cell_is_a_formula(text: str) -> None:
    assert not cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_numbers_stay_numbers() -> None:
    assert (cell(-1.5), cell(3), cell(True)) == ("-1.5", "3", "True")


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_ascii_and_the_same(value: dict[str, str]) -> None:
    written = printable_json(value)
    assert written.isascii()
    assert not any(ord(character) < 32 and character != "\n" for character in written)
    assert json.loads(written) == value
