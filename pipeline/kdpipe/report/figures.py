"""The figures of a report: each is one record, from which JSON, CSV, the terminal's table and the page are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kdpipe.benchmark.deciding import Verdict
from kdpipe.benchmark.results import BenchmarkResult, StudentResult, TeacherResult
from kdpipe.benchmark.timing import Timing, Workload
from kdpipe.metrics import Figure
from kdpipe.models import short_name

UNDEFINED = "n/a"
DISTILLED = {"cache": "store", "live": "live teacher", "none": "labels only"}

Value = Any
"""A number, a truth value, text, or None where a figure is undefined."""


@dataclass(frozen=True)
class Engine:
    """One way to run a network: all of a workload but the network and the batch size."""

    name: str
    precision: str
    threads: int
    device: str

    @classmethod
    def of(cls, workload: Workload) -> Engine:
        """Return the engine of a workload."""
        return cls(workload.engine, workload.precision, workload.threads, workload.device)

    @property
    def title(self) -> str:
        """Its parts, for people."""
        return f"{self.name} {self.precision}, {self.threads} thread{'s' * (self.threads != 1)}, {self.device}"


@dataclass(frozen=True)
class Row:
    """One student or the teacher, with the timings of one engine."""

    subject: StudentResult | TeacherResult
    engine: Engine | None = None
    chosen: bool = False
    """Whether it is the student to ship."""

    @property
    def student(self) -> StudentResult | None:
        """The student; None for the teacher."""
        return self.subject if isinstance(self.subject, StudentResult) else None

    def timing(self, batch_size: int) -> Timing | None:
        """Return the timing at a batch size."""
        for workload, found in self.subject.timings.items():
            if Engine.of(workload) == self.engine and workload.batch_size == batch_size:
                return found
        return None

    @property
    def at_any_size(self) -> list[Timing]:
        """The timings of the engine, of all batch sizes."""
        return [each for workload, each in self.subject.timings.items() if Engine.of(workload) == self.engine]


Get = Callable[[Any], Value]
Write = Callable[[Value], str]


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with two decimals and no sign."""
    return UNDEFINED if _missing(fraction) else f"{fraction * 100:.2f}"  # type: ignore[operator]


def nats(loss: float | None) -> str:
    """Return a cross-entropy with three decimals."""
    return UNDEFINED if _missing(loss) else f"{loss:.3f}"


def number(value: float | None) -> str:
    """Return a measured value with three significant digits, and never in scientific notation."""
    if value is None or _missing(value):
        return UNDEFINED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is 1."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def thousands(count: float | None) -> str:
    """Return a count in k, M or G, each 1000 times the former."""
    if count is None or _missing(count):
        return UNDEFINED
    for limit, factor, unit in ((1e5, 1e3, "k"), (1e9, 1e6, "M")):
        if count < limit:
            return f"{number(count / factor)} {unit}"
    return f"{number(count / 1e9)} G"


def size(count: float | None) -> str:
    """Return a number of bytes in B, kB, MB or GB, each 1000 times the former."""
    if count is None or _missing(count):
        return UNDEFINED
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{number(count) if unit != 'B' else int(count)} {unit}"
        count /= 1000
    return f"{number(count)} GB"


def text(value: object) -> str:
    """Return text as it is, truth as yes or nothing, and nothing for what does not apply."""
    return "" if value is None or value is False else "yes" if value is True else str(value)


_WRITE: Mapping[str, Write] = {"%": percent, "nats": nats}
"""The format of a figure by its unit; others are numbers of three significant digits."""


def _network(value: Value) -> str:
    """Write the name of a network, of a compressed one without its widths and ranks."""
    return short_name(text(value))


@dataclass(frozen=True)
class Column:
    """A figure of a student: its name in files and for people, its definition, and how it is read and written."""

    key: str
    """Key in JSON and column in CSV."""
    title: str
    """Name for people, without the unit."""
    get: Get
    """Reads it from a row; None where it is undefined."""
    write: Write = text
    """Writes it for people, in its unit, which is not repeated."""
    unit: str = ""
    help: str = ""
    """Definition, in a sentence or two; empty where the name says it all."""
    short: str = ""
    """Column heading on the terminal; empty to leave it out there."""
    main: bool = False
    """Whether it stands in the page's first table."""
    numeric: bool = True
    path: tuple[str, ...] = ()
    """Keys in nested JSON (default: the key)."""
    parts: Mapping[str, Get] = field(default_factory=dict)
    """Further columns by suffix of the key: ``std``, ``low`` and ``high``."""
    of_teacher: bool = False
    """Whether the teacher has it, too."""
    group: str = ""
    """Heading above several columns."""

    @property
    def heading(self) -> str:
        """Column heading, with the unit."""
        return f"{self.title} {self.unit}" if self.unit in ("%", "ms") else self.title

    def cells(self, row: Row) -> Iterator[tuple[str, Value]]:
        """Yield the figure and its parts by key, for CSV."""
        yield self.key, self.get(row)
        for suffix, get in self.parts.items():
            yield f"{self.key}_{suffix}", get(row)

    def value(self, row: Row) -> Value:
        """Return the figure; None where the row has none."""
        return self.get(row) if row.student is not None or self.of_teacher else None

    def written(self, row: Row) -> str:
        """Return the figure for people; of several seeds, ± its standard deviation; empty where it does not apply."""
        if row.student is None and not self.of_teacher:
            return ""
        value, std = self.get(row), self.parts["std"](row) if "std" in self.parts else None
        if row.student is None and value is None:
            return ""
        return self.write(value) if std is None else f"{self.write(value)} ± {self.write(std)}"

    def interval(self, of: Row | Timing) -> str:
        """Return the 95 % interval for people; empty without one."""
        bounds = [self.parts[suffix](of) for suffix in ("low", "high") if suffix in self.parts]
        return "" if None in bounds or not bounds else f"{self.write(bounds[0])} to {self.write(bounds[1])}"


def columns(result: BenchmarkResult) -> list[Column]:
    """Return all figures of a benchmark, in the order of their columns."""
    return [*_IDENTITY, *(_of(figure) for figure in result.figures), _NOTE, *_COSTS, *_times(result), *_DECISION]


def engines(result: BenchmarkResult) -> list[Engine]:
    """Return every engine that anything was timed with, that of the student to ship first."""
    found = dict.fromkeys(Engine.of(workload) for workload in result.timings)
    first = [Engine.of(workload) for workload in result.timings if workload.engine == result.ship_engine]
    return list(dict.fromkeys([*first[:1], *found]))


def batch_sizes(result: BenchmarkResult) -> list[int]:
    """Return the batch sizes at which anything was timed, in ascending order."""
    return sorted({workload.batch_size for workload in result.timings})


def rows(result: BenchmarkResult, verdict: Verdict, engine: Engine | None = None) -> list[Row]:
    """Return the row of each student, with the timings of ``engine`` (default: of the engine to ship)."""
    engine = engine or next(iter(engines(result)), None)
    return [Row(student, engine, chosen=student.name == verdict.chosen) for student in result.students]


def finite(value: Value) -> Value:
    """Return a value, or None for a number that is not finite."""
    return None if _missing(value) else value


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _student(get: Callable[[StudentResult], Value]) -> Get:
    """Return what reads a student, and finds nothing for a teacher."""
    return lambda row: None if row.student is None else get(row.student)


def _of(figure: Figure) -> Column:
    """Return the column of a metric."""
    name = figure.name
    parts: dict[str, Get] = {"std": _student(lambda student: student.std(name))}
    if name in INTERVALS:
        parts["low"] = _student(lambda student: _bound(student, name, 0))
        parts["high"] = _student(lambda student: _bound(student, name, 1))
    return Column(
        name,
        figure.title,
        lambda row: row.subject.figures.get(name),
        _WRITE.get(figure.unit, number),
        unit=figure.unit,
        help=figure.help,
        short=figure.short,
        main=bool(figure.short),
        parts=parts,
        of_teacher=True,
    )


INTERVALS = ("top1", "top5", "adversarial_top1")
"""Figures that are fractions of right predictions, and have an interval."""


def _bound(student: StudentResult, name: str, which: int) -> float | None:
    interval = student.interval(name)
    return None if interval is None else interval[which]


def _times(result: BenchmarkResult) -> Iterator[Column]:
    """Yield the columns of the engines: their parts, memory and load time, and the times at each batch size."""
    yield from _ENGINE
    sizes = batch_sizes(result)
    for batch in sizes:
        for each in (each for each in TIMING if each.path):
            shown = (each.key, batch) in (("p50_ms", sizes[0]), ("images_per_second", sizes[-1]))
            yield replace(
                each,
                key=f"batch{batch}_{each.key}",
                get=_timing(batch, each.get),
                parts={suffix: _timing(batch, get) for suffix, get in each.parts.items()},
                path=(each.path[0], f"batch{batch}", *each.path[1:]),
                group=f"Batch {batch}",
                short=f"{each.short} (b{batch})" if shown else "",
                main=shown,
            )


def _timing(batch: int, get: Callable[[Any], Value]) -> Get:
    def read(row: Row) -> Value:
        found = row.timing(batch)
        return None if found is None else get(found)

    return read


def _bounds(timing: Timing) -> tuple[float | None, float | None]:
    return timing.interval_ms or (None, None)


def _start(name: str) -> Get:
    """Return what reads the largest value of the engine's starts."""
    return lambda row: max(
        (getattr(each.start, name) for each in row.at_any_size if each.start is not None), default=None
    )


_IDENTITY = (
    Column("name", "Student", lambda row: row.subject.name, numeric=False, main=True, of_teacher=True),
    Column("path", "Directory", _student(lambda student: student.path.as_posix()), numeric=False),
    Column("architecture", "Architecture", _student(lambda student: student.architecture), _network,
           numeric=False, main=True),
    Column("distill", "Soft targets", _student(lambda student: student.distill),
           lambda value: DISTILLED.get(value, text(value)), numeric=False, main=True, short="distill"),
    Column("loss", "Loss", _student(lambda student: student.loss), numeric=False, main=True),
    Column("seed", "Seed", _student(lambda student: student.seed), lambda value: "" if value is None else str(value)),
    Column("seeds", "Seeds", _student(lambda student: len(student.runs)), str, main=True),
)  # fmt: skip
_NOTE = Column("gap_note", "Why there is no gap", _student(lambda student: student.gap_note), numeric=False)
_COSTS = (
    Column("parameters", "Parameters", _student(lambda student: student.parameters), thousands, main=True,
           short="params"),
    Column("macs", "MACs", _student(lambda student: student.macs), thousands, main=True,
           help="Multiply-accumulates of one image: convolutions, linear layers and attention."),
    Column("file_bytes", "File", _student(lambda student: student.file_bytes), size, main=True, short="file",
           help="Size of the weights on disk, model.safetensors."),
)  # fmt: skip
_ENGINE = (
    Column("engine", "Engine", lambda row: row.engine and row.engine.name, numeric=False),
    Column("precision", "Precision", lambda row: row.engine and row.engine.precision, numeric=False),
    Column("threads", "Threads", lambda row: row.engine and row.engine.threads),
    Column("device", "Device", lambda row: row.engine and row.engine.device, numeric=False),
    Column("load_ms", "Load", _start("load_ms"), number, unit="ms"),
    Column("peak_bytes", "Peak memory", _start("peak_bytes"), size),
)
TIMING = (
    Column("p50_ms", "p50", lambda timing: timing.p50_ms, number, unit="ms", path=("latency_ms", "p50"),
           parts={"low": lambda timing: _bounds(timing)[0], "high": lambda timing: _bounds(timing)[1]},
           of_teacher=True, short="ms",
           help="Latency: the median time of one pass, from a batch in memory to its logits, after a warm-up and over "
           "rounds that interleave all networks. Its 95 % interval is between two of the rounds."),
    Column("p90_ms", "p90", lambda timing: timing.p90_ms, number, unit="ms", path=("latency_ms", "p90"),
           help="90th percentile of the time of a pass."),
    Column("p95_ms", "p95", lambda timing: timing.p95_ms, number, unit="ms", path=("latency_ms", "p95"),
           help="95th percentile of the time of a pass."),
    Column("p99_ms", "p99", lambda timing: timing.p99_ms, number, unit="ms", path=("latency_ms", "p99"),
           help="99th percentile of the time of a pass; close to the slowest below 100 passes."),
    Column("cpu_ms", "CPU", lambda timing: timing.cpu_ms, number, unit="ms", path=("cpu_ms",),
           help="Median CPU time of one pass, all threads together."),
    Column("images_per_second", "images/s", lambda timing: timing.images_per_second, number,
           path=("images_per_second",), of_teacher=True, short="img/s",
           help="Batch size divided by the median latency."),
    Column("wall_over_cpu", "Wall/CPU", lambda timing: timing.wall_over_cpu, number,
           help="Wall time over CPU time. About 1 for one thread and less for several; above that it waited."),
    Column("rounds", "Rounds", lambda timing: timing.rounds, str, help="Rounds in which it was timed."),
    Column("repeats", "Passes", lambda timing: timing.repeats, str, help="Timed passes of all rounds."),
    Column("largest_difference", "Largest difference", lambda timing: timing.difference, number,
           help="Largest absolute difference of its logits from those of eager fp32, on the images that were checked."),
    Column("top1_agreement", "Same class", lambda timing: timing.agreement, percent, unit="%",
           help="Checked images with the same top-1 class as eager fp32."),
    Column("load_ms", "Load", lambda timing: timing.start and timing.start.load_ms, number, unit="ms",
           help="From opening the file to the logits of the first image, in a fresh process, once the libraries are "
           "imported."),
    Column("libraries_bytes", "Libraries", lambda timing: timing.start and timing.start.libraries_bytes, size,
           help="Resident memory of a fresh process before it opens the file: Python and the libraries of the engine."),
    Column("peak_bytes", "Peak memory", lambda timing: timing.start and timing.start.peak_bytes, size,
           help="Highest resident memory of a fresh process during passes of the batch size, with the libraries."),
)  # fmt: skip
"""The figures of one timing; ``get`` takes it. Those with a ``path`` are figures of a student, too."""
_DECISION = (
    Column("on_front", "Pareto front", _student(lambda student: student.on_front), numeric=False, short="front",
           help="Students for which no other is more accurate without being slower, or as accurate and faster (batch "
           "size 1, engine to ship). Latencies whose intervals overlap count as equal."),
    Column("recommended", "To ship", lambda row: row.chosen, numeric=False),
)  # fmt: skip


def definitions(found: Sequence[Column]) -> list[tuple[str, str]]:
    """Return the names and definitions of figures, each once."""
    return list({(column.title, column.help): None for column in found if column.help})
