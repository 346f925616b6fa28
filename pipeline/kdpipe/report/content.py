"""The tables and lists of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdpipe.benchmark.deciding import MATTERS, Verdict
from kdpipe.benchmark.origin import Ledger
from kdpipe.benchmark.results import BenchmarkResult, StudentResult
from kdpipe.benchmark.timing import Timing, Workload
from kdpipe.models import short_name
from kdpipe.report.figures import TIMING, Column, Row, counted, finite, number, rows
from kdpipe.report.grids import Cell, Table, headings

DEFINITIONS = (
    (
        "Intervals",
        "95 % intervals by the noise of the test samples: Wilson's score interval for accuracies, and for differences "
        "of two students on the same samples the percentile bootstrap. Several seeds on the same test samples do not "
        "make them smaller.",
    ),
    (
        "Decision",
        "Students that break a constraint are left out. Of the others, the best has the highest lower bound of its "
        "interval. To ship is the fastest that is not significantly less accurate than the best (McNemar's exact test "
        "at 5 %; for several seeds its generalization to their mean); of equal cost, the most accurate. Costs are "
        "equal where the intervals of the latencies overlap. The decision is open where the one to ship may be more "
        f"than {MATTERS * 100:g} percentage points behind a student that is measured to be better, or costs as much.",
    ),
)


def students_table(result: BenchmarkResult, verdict: Verdict, found: Sequence[Column]) -> Table:
    """Return the first table: what the decision is about, with the times of the engine to ship, and the teacher."""
    # What the decision is about comes first, so that a narrow screen shows it.
    main = tuple(sorted((column for column in found if column.main), key=lambda column: column.key in _DESCRIPTION))
    given = rows(result, verdict)
    if result.teacher is not None:
        given.append(Row(result.teacher, given[0].engine))
    return Table(
        "students",
        f"Students and their figures on {result.samples:,} test samples",
        main,
        tuple(
            ("chosen" if row.chosen else "teacher" if row.student is None else "", _cells(row, main)) for row in given
        ),
    )


def figures_table(result: BenchmarkResult, verdict: Verdict, found: Sequence[Column]) -> Table | None:
    """Return the figures that the first table leaves out; None where there are none."""
    further = [figure.name for figure in result.figures]
    chosen = tuple(column for column in found if column.key in further and not column.main)
    if not chosen:
        return None
    shown = (found[0], *chosen)
    given = rows(result, verdict)
    if result.teacher is not None:
        given.append(Row(result.teacher))
    return Table("figures", "Further figures", shown, tuple(("", _cells(row, shown)) for row in given))


def speed_table(result: BenchmarkResult) -> Table | None:
    """Return the times of every workload, each once with the students that share it; None where nothing was timed."""
    sharing: dict[Workload, list[str]] = {}
    for subject in result.rated:
        for workload in subject.timings:
            sharing.setdefault(workload, []).append(subject.name)
    lines = []
    for workload, timing in result.timings.items():
        network = f"{short_name(workload.network.architecture)}, {workload.network.input}"
        parts = (workload.engine, workload.precision, workload.threads, workload.batch_size, workload.device)
        named = (Cell(str(part), part, numeric=not isinstance(part, str)) for part in parts)
        measured = (_figure_cell(column, timing) for column in TIMING)
        lines.append(("", (Cell(network, network, ", ".join(sharing[workload])), *named, *measured)))
    caption = "Time, memory and load time of each network by engine and batch size; all runs of a network share them"
    return Table("speed", caption, (*_WORKLOAD, *TIMING), tuple(lines)) if lines else None


_WORKLOAD = headings("Network", "Engine", "Precision", "*Threads", "*Batch", "Device")


def _figure_cell(column: Column, timing: Timing) -> Cell:
    value = finite(column.get(timing))
    return Cell(column.write(value), value, column.interval(timing), numeric=True)


_DESCRIPTION = ("architecture", "distill", "loss", "seeds")
"""Columns that stand last in the first table."""


def _cells(row: Row, shown: Sequence[Column]) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            "teacher" if row.student is None and column.key == "distill" else column.written(row),
            *_sorting(column, row),
            mark="on the Pareto front" if column.key == "name" and row.student and row.student.on_front else "",
        )
        for column in shown
    )


def _sorting(column: Column, row: Row) -> tuple[float | str | None, str, bool]:
    """Return the value to sort by, the interval, and whether the column is of numbers."""
    return finite(column.value(row)), column.interval(row), column.numeric


@dataclass(frozen=True)
class Given:
    """Data and settings of the runs: a table, and a command for each run that has one."""

    table: Table
    commands: tuple[tuple[str, str], ...]


def given(result: BenchmarkResult) -> Given:
    """Return what each run was given; of several seeds, that of the first with all seeds."""
    lines = tuple((("", tuple(_given_cell(column, student) for column in _GIVEN))) for student in result.students)
    commands = [(student.name, student.runs[0].origin.command) for student in result.students]
    table = Table("given", "Data, budget, recipe and seeds of each run", _GIVEN, lines)
    return Given(table, tuple((name, command) for name, command in commands if command))


@dataclass(frozen=True)
class LedgerText:
    """The cost ledger: a table, and sentences on the stores."""

    table: Table
    notes: tuple[str, ...]


def ledger(result: BenchmarkResult) -> LedgerText | None:
    """Return the cost ledger; None where nothing of it is known."""
    found = result.ledger
    if found is None or not found.lines:
        return None
    lines = tuple(
        ("", (Cell(line.student, line.student), *(_count_cell(value) for value in (
            line.runs, line.passes, line.saved_seconds, line.training_seconds
        ))))
        for line in found.lines
    )  # fmt: skip
    shown = headings("Student", "*Runs", "*Teacher passes saved", "*Seconds saved", "*Seconds of training")
    return LedgerText(Table("ledger", "Teacher passes that the stores saved", shown, lines), _ledger_notes(found))


def lineage(result: BenchmarkResult) -> list[tuple[str, list[str]]]:
    """Return what the report was made from, with digests."""
    pairs = [("dataset", [f"{result.dataset}, {counted(result.samples, 'test sample')}"])]
    if result.attack is not None:
        pairs.append(("attack", [f"{result.attack.written} on {counted(result.attack.samples, 'test sample')}"]))
    if result.teacher is not None:
        pairs.append(("teacher", [result.teacher.name]))
    for store in result.stores:
        weight = "" if len(result.stores) == 1 else f", weight {store.weight:.3g} in the mean"
        pairs.append(("store", [store.path + weight, f"digest {store.digest}"]))
    for run in (run for student in result.students for run in student.runs):
        pairs.append((f"run {run.name}", _run_lineage(run)))
    return [*pairs, ("benchmarked", [result.created])]


def _run_lineage(run: StudentResult) -> list[str]:
    origin, parts = run.origin, [run.path.as_posix()]
    if origin.weights:
        parts.append(f"weights {origin.weights}")
    if origin.fingerprint:
        parts.append(f"training samples {origin.fingerprint}")
    parts += [f"store {path} {digest}" for path, digest in origin.stores]
    parts += [f"teacher {name} {digest}" for name, digest in origin.teachers]
    if origin.initial is not None:
        parts.append(f"began with {' '.join(origin.initial)}")
    if origin.parent is not None:
        parts.append(f"compressed from {origin.parent} {origin.parent_digest or ''}".strip())
    if origin.git_revision:
        parts.append(f"commit {origin.git_revision}")
    return parts


def _given_cell(column: Column, student: StudentResult) -> Cell:
    value = column.get(Row(student))
    return Cell(column.write(value), value, numeric=column.numeric)


def _seeds(row: Row) -> str:
    assert row.student is not None
    return ", ".join(str(run.seed) for run in row.student.runs if run.seed is not None)


def _loss(row: Row) -> str | None:
    return None if row.student is None else row.student.loss


def _origin(name: str) -> Any:
    return lambda row: getattr(row.student.runs[0].origin, name)


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


_GIVEN = (
    Column("name", "Student", lambda row: row.subject.name, numeric=False),
    Column("data", "Data", _origin("data"), _or_unknown, numeric=False),
    Column("samples", "Samples", _origin("samples"), _or_unknown),
    Column("epochs", "Epochs", _origin("epochs"), _or_unknown),
    Column("batch_size", "Batch size", _origin("batch_size"), _or_unknown),
    Column("optimizer", "Optimizer", _origin("optimizer"), _or_unknown, numeric=False),
    Column("recipe", "Recipe", _origin("recipe"), _or_unknown, numeric=False),
    Column("views", "Views", _origin("views"), lambda value: "each epoch its own" if value is None else str(value)),
    Column("loss", "Loss", _loss, numeric=False),
    Column("seed", "Seeds", _seeds, numeric=False),
    Column("seconds", "Training s", _origin("seconds"), lambda value: "unknown" if value is None else number(value)),
)


def _ledger_notes(found: Ledger) -> tuple[str, ...]:
    notes = []
    if found.store_seconds is not None:
        passes = sum(line.passes for line in found.lines)
        notes.append(
            f"Filling the stores took {number(found.store_seconds)} s of teacher time. Trained with a live teacher, "
            f"these runs would have taken {passes:,} passes of it over their training samples."
        )
    if found.saved_seconds is not None and found.store_seconds is not None:
        balance = found.saved_seconds - found.store_seconds
        notes.append(f"Balance: {number(abs(balance))} s {'saved' if balance >= 0 else 'not yet saved'}.")
    if found.breaks_even is not None:
        notes.append(f"The stores break even after {counted(found.breaks_even, 'such run')}.")
    return tuple(notes)


def _count_cell(value: float | None) -> Cell:
    written = "unknown" if value is None else f"{value:,}" if isinstance(value, int) else number(value)
    return Cell(written, value, numeric=True)
