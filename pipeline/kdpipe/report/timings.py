"""The timings of a benchmark as rows: one per workload for ``metrics.json``, one per pass for ``timings.csv``."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from kdpipe.benchmark.results import BenchmarkResult
from kdpipe.benchmark.timing import Timing, Workload
from kdpipe.printable import cell
from kdpipe.report.figures import TIMING


def timing_metrics(result: BenchmarkResult) -> dict[str, Any]:
    """Return timings, costs, load and notes as JSON values; what was not measured is None."""
    costs = {each.network: each.cost for each in result.rated if each.network is not None and each.cost is not None}
    return {
        "timings": [_identity(each) | _figures(timing) for each, timing in result.timings.items()],
        "costs": [asdict(network) | asdict(cost) for network, cost in costs.items()],
        "load": None if result.load is None else asdict(result.load),
        "timing_notes": list(result.timing_notes),
    }


def timings_csv(result: BenchmarkResult) -> str:
    """Return one CSV row per timed pass, in nanoseconds; without timings the heading alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("architecture", "structure", "size", "engine", "precision", "threads", "batch_size", "device")
    writer.writerow((*parts, "round", "pass", "wall_ns", "cpu_ns"))
    for workload, timing in result.timings.items():
        identity = [cell(each) for each in _identity(workload).values()]
        for number, passes in enumerate(zip(timing.wall_ns, timing.cpu_ns, strict=True), start=1):
            for repeat, nanoseconds in enumerate(zip(*passes, strict=True), start=1):
                writer.writerow((*identity, number, repeat, *nanoseconds))
    return text.getvalue()


def _identity(workload: Workload) -> dict[str, str | int]:
    values: dict[str, Any] = asdict(workload)
    return {**values.pop("network"), **values}


def _figures(timing: Timing) -> dict[str, Any]:
    return {
        f"{column.key}{suffix and '_'}{suffix}": get(timing)
        for column in TIMING
        for suffix, get in {"": column.get, **column.parts}.items()
    }
