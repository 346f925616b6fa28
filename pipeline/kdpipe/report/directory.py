"""The directory of a report: locked while it is made, and replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from kdpipe import directories

FILES = (
    *("metrics.json", "results.csv", "timings.csv", "pareto.svg", "report.html", "summary.txt"),
    *("predictions.npz", "quality.json", "cams.png"),
)

_REPORT = directories.Kind("report", FILES)


def held(out: Path) -> AbstractContextManager[None]:
    """Hold the lock of the report directory ``out`` for a block; raises as ``directories.held`` does."""
    return directories.held(out, _REPORT)


def publish(out: Path, content: Mapping[str, bytes]) -> None:
    """Put the files of a report in the place of ``out``; raises as ``directories.publish`` does."""
    directories.publish(out, content, _REPORT)
