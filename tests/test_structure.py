"""The structure of the code: no circle of files, modules of a readable size, and stages that declare what they run."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline/kdpipe"
STAGES = {"train-teacher", "cache-teacher", "train-student", "benchmark", "export"}
LONGEST = 400
"""Lines of the longest module."""


@cache
def files() -> dict[str, Path]:
    """Return every module of the package by name; stages are those of the folder at the top."""
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        within = path.relative_to(ROOT / "pipeline" if path.is_relative_to(PACKAGE) else ROOT)
        parts = within.with_suffix("").parts
        name = ".".join(parts if parts[0] == "kdpipe" else ("kdpipe", *parts))
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imported(name: str) -> frozenset[str]:
    """Return the modules of the package that a module imports anywhere in its file, and their packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(files()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    packages = {name.rpartition(".")[0] for name in found}
    return frozenset((found | packages) & files().keys())


def closure(*names: str) -> set[str]:
    """Return the modules that are imported when these are, by any way."""
    waiting, found = [*names], set(names)
    while waiting:
        new = imported(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def circle(names: frozenset[str]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imported(name) & names):
            found = visit(other, [*path, name])
            if found:
                return found
        done.add(name)
        return []

    return next((found for name in sorted(names) if (found := visit(name, []))), [])


def dependencies(stage: str) -> list[str]:
    """Return the code that a stage of dvc.yaml depends on."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return [dep for dep in stages[stage]["deps"] if dep.startswith(("pipeline/", "stages/"))]


def entry(stage: str) -> tuple[str, ...]:
    """Return the modules that a stage's command begins with: its program, and those that read its flags."""
    module = {"cache-teacher": "storing", "benchmark": "benchmark", "export": "export"}.get(stage, "training")
    return f"kdpipe.stages.{stage.replace('-', '_')}", "kdpipe.stages.flags", f"kdpipe.stages.settings.{module}"


def test_no_circle_of_files() -> None:
    modules = frozenset(name for name, path in files().items() if path.name != "__init__.py")
    assert circle(modules) == []


def test_modules_can_be_read_at_a_sitting() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files().items()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_depends_on_all_the_code_that_it_runs(stage: str) -> None:
    declared = [ROOT / dep for dep in dependencies(stage)]
    assert [path for path in declared if not path.exists()] == []
    ran = {files()[name] for name in closure(*entry(stage)) - {"kdpipe"}}
    missing = {path for path in ran if not any(path.is_relative_to(dep) for dep in declared)}
    assert sorted(path.relative_to(ROOT).as_posix() for path in missing) == []


def test_an_edit_of_the_training_code_leaves_the_cache_valid() -> None:
    rooms = {name.split(".")[1] for name in closure(*entry("cache-teacher")) if "." in name}
    assert not rooms & {"training", "distil", "benchmark", "report"}
    assert not any(dep.split("/")[-1] in {"training", "distil", "kdpipe"} for dep in dependencies("cache-teacher"))


def test_stages_print_through_the_console_only() -> None:
    """The console escapes foreign text; see ``kdpipe.printable``."""
    printing = {
        name
        for name, path in files().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"kdpipe.stages.console"}
