"""Settings of the encoding: their defaults and help texts, and that they cost no import of torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.encoding.base import ENCODINGS
from kdpipe.encoding.registry import get_encoding
from kdpipe.encoding.settings import EncodingSettings


def test_the_defaults_are_an_encoding_for_any_temperature() -> None:
    settings = EncodingSettings()
    assert get_encoding(settings.encoding).max_temperature is None
    assert settings.max_kl is None
    assert settings.at_temperature == (1.0, 4.0)


def test_the_help_lists_every_encoding() -> None:
    text = EncodingSettings.model_fields["encoding"].description
    assert text is not None
    assert all(entry.usage in text for entry in ENCODINGS)


def test_every_field_has_a_help_of_one_line() -> None:
    for name, field in EncodingSettings.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description


@pytest.mark.parametrize(
    "wrong", [{"max_kl": 0}, {"max_kl": -1}, {"at_temperature": ()}, {"at_temperature": (0.0,)}, {"encodings": "fp16"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EncodingSettings(**wrong)


def test_neither_settings_nor_figures_import_torch() -> None:
    program = (
        "import sys, kdpipe.encoding.settings, kdpipe.encoding.base, kdpipe.encoding.fidelity; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
