"""A benchmark's figures in rows: for programs (JSON, CSV) and for terminals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdpipe.benchmark.deciding import Verdict
from kdpipe.benchmark.results import GAP_RECOVERED, AttackIdentity, BenchmarkResult, StudentResult
from kdpipe.benchmark.timing import Timing, Workload
from kdpipe.printable import cell
from kdpipe.report.figures import (
    TIMING,
    UNDEFINED,
    Column,
    Row,
    columns,
    engines,
    finite,
    rows,
)
from kdpipe.report.quality import absent_classes, comparison_values

SCHEMA = 2
"""Version of the layout of ``metrics.json``; it grows whenever a key changes its name, place or meaning."""


def metrics(result: BenchmarkResult, verdict: Verdict) -> dict[str, Any]:
    """Return the benchmark as nested JSON values; a figure that is undefined or not finite is None."""
    found, attack, teacher = columns(result), result.attack, result.teacher
    chosen = next((student for student in result.students if student.name == verdict.chosen), None)
    return {
        "schema": SCHEMA,
        "recommended": verdict.chosen,
        "recommended_run": None if chosen is None else chosen.shipped.as_posix(),
        "verdict": _verdict(result, verdict),
        "teacher": teacher and {"name": teacher.name, **{key: finite(each) for key, each in teacher.figures.items()}},
        "students": {row.subject.name: _student(row, found, result) for row in rows(result, verdict)},
        "best": result.best and result.best.name,
        "classes_without_test_samples": absent_classes(result),
        "dataset": result.dataset,
        "samples": result.samples,
        **({} if attack is None else {"adversarial": {"attack": attack.written, "samples": attack.samples}}),
        **({} if result.corruptions is None else {"corruptions": asdict(result.corruptions)}),
        "stores": [{"path": store.path, "digest": store.digest, "weight": store.weight} for store in result.stores],
        "ledger": None if result.ledger is None else asdict(result.ledger),
        "machine": dict(result.machine),
        **timing_metrics(result),
    }


def csv_text(result: BenchmarkResult, verdict: Verdict) -> str:
    """Return one CSV row per student and engine: fractions in 0..1, times in milliseconds, sizes in bytes.

    The engine to ship comes first. Figures of several seeds are means, with the sample standard deviation under the
    same name and ``_std``.
    """
    found = columns(result)
    timed = rows(result, verdict)
    timed += [row for engine in engines(result)[1:] for row in rows(result, verdict, engine) if row.at_any_size]
    lines = [{key: value for column in found for key, value in column.cells(row)} for row in timed]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({key: UNDEFINED if finite(value) is None else cell(value) for key, value in line.items()})
    return text.getvalue()


def table(result: BenchmarkResult, verdict: Verdict) -> Table:
    """Return the students as a table for the console, the one to ship marked and in bold.

    A student of several seeds has their number and the standard deviations in a second line, to save width. The caption
    has the reasons for undefined gaps.
    """
    title = f"{len(result.students)} students on {result.dataset}, {result.samples:,} samples"
    if result.attack is not None:
        title += f"; {attacked(result.attack)}"
    caption = Text("\n".join(gap_notes(result))) if gap_notes(result) else None
    drawn = Table(title=Text(title), caption=caption, caption_justify="left")
    shown = [column for column in columns(result) if column.short]
    drawn.add_column("student", overflow="fold")
    for column in shown:
        drawn.add_column(
            column.short, justify="right" if column.numeric else "center" if column.key == "on_front" else "left"
        )
    for row in rows(result, verdict):
        runs = len(row.student.seed_runs) if row.student is not None else 0
        name = f"{'* ' * row.chosen}{row.subject.name}" + (f"\n{runs} seeds" if runs > 1 else "")
        cells = [column.written(row).replace(" ±", "\n±") for column in shown]
        drawn.add_row(Text(name), *cells, style="bold" if row.chosen else None)
    if result.teacher is not None:
        row = Row(result.teacher, next(iter(engines(result)), None))
        drawn.add_section()
        cells = ["teacher" if column.key == "distill" else column.written(row) for column in shown]
        drawn.add_row(Text(result.teacher.name), *cells, style="dim")
    return drawn


def summary(result: BenchmarkResult, verdict: Verdict, *, report: Path) -> str:
    """Return the table, the verdict and the path of the page as plain text."""
    # Wide enough for any table, since a file has no width; rich pads no cell beyond its content.
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    drawn = table(result, verdict)
    console = Console(file=io.StringIO(), width=console.measure(drawn).maximum, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(drawn)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    ship = "Ship none of them." if verdict.chosen is None else f"Ship {verdict.chosen} (*)."
    return "\n".join([*lines, "", ship, *verdict.sentences, "", f"Full report: {report}", ""])


def gap_notes(result: BenchmarkResult) -> list[str]:
    """Return one sentence for each reason why students have no gap recovered."""
    names: dict[str, list[str]] = {}
    for student in result.students:
        if student.gap_note is not None:
            names.setdefault(student.gap_note, []).append(student.name)
    return [f"{GAP_RECOVERED.title} is n/a for {', '.join(each)}: {note}." for note, each in names.items()]


def attacked(attack: AttackIdentity) -> str:
    """Return the number of attacked samples and the attack, for people."""
    return f"{attack.samples:,} attacked by {attack.written}"


def _student(row: Row, found: Sequence[Column], result: BenchmarkResult) -> dict[str, Any]:
    assert row.student is not None
    values: dict[str, Any] = {}
    for column in found:
        if column.key not in ("name", "recommended"):
            for key, value in column.cells(row):
                *parents, last = column.path or (column.key,)
                place = values
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[last + key.removeprefix(column.key)] = finite(value)
    runs = [_run(run, result_figures(found)) for run in row.student.seed_runs]
    speed_ups = {f"batch{batch}": ratio for batch, ratio in result.speed_ups(row.student).items()}
    return values | {"speed_up": speed_ups} | comparison_values(row.student, result) | ({"runs": runs} if runs else {})


def result_figures(found: Sequence[Column]) -> list[str]:
    """Return the keys of the columns that are metrics."""
    return [column.key for column in found if "std" in column.parts]


def _run(run: StudentResult, figures: Sequence[str]) -> dict[str, Any]:
    return {
        "path": run.path.as_posix(),
        "seed": run.seed,
        **{name: finite(run.figures.get(name)) for name in figures},
    }


def _verdict(result: BenchmarkResult, verdict: Verdict) -> dict[str, Any]:
    return {
        "rules": result.rules.dump(),
        "ship_engine": result.ship_engine or None,
        "reason": verdict.reason,
        "runner_up": verdict.runner_up,
        "margin": None if verdict.margin is None else asdict(verdict.margin),
        "undecided": verdict.undecided or None,
        "more_images": verdict.more_images,
        "constraints": [asdict(check) for check in verdict.checks],
        "left_out": {each.name: [asdict(check) for check in each.broken] for each in verdict.dropped},
        "equals": list(verdict.equals),
    }


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
