"""A benchmark's figures in rows: for programs (JSON, CSV) and for terminals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdpipe.benchmark import AttackIdentity, BenchmarkResult, Figure, Latency, StudentResult, recommend

UNDEFINED = "n/a"
FIGURES: dict[Figure, str] = {
    "top1": "top1",
    "top5": "top5",
    "loss_value": "cross_entropy",
    "agreement": "agreement",
    "gap_recovered": "gap_recovered",
}
"""What several seeds spread in, with its name in ``metrics.json`` and ``results.csv``."""

_CONSOLE: dict[Figure, str] = {
    "top1": "top-1 %",
    "adversarial_top1": "PGD %",
    "agreement": "agree %",
    "gap_recovered": "gap %",
}
"""Shares that the console's table has columns for."""


def figures(result: BenchmarkResult) -> dict[Figure, str]:
    """Return ``FIGURES``, with the accuracy under attack where there was one."""
    attacked: dict[Figure, str] = {} if result.attack is None else {"adversarial_top1": "adversarial_top1"}
    return {"top1": FIGURES["top1"], **attacked, **FIGURES}


def batch_sizes(result: BenchmarkResult) -> list[int]:
    """Return the batch sizes at which any student was timed, rising."""
    return sorted({size for student in result.students for size in student.latencies})


def metrics(result: BenchmarkResult) -> dict[str, Any]:
    """Return the benchmark as nested JSON values; a figure that is undefined or not finite is None."""
    teacher, chosen, named = result.teacher, recommended(result), figures(result)
    attack = result.attack
    return {
        "recommended": chosen.name,
        "recommended_run": chosen.shipped.as_posix(),
        "teacher": teacher and {"name": teacher.name, "top1": _finite(teacher.top1), "top5": _finite(teacher.top5)},
        "students": {student.name: _student_metrics(student, named) for student in result.students},
        "dataset": result.dataset,
        "samples": result.samples,
        **({} if attack is None else {"adversarial": {"attack": attack.written, "samples": attack.samples}}),
        "stores": [{"path": store.path, "digest": store.digest, "weight": store.weight} for store in result.stores],
        "machine": dict(result.machine),
    }


def recommended(result: BenchmarkResult) -> StudentResult:
    """Return the student to ship."""
    name = recommend(result).name
    return next(student for student in result.students if student.name == name)


def csv_text(result: BenchmarkResult) -> str:
    """Return one CSV row per student: shares in 0..1, times in milliseconds, sizes in bytes.

    Figures of several seeds are means, with the sample standard deviation under the same name and ``_std``.
    """
    sizes = batch_sizes(result)
    chosen = recommended(result)
    named = figures(result)
    rows = [_csv_row(student, sizes, named, recommended=student is chosen) for student in result.students]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table(result: BenchmarkResult) -> Table:
    """Return the students as a table for the console, the recommended one marked and in bold.

    A student of several seeds has their number and the standard deviations in a second line, to save width.
    """
    sizes = batch_sizes(result)
    chosen = recommended(result)
    title = f"{len(result.students)} students on {result.dataset}, {result.samples:,} samples"
    if result.attack is not None:
        title += f"; {attacked(result.attack)}"
    drawn = Table(title=Text(title))
    drawn.add_column("student", overflow="fold")
    drawn.add_column("distill")
    shares = [figure for figure in figures(result) if figure in _CONSOLE]
    headings = [_CONSOLE[figure] for figure in shares]
    for heading in (*headings, "params", "file", *_timing_headings(sizes)):
        drawn.add_column(heading, justify="right")
    drawn.add_column("front", justify="center")
    for student in result.students:
        name = f"* {student.name}" if student is chosen else student.name
        seeds = f"\n{len(student.members)} seeds" if len(student.members) > 1 else ""
        cells = _console_cells(student, shares, sizes)
        drawn.add_row(Text(name + seeds), *cells, style="bold" if student is chosen else None)
    if result.teacher is not None:
        blank = [""] * (2 + len(shares) + len(_timing_headings(sizes)))
        drawn.add_section()
        drawn.add_row(Text(result.teacher.name), "teacher", percent(result.teacher.top1), *blank, style="dim")
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


def attacked(attack: AttackIdentity) -> str:
    """Return in words which samples were attacked by what."""
    return f"{attack.samples:,} attacked by {attack.written}"


def percent(share: float | None) -> str:
    """Return a share of 1 as a percentage with two decimals and no sign."""
    return UNDEFINED if share is None or not math.isfinite(share) else f"{share * 100:.2f}"


def nats(loss: float | None) -> str:
    """Return a cross-entropy with three decimals."""
    return UNDEFINED if loss is None or not math.isfinite(loss) else f"{loss:.3f}"


def spread(student: StudentResult, figure: Figure, form: Callable[[float | None], str]) -> str:
    """Return a figure as ``form`` writes it and, of several seeds, ± its standard deviation."""
    value, std = form(getattr(student, figure)), student.std(figure)
    return value if std is None else f"{value} ± {form(std)}"


def number(value: float | None) -> str:
    """Return a measured value with three significant digits, and never in scientific notation."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def millions(parameters: int) -> str:
    """Return a parameter count in millions, or in thousands below a tenth of a million."""
    return f"{number(parameters / 1e6)} M" if parameters >= 1e5 else f"{number(parameters / 1e3)} k"


def size(count: float) -> str:
    """Return a number of bytes in the decimal unit that suits it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count) if unit != 'B' else int(count)} {unit}"
        count /= 1000
    return f"{number(count)} GB"


def _student_metrics(student: StudentResult, named: dict[Figure, str]) -> dict[str, Any]:
    timed = sorted(student.latencies.items())
    found = {
        "architecture": student.architecture,
        "distill": student.distill,
        "loss": student.loss,
        "seed": student.seed,
        "seeds": len(student.runs),
        **{key: _finite(value) for key, value in _spreads(student, named).items()},
        "parameters": student.parameters,
        "file_bytes": student.file_bytes,
        "latency_ms": {f"batch{batch}": _percentiles(latency) for batch, latency in timed},
        "images_per_second": {f"batch{batch}": _finite(latency.images_per_second) for batch, latency in timed},
        "on_front": student.on_front,
    }
    return found | ({"runs": [_run_metrics(run, named) for run in student.members]} if student.members else {})


def _run_metrics(run: StudentResult, named: dict[Figure, str]) -> dict[str, Any]:
    found = {key: _finite(getattr(run, figure)) for figure, key in named.items()}
    return {"path": run.path.as_posix(), "seed": run.seed, **found}


def _spreads(student: StudentResult, named: dict[Figure, str]) -> dict[str, float | None]:
    """Return each figure, of several seeds their mean, followed by its standard deviation."""
    found = {}
    for figure, key in named.items():
        found[key] = getattr(student, figure)
        found[f"{key}_std"] = student.std(figure)
    return found


def _percentiles(latency: Latency) -> dict[str, float | None]:
    return {"p50": _finite(latency.p50_ms), "p95": _finite(latency.p95_ms), "p99": _finite(latency.p99_ms)}


def _csv_row(
    student: StudentResult, sizes: list[int], named: dict[Figure, str], *, recommended: bool
) -> dict[str, object]:
    row: dict[str, object] = {
        "name": student.name,
        "path": student.path.as_posix(),
        "architecture": student.architecture,
        "distill": student.distill,
        "loss": student.loss,
        "seed": student.seed,
        "seeds": len(student.runs),
        **_spreads(student, named),
        "parameters": student.parameters,
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
    return {key: UNDEFINED if _undefined(value) else value for key, value in row.items()}


def _timing_headings(sizes: list[int]) -> list[str]:
    """Name the timings worth their width: latency at the smallest batch, throughput at the largest."""
    return [f"ms (b{sizes[0]})", f"img/s (b{sizes[-1]})"] if sizes else []


def _console_cells(student: StudentResult, shares: Sequence[Figure], sizes: list[int]) -> list[str]:
    timings = []
    if sizes:
        first, last = student.latencies.get(sizes[0]), student.latencies.get(sizes[-1])
        timings = [number(first.p50_ms if first else None), number(last.images_per_second if last else None)]
    return [
        student.distill,
        *(spread(student, figure, percent).replace(" ±", "\n±") for figure in shares),
        millions(student.parameters),
        size(student.file_bytes),
        *timings,
        "yes" if student.on_front else "",
    ]


def _undefined(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: float | None) -> float | None:
    return None if _undefined(value) else value
