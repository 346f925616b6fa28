"""Code that params files and fleets name, and the flag that allows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.errors import ParamsError, UntrustedCodeError
from kdpipe.settings import as_many
from kdpipe.stages.console import say

_NAMES = {"data": "dataset", "model": "network", "student": "network", "teacher": "network"}
"""Settings whose value may be ``package.module:function``, and what that makes."""


def refuse_code_in(
    values: Mapping[str, Any], flags: Mapping[str, Any], *, file: Path | None, section: str, where: str = "section"
) -> None:
    """Refuse ``values`` of a section of a file that run code; report them where the flags have ``trust_code``.

    Values that a flag overrides are passed over.

    Raises:
        UntrustedCodeError: a value is the name of a function.
        ParamsError: the file itself says that code is trusted.
    """
    if "trust_code" in values:
        raise ParamsError(
            f"{file}: the {where} {section} has trust_code, which no file may say: remove it, and pass --trust-code on "
            "the command line if you trust the code."
        )
    for key, made in _NAMES.items():
        for name in as_many(values.get(key, ())):
            if key in flags or not isinstance(name, str) or not _runs_code(key, name):
                continue
            said = f"{file} says in the {where} {section} that its {made} is made by {name}"
            if not flags.get("trust_code"):
                raise UntrustedCodeError(
                    f"{said}: pass --trust-code to run that code if you trust it, or give --{key} on the command line."
                )
            say(f"{said}, whose code is run (--trust-code).")


def _runs_code(key: str, name: str) -> bool:
    if ":" not in name:
        return False
    if key == "data":
        from kdpipe.dataset import all_kinds

        kinds = all_kinds()
        named = any(kind.pattern is None and name.startswith(f"{kind.name}:") for kind in kinds)
        return not named and any(kind.pattern is not None and kind.pattern.fullmatch(name) for kind in kinds)
    from kdpipe.models.registry import runs_code

    return runs_code(name)
