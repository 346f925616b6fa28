"""The kdpipe command line, as the benchmarks call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def kdpipe(*arguments: object) -> None:
    """Run a kdpipe command."""
    subprocess.run([sys.executable, "-m", "kdpipe", *map(str, arguments)], check=True)


def describe(store: Path) -> dict[str, Any]:
    """Return what ``kdpipe inspect --json`` says of a store."""
    command = [sys.executable, "-m", "kdpipe", "inspect", str(store), "--json"]
    described: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return described
