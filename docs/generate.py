"""The reference pages, made from the code: commands, settings, lists, and the changelog.

    python docs/generate.py

writes them into ``docs/generated``, which git ignores; ``make docs`` does so before it builds the site.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "generated"

_INTRODUCTIONS = {
    "commands": "Every command prints this text with `--help`. Flags may be written in any order.",
    "settings": (
        "`--params FILE` reads the section of the command's name from a YAML file; flags override it. Every setting is "
        "the flag of the same name, with hyphens instead of underscores."
    ),
    "lists": (
        "`kdpipe list KIND` prints these tables, with `--json` for programs. Parameters in capitals must be given; the "
        "others have the value that is shown, or none where they stand in brackets. Several are joined with `+`."
    ),
}


def main() -> None:
    """Write every page."""
    OUT.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (OUT / f"{name}.md").write_text(page().rstrip("\n") + "\n", encoding="utf-8")


def _commands() -> str:
    """Return the help of every command."""
    from kdpipe.stages import cli

    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", _INTRODUCTIONS["commands"]]
    for name in sorted(_command_names()):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        parts += [f"## kdpipe {name}", f"```text\n{text.getvalue().strip()}\n```"]
    return "\n\n".join(parts)


def _command_names() -> list[str]:
    import typer

    from kdpipe.stages import cli

    return list(typer.main.get_group(cli.app).commands)


def _settings() -> str:
    """Return every setting of every stage, in the groups of the help."""
    from kdpipe.stages.cli import EXAMPLES, settings_of

    parts = ["# Settings", _INTRODUCTIONS["settings"]]
    for command in EXAMPLES:
        stage = settings_of(command)
        groups: dict[str, list[Sequence[str]]] = {}
        for each in stage.flat().values():
            text = " ".join((each.field.description or "").split())
            row = (f"`{each.key}`", _values(each.field.annotation), _default(each.field), _escaped(text))
            groups.setdefault(each.title, []).append(row)
        parts += [f"## {command.replace('-', '_')}", (stage.__doc__ or "").partition("\n")[0]]
        for title in sorted(groups, key=bool):
            parts += [f"### {title}"] if title else []
            parts.append(_table(("setting", "value", "default", "meaning"), groups[title]))
    return "\n\n".join(parts)


def _values(kind: Any) -> str:
    """Return the values that a setting of this type takes, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    inner = [each for each in get_args(kind) if each not in (type(None), ...)]
    if get_origin(kind) is tuple:
        return f"list of {_values(inner[0])}"
    if inner:
        return _values(inner[0])
    return {bool: "true, false", int: "whole number", float: "number", Path: "path"}.get(kind, "text")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default == ():
        return ""
    shown = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
    return f"`{shown.lower() if isinstance(field.default, bool) else shown}`"


def _lists() -> str:
    """Return everything that can be chosen by name."""
    from kdpipe.stages.listing import KINDS, table

    parts = ["# Lists", _INTRODUCTIONS["lists"]]
    for kind in KINDS:
        rows = table(kind)
        columns = list(rows[0])
        cells = [[_cell(row[column], code=column == columns[0]) for column in columns] for row in rows]
        parts += [f"## {kind.capitalize()}", _table([column.replace("_", " ") for column in columns], cells)]
    return "\n\n".join(parts)


def _cell(value: Any, *, code: bool) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"`{text}`" if code else _escaped(text)


def _escaped(text: str) -> str:
    """Return text of a docstring for a cell: code between single backticks, and no HTML or emphasis elsewhere."""
    parts = text.replace("|", "\\|").split("``")
    plain = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(code if place % 2 else plain[place // 2] for place, code in enumerate(parts))


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


PAGES: dict[str, Callable[[], str]] = {
    "commands": _commands,
    "settings": _settings,
    "lists": _lists,
    "changelog": _changelog,
}
"""The Markdown of each page, by its name."""

if __name__ == "__main__":
    main()
