"""The report of a benchmark as files: JSON, CSV, SVG, text and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from kdpipe import directories
from kdpipe.benchmark import deciding
from kdpipe.benchmark.results import BenchmarkResult
from kdpipe.printable import printable, printable_json
from kdpipe.report import cams, page, plots, quality, tables

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


def table(result: BenchmarkResult) -> Table:
    """Return the students as a table for the console; see ``tables.table``."""
    return tables.table(_printable(result), deciding.verdict(_printable(result)))


def sentences(result: BenchmarkResult) -> list[str]:
    """Return the verdict on the students, line by line."""
    return deciding.verdict(result).sentences


def write(
    result: BenchmarkResult,
    out: Path,
    *,
    histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> dict[str, Path]:
    """Write the report of a benchmark into the directory ``out`` and return the path of each file by name.

    The files are ``metrics.json`` (nested numbers for ``dvc metrics show``; undefined values are null),
    ``results.csv`` (one row per student and engine; undefined values are ``n/a``), ``timings.csv`` (one row per timed
    pass), ``pareto.svg``, ``report.html`` (one page that needs no other file and no network) and ``summary.txt``; with
    a test split also ``predictions.npz`` and ``quality.json``, see ``report.quality``; with Grad-CAM also ``cams.png``.
    They replace an earlier report all together. ``histories`` holds each student's figures by epoch, oldest first; with
    it the page shows training curves.

    Raises:
        RunError: ``out`` holds something else than a report.
        UnwritableError: the disk is full or fails; an earlier report is kept.
    """
    shown = _printable(result)
    verdict, shown_verdict = deciding.verdict(result), deciding.verdict(shown)
    pictures = cams.cams_png(result)
    predictions, by_class = quality.predictions_npz(result), quality.quality_values(result)
    content: dict[str, str | bytes] = {
        "metrics.json": printable_json(tables.metrics(result, verdict)) + "\n",
        "results.csv": tables.csv_text(result, verdict),
        "timings.csv": tables.timings_csv(result),
        "pareto.svg": plots.pareto_file(shown, shown_verdict),
        "report.html": page.html_page(shown, shown_verdict, histories=_printable(histories), cams=pictures),
        "summary.txt": tables.summary(shown, shown_verdict, report=out / "report.html"),
    }
    if predictions is not None:
        content["predictions.npz"] = predictions
    if pictures is not None:
        content["cams.png"] = pictures
    if by_class is not None:
        content["quality.json"] = printable_json(by_class) + "\n"
    publish(out, {name: each if isinstance(each, bytes) else each.encode() for name, each in content.items()})
    return {name: out / name for name in content}


def _printable(value: Any) -> Any:
    """Return a result with all text in it, also that of its parts, escaped for people."""
    changed: Any = value
    if isinstance(value, str | Path):
        changed = type(value)(printable(value))
    elif is_dataclass(value) and not isinstance(value, type):
        changed = replace(value, **{field.name: _printable(getattr(value, field.name)) for field in fields(value)})
    elif isinstance(value, Mapping):
        changed = {_printable(key): _printable(each) for key, each in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        changed = type(value)(*map(_printable, value))
    elif isinstance(value, tuple | list):
        changed = type(value)(map(_printable, value))
    return changed
