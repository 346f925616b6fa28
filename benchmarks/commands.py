"""The kdpipe command line, as the benchmarks call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdpipe.stages.cli import main


def kdpipe(*arguments: object) -> None:
    """Run a kdpipe command."""
    subprocess.run([sys.executable, "-m", "kdpipe", *map(str, arguments)], check=True)


def in_process(*arguments: object) -> None:
    """Run a kdpipe command in this process, which saves the start of Python and its imports.

    Raises:
        RuntimeError: it failed, and has printed the reason.
    """
    words = [str(argument) for argument in arguments]
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"kdpipe {' '.join(words)} ended with {end.code}") from None


def describe(store: Path) -> dict[str, Any]:
    """Return what ``kdpipe inspect --json`` says of a store."""
    command = [sys.executable, "-m", "kdpipe", "inspect", str(store), "--json"]
    described: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return described
