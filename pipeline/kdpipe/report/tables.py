"""A benchmark's figures in rows: for programs (JSON, CSV) and for terminals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdpipe.benchmark.comparison import recommend
from kdpipe.benchmark.results import GAP_RECOVERED, AttackIdentity, BenchmarkResult, StudentResult
from kdpipe.benchmark.timing import Timing
from kdpipe.metrics import Figure
from kdpipe.printable import cell
from kdpipe.report.timings import timing_metrics

UNDEFINED = "n/a"


def batch_sizes(result: BenchmarkResult) -> list[int]:
    """Return the batch sizes at which any student was timed, in ascending order."""
    return sorted({size for student in result.students for size in student.latencies})


def metrics(result: BenchmarkResult) -> dict[str, Any]:
    """Return the benchmark as nested JSON values; a figure that is undefined or not finite is None."""
    teacher, chosen, attack = result.teacher, recommended(result), result.attack
    return {
        "recommended": chosen.name,
        "recommended_run": chosen.shipped.as_posix(),
        "teacher": teacher and {"name": teacher.name, **_all_finite(teacher.figures)},
        "students": {
            student.name: _student_metrics(student, result.figures)
            | {"speed_up": {f"batch{batch}": ratio for batch, ratio in result.speed_ups(student).items()}}
            for student in result.students
        },
        "dataset": result.dataset,
        "samples": result.samples,
        **({} if attack is None else {"adversarial": {"attack": attack.written, "samples": attack.samples}}),
        "stores": [{"path": store.path, "digest": store.digest, "weight": store.weight} for store in result.stores],
        "machine": dict(result.machine),
        **timing_metrics(result),
    }


def recommended(result: BenchmarkResult) -> StudentResult:
    """Return the student to ship."""
    name = recommend(result).name
    return next(student for student in result.students if student.name == name)


def csv_text(result: BenchmarkResult) -> str:
    """Return one CSV row per student: fractions in 0..1, times in milliseconds, sizes in bytes.

    Figures of several seeds are means, with the sample standard deviation under the same name and ``_std``.
    """
    sizes, chosen = batch_sizes(result), recommended(result)
    rows = [_csv_row(student, sizes, result.figures, recommended=student is chosen) for student in result.students]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def table(result: BenchmarkResult) -> Table:
    """Return the students as a table for the console, the recommended one marked and in bold.

    A student of several seeds has their number and the standard deviations in a second line, to save width. The caption
    has the reasons for undefined gaps.
    """
    sizes, chosen = batch_sizes(result), recommended(result)
    title = f"{len(result.students)} students on {result.dataset}, {result.samples:,} samples"
    if result.attack is not None:
        title += f"; {attacked(result.attack)}"
    caption = Text("\n".join(gap_notes(result))) if gap_notes(result) else None
    drawn = Table(title=Text(title), caption=caption, caption_justify="left")
    drawn.add_column("student", overflow="fold")
    drawn.add_column("distill")
    figures = [figure for figure in result.figures if figure.short]
    for heading in (*(figure.short for figure in figures), "params", "file", *_timing_headings(sizes)):
        drawn.add_column(heading, justify="right")
    drawn.add_column("front", justify="center")
    for student in result.students:
        name = f"* {student.name}" if student is chosen else student.name
        seeds = f"\n{len(student.seed_runs)} seeds" if len(student.seed_runs) > 1 else ""
        cells = _console_cells(student, figures, sizes)
        drawn.add_row(Text(name + seeds), *cells, style="bold" if student is chosen else None)
    teacher = result.teacher
    if teacher is not None:
        cells = [written(figure, teacher.figures) if figure.name in teacher.figures else "" for figure in figures]
        params = "" if teacher.cost is None else millions(teacher.cost.parameters)
        timings = _timing_cells(teacher.latencies, sizes) if teacher.timings else [""] * len(_timing_headings(sizes))
        drawn.add_section()
        drawn.add_row(Text(teacher.name), "teacher", *cells, params, "", *timings, "", style="dim")
    return drawn


def summary(result: BenchmarkResult, *, report: Path) -> str:
    """Return the table, the recommendation and the path of the page as plain text."""
    # Wide enough for any table, since a file has no width; rich pads no cell beyond its content.
    console = Console(file=io.StringIO(), width=10_000, color_system=None, force_terminal=False)
    drawn = table(result)
    console = Console(file=io.StringIO(), width=console.measure(drawn).maximum, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(drawn)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    name, reason = recommend(result)
    return "\n".join([*lines, "", f"Ship {name} (*).", reason, "", f"Full report: {report}", ""])


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


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with two decimals and no sign."""
    return UNDEFINED if fraction is None or _infinite(fraction) else f"{fraction * 100:.2f}"


def nats(loss: float | None) -> str:
    """Return a cross-entropy with three decimals."""
    return UNDEFINED if loss is None or _infinite(loss) else f"{loss:.3f}"


def number(value: float | None) -> str:
    """Return a measured value with three significant digits, and never in scientific notation."""
    if value is None or _infinite(value):
        return UNDEFINED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


_FORMATS: Mapping[str, Callable[[float | None], str]] = {"%": percent, "nats": nats}
"""Format of a figure by its unit; those of other units are numbers of three significant digits."""


def written(figure: Figure, figures: Mapping[str, float | None]) -> str:
    """Return one of several figures for people, in its unit, which is not repeated."""
    return _FORMATS.get(figure.unit, number)(figures.get(figure.name))


def spread(student: StudentResult, figure: Figure) -> str:
    """Return a student's figure for people; of several seeds, ± its standard deviation."""
    value, std = written(figure, student.figures), student.std(figure.name)
    return value if std is None else f"{value} ± {written(figure, {figure.name: std})}"


def millions(parameters: int) -> str:
    """Return a parameter count in millions, or in thousands below a tenth of a million."""
    return f"{number(parameters / 1e6)} M" if parameters >= 1e5 else f"{number(parameters / 1e3)} k"


def size(count: float) -> str:
    """Return a number of bytes in B, kB, MB or GB, each 1000 times the former."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count) if unit != 'B' else int(count)} {unit}"
        count /= 1000
    return f"{number(count)} GB"


def _student_metrics(student: StudentResult, figures: Sequence[Figure]) -> dict[str, Any]:
    timed = sorted(student.latencies.items())
    found = {
        "architecture": student.architecture,
        "distill": student.distill,
        "loss": student.loss,
        "seed": student.seed,
        "seeds": len(student.runs),
        **_all_finite(_spreads(student, figures)),
        "gap_note": student.gap_note,
        "parameters": student.parameters,
        "macs": student.macs,
        "file_bytes": student.file_bytes,
        "latency_ms": {f"batch{batch}": _percentiles(latency) for batch, latency in timed},
        "images_per_second": {f"batch{batch}": _finite(latency.images_per_second) for batch, latency in timed},
        "on_front": student.on_front,
    }
    return found | ({"runs": [_run_metrics(run, figures) for run in student.seed_runs]} if student.seed_runs else {})


def _run_metrics(run: StudentResult, figures: Sequence[Figure]) -> dict[str, Any]:
    found = {figure.name: _finite(run.figures.get(figure.name)) for figure in figures}
    return {"path": run.path.as_posix(), "seed": run.seed, **found}


def _spreads(student: StudentResult, figures: Sequence[Figure]) -> dict[str, float | None]:
    """Return each figure, for several seeds their mean, followed by its standard deviation."""
    found = {}
    for figure in figures:
        found[figure.name] = student.figures.get(figure.name)
        found[f"{figure.name}_std"] = student.std(figure.name)
    return found


def _percentiles(latency: Timing) -> dict[str, float | None]:
    return {"p50": _finite(latency.p50_ms), "p95": _finite(latency.p95_ms), "p99": _finite(latency.p99_ms)}


def _csv_row(
    student: StudentResult, sizes: list[int], figures: Sequence[Figure], *, recommended: bool
) -> dict[str, object]:
    row: dict[str, object] = {
        "name": student.name,
        "path": student.path.as_posix(),
        "architecture": student.architecture,
        "distill": student.distill,
        "loss": student.loss,
        "seed": student.seed,
        "seeds": len(student.runs),
        **_spreads(student, figures),
        "gap_note": student.gap_note,
        "parameters": student.parameters,
        "macs": student.macs,
        "file_bytes": student.file_bytes,
        "on_front": student.on_front,
        "recommended": recommended,
    }
    for batch in sizes:
        timed = student.latencies.get(batch)
        row[f"batch{batch}_p50_ms"] = timed and timed.p50_ms
        row[f"batch{batch}_p95_ms"] = timed and timed.p95_ms
        row[f"batch{batch}_p99_ms"] = timed and timed.p99_ms
        row[f"batch{batch}_images_per_second"] = timed and timed.images_per_second
    return {key: UNDEFINED if value is None or _infinite(value) else value for key, value in row.items()}


def _timing_headings(sizes: list[int]) -> list[str]:
    """Return the headings of latency at the smallest and throughput at the largest batch size; more would not fit."""
    return [f"ms (b{sizes[0]})", f"img/s (b{sizes[-1]})"] if sizes else []


def _console_cells(student: StudentResult, figures: Sequence[Figure], sizes: list[int]) -> list[str]:
    return [
        student.distill,
        *(spread(student, figure).replace(" ±", "\n±") for figure in figures),
        millions(student.parameters),
        size(student.file_bytes),
        *_timing_cells(student.latencies, sizes),
        "yes" if student.on_front else "",
    ]


def _timing_cells(latencies: Mapping[int, Timing], sizes: list[int]) -> list[str]:
    if not sizes:
        return []
    first, last = latencies.get(sizes[0]), latencies.get(sizes[-1])
    return [number(first.p50_ms if first else None), number(last.images_per_second if last else None)]


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _finite(value: float | None) -> float | None:
    return None if _infinite(value) else value


def _all_finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in figures.items()}
