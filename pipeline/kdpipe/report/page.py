"""The report as one HTML page: charts, style and the script that sorts tables are in it, and it loads nothing.

The page is complete without scripts. All text is escaped by the templates.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import kdpipe
from kdpipe.benchmark.deciding import Verdict
from kdpipe.benchmark.results import BenchmarkResult
from kdpipe.page import render
from kdpipe.report import content, plots, predictions
from kdpipe.report.cams import cams_text
from kdpipe.report.figures import (
    TIMING,
    UNDEFINED,
    columns,
    counted,
    definitions,
    engines,
    number,
    rows,
    size,
)
from kdpipe.report.tables import gap_notes


def html_page(
    result: BenchmarkResult,
    verdict: Verdict,
    *,
    histories: Mapping[str, plots.History] | None = None,
    cams: bytes | None = None,
) -> str:
    """Return the page; ``histories`` holds each student's figures by epoch, and ``cams`` is the PNG of Grad-CAM."""
    found = columns(result)
    context = {
        "lead": _lead(result),
        "result": result,
        "verdict": verdict,
        "tiles": _tiles(result, verdict),
        "students": content.students_table(result, verdict, found),
        "notes": _notes(result),
        "figures": content.figures_table(result, verdict, found),
        "speed": content.speed_table(result),
        "pareto": [(engine, plots.pareto(result, engine, chosen=verdict.chosen)) for engine in engines(result)],
        "differences": predictions.differences(result, verdict),
        "corruptions": predictions.corruptions(result),
        "examined": predictions.examined(result),
        "coverage": predictions.risk_coverage(result),
        "cams": cams and base64.b64encode(cams).decode("ascii"),
        "cams_text": result.cams and cams_text(result.cams),
        "curves": plots.curves(histories or {}, {each.name: each.loss for each in result.students}),
        "most_curves": plots.MOST_CURVES,
        "definitions": [*definitions([*found, *TIMING]), *content.DEFINITIONS],
        "machine": _machine(result),
        "lineage": content.lineage(result),
        "given": content.given(result),
        "ledger": content.ledger(result),
    }
    return render(
        "kdpipe.report",
        "page.html",
        title=f"Benchmark on {result.dataset}",
        version=kdpipe.__version__,
        styles=["chart.css", "page.css"],
        scripts=["sort.js"],
        images=True,
        **context,
    )


def _lead(result: BenchmarkResult) -> str:
    versus = f" against teacher {result.teacher.name}" if result.teacher is not None else ""
    return f"{counted(len(result.students), 'student')}{versus}, {counted(result.samples, 'test sample')}"


def _tiles(result: BenchmarkResult, verdict: Verdict) -> list[tuple[str, str, str]]:
    """Return the main figures of the student to ship: value, name, interval."""
    chosen = next((row for row in rows(result, verdict) if row.chosen), None)
    if chosen is None:
        return []
    wanted = ("top1", "adversarial_top1", "gap_recovered", "batch1_p50_ms", "parameters", "macs", "file_bytes")
    names = {"batch1_p50_ms": "Latency, batch 1", "adversarial_top1": "Top-1 under attack", "file_bytes": "On disk"}
    found = {column.key: column for column in columns(result)}
    tiles = []
    for column in (found[key] for key in wanted if key in found):
        value = column.written(chosen)
        if value and value != UNDEFINED:
            unit = f" {column.unit}" if column.unit else ""
            tiles.append((value + unit, names.get(column.key, column.title), column.interval(chosen)))
    return tiles


def _notes(result: BenchmarkResult) -> list[str]:
    notes = ["◆ on the Pareto front. The student to ship is shaded. Small print: 95 % interval."]
    devices = sorted({workload.device for workload in result.timings})
    if devices:
        notes[0] += f" Latencies were measured on {', '.join(devices)}."
    if any(student.seed_runs for student in result.students):
        notes[0] += (
            " Figures of several seeds are their mean ± sample standard deviation; size and latencies are of the first."
        )
    return [*notes, *gap_notes(result), *result.timing_notes]


def _machine(result: BenchmarkResult) -> list[tuple[str, str]]:
    pairs = []
    for key, value in result.machine.items():
        if key == "memory_bytes" and isinstance(value, int):
            pairs.append(("memory", size(value)))
        else:
            pairs.append((key.replace("_", " "), "unknown" if value is None else str(value)))
    load = result.load
    if load is not None:
        averages = [number(each) for each in (load.before, load.after) if each is not None]
        if averages:
            pairs.append(("load average before and after the timing", " and ".join(averages)))
        if load.others is not None:
            pairs.append(("other processes during the timing", f"{number(load.others)} of {load.cores} cores"))
    return pairs
