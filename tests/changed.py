"""Print the tests for what has changed: ``pytest $(python tests/changed.py)``; ``make quick`` runs them.

Changed is what differs from the branch point with ``origin/main``, or on that branch itself from the commit before, and
files that are not committed. The tests of a room ``kdpipe/NAME`` are ``tests/unit/NAME``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALWAYS = ("tests/test_structure.py",)


def git(*arguments: str) -> list[str]:
    """Return the lines that git prints; none where it fails."""
    done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed() -> set[str]:
    """Return the changed files, relative to the root of the repository."""
    base = git("merge-base", "HEAD", "origin/main")
    if not base or base == git("rev-parse", "HEAD"):
        base = git("rev-parse", "HEAD~1")
    return {*git("diff", "--name-only", *base), *git("ls-files", "--others", "--exclude-standard")}


def tests_of(files: Iterable[str]) -> set[str]:
    """Return the tests of these files that exist: unit tests, which take seconds."""
    found = {*ALWAYS}
    for name in files:
        parts = Path(name).parts
        if parts[:2] == ("pipeline", "kdpipe"):
            room = parts[2].removesuffix(".py")
            found |= {f"tests/unit/{room}", f"tests/unit/test_{room}.py"}
        elif parts[0] == "benchmarks":
            found.add("tests/test_benchmarks.py")
        elif parts[0] == "stages":
            found.add("tests/unit/stages")
        elif parts[:2] == ("tests", "unit") and parts[-1].startswith("test_"):
            found.add(name)
    found = {name for name in found if (ROOT / name).exists()}
    return {name for name in found if not any(str(parent) in found for parent in Path(name).parents)}


if __name__ == "__main__":
    print(*sorted(tests_of(changed())))
