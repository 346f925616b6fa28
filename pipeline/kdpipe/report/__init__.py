"""The report of a benchmark as files: JSON, CSV, PNG, text and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdpipe import durable
from kdpipe.benchmark.results import BenchmarkResult
from kdpipe.report import page, plots, tables
from kdpipe.report.tables import table

__all__ = ["table", "write"]


def write(
    result: BenchmarkResult,
    out: Path,
    *,
    histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> dict[str, Path]:
    """Write the report of a benchmark into the directory ``out`` and return the path of each file by name.

    The files are ``metrics.json`` (nested numbers for ``dvc metrics show``; undefined values are null),
    ``results.csv`` (one row per student; undefined values are ``n/a``), ``pareto.png``, ``report.html`` (one
    page that needs no other file and no network) and ``summary.txt``. Each is written atomically. ``histories`` holds
    each student's figures by epoch, oldest first; with it the page shows training curves.
    """
    pareto = plots.pareto_png(result)
    curves = plots.curves_png(histories) if histories else None
    paths = {name: out / name for name in ("metrics.json", "results.csv", "pareto.png", "report.html", "summary.txt")}
    durable.write_json(paths["metrics.json"], tables.metrics(result))
    durable.write_text(paths["results.csv"], tables.csv_text(result))
    durable.write_bytes(paths["pareto.png"], pareto)
    durable.write_text(paths["report.html"], page.html_page(result, pareto=pareto, curves=curves))
    durable.write_text(paths["summary.txt"], tables.summary(result, report=paths["report.html"]))
    return paths
