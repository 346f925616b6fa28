"""The benchmarks: each is described, and the commands that are shown, recorded and run have flags that exist.

No benchmark is run or imported: its flags are those that the source adds to its parser.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kdpipe.stages import cli
from kdpipe.stages.flags import parser_of
from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
README = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))
OTHERS = {"demo.json"}
"""Results of other commands."""
SCRIPTS = {
    path.name: path.read_text(encoding="utf-8")
    for path in sorted(BENCHMARKS.glob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}


@dataclass(frozen=True)
class Flags:
    """The flags of a script."""

    known: frozenset[str]
    required: frozenset[str]


@cache
def flags_of(script: str) -> Flags:
    """Return the flags that a script adds to its parser, and those of them that it requires."""
    known, required = {"-h", "--help"}, set()
    for node in ast.walk(ast.parse(SCRIPTS[script])):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            flags = {each.value for each in node.args if isinstance(each, ast.Constant)}
            known |= flags
            if any(each.arg == "required" and ast.unparse(each.value) == "True" for each in node.keywords):
                required |= flags
    return Flags(frozenset(known), frozenset(required))


def commands(text: str) -> Iterator[list[str]]:
    """Yield the commands ``python benchmarks/...`` that start a line of a text, continued lines joined."""
    for line in re.sub(r"\\+\n\s*", " ", text).splitlines():
        found = re.match(r"\s*(?:\$\(BIN\)/)?(python benchmarks/\S+\.py.*)", line)
        if found is not None:
            yield shlex.split(found[1].replace("$", ""), comments=True)


def faults(words: list[str]) -> list[str]:
    """Return the scripts and flags of a command that do not exist, and the required flags that it lacks."""
    script = words[1].removeprefix("benchmarks/")
    if script not in SCRIPTS:
        return [script]
    given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
    flags = flags_of(script)
    return sorted((given - flags.known) | (flags.required - given))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_in_the_table_and_begins_with_its_command(script: str) -> None:
    assert f"\n| `{script}` | " in README
    shown = list(commands(ast.get_docstring(ast.parse(SCRIPTS[script])) or ""))
    assert [words[1] for words in shown] == [f"benchmarks/{script}"] * len(shown) != []
    assert [faults(words) for words in shown] == [[]] * len(shown)


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_in_the_table_and_has_a_command_that_exists(result: Path) -> None:
    named = re.findall(r"`results/([\w*.-]+)`", README)
    assert any(result.match(f"results/{name}") for name in named)
    if result.name not in OTHERS:
        recorded = json.loads(result.read_text(encoding="utf-8"))["command"]
        (words,) = commands(recorded)
        assert faults(words) == [], recorded


def test_the_commands_of_the_makefile_and_the_readme_exist() -> None:
    shown = [*commands((ROOT / "Makefile").read_text(encoding="utf-8")), *commands(README)]
    assert len(shown) >= 9
    assert [(words, faults(words)) for words in shown if faults(words)] == []


def test_the_flags_that_scripts_give_to_kdpipe_exist() -> None:
    ran = [(script, *call) for script, text in SCRIPTS.items() for call in calls(text)]
    assert len(ran) > 30
    assert [(script, command, given - known(command)) for script, command, given in ran if given - known(command)] == []


def calls(text: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the command of each call of kdpipe in a source, and the flags that are written in the call."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("kdpipe", "in_process"):
            words = [each for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            words.sort(key=lambda each: (each.lineno, each.col_offset))
            if words and words[0].value in cli.EXAMPLES:
                yield str(words[0].value), {str(each.value) for each in words if str(each.value).startswith("--")}


@cache
def known(command: str) -> set[str]:
    """Return the flags of a command of kdpipe."""
    parser = parser_of(cli.settings_of(command), command=command, example=cli.EXAMPLES[command])
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", parser.format_help()))
