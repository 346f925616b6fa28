"""Results of a benchmark: students of one run or of several seeds, their teacher, and where they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from kdpipe.benchmark.timing import Cost, Load, Network, Timing, Workload
from kdpipe.errors import RunError
from kdpipe.metrics import METRICS, Figure
from kdpipe.models import base_of

Distill = Literal["cache", "live", "none"]

_SLACK = 0.05

ADVERSARIAL_TOP1 = Figure(
    "adversarial_top1",
    "PGD top-1",
    "Top-1 on images whose pixels projected gradient descent changed within a small bound, to increase the student's "
    "cross-entropy. An upper bound of the accuracy under any attack: others may find more.",
    "%",
    "PGD %",
)
GAP_RECOVERED = Figure(
    "gap_recovered",
    "Gap recovered",
    "The fraction of the teacher-baseline accuracy difference that distillation closes: (student − baseline) / "
    "(teacher − baseline), all top-1. 0 is no gain, 100 % matches the teacher. The baseline is the mean of the runs of "
    "the same architecture on labels only, with the same budget, recipe and data; with the same seeds, the gap is "
    "computed by seed and averaged. For a compressed student they are those of its architecture before compression, "
    "with as many epochs as its parent and its recovery together. n/a without a baseline, and where the difference "
    "between teacher (p) and baseline (q) is within the noise of n labeled test samples: the 95 % interval "
    "1.96 √(p(1 − p)/n + q(1 − q)/n) (Newcombe 1998, method 1).",
    "%",
    "gap %",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The training of a run, as far as a baseline must share it."""

    epochs: int | None = None
    samples: int | None = None
    """Training samples; None where the run did not record them."""
    batch_size: int | None = None
    optimizer: str | None = None
    recipe: str | None = None
    """Name and version."""
    data: tuple[str | None, int | None] = (None, None)
    """The dataset as the user wrote it, and the limit of its training samples."""
    fingerprint: str | None = None
    """That of the training samples."""
    left_out: int = 0
    """Samples that were left out because they had no label."""

    def difference(self, other: Budget) -> str | None:
        """Return in what ``other`` differs, as ``epochs 2, not 6``; None where the two can be compared.

        The number of samples over all epochs may differ by 5 %: epochs of labeled samples only are shorter.
        """
        if None not in (self.samples, other.samples, self.epochs, other.epochs):
            mine, its = (each.samples * each.epochs for each in (self, other))  # type: ignore[operator]
            if abs(mine - its) > _SLACK * max(mine, its):
                return f"{its:,} images over {other.epochs} epochs, not {mine:,} over {self.epochs}"
        elif self.epochs != other.epochs:
            return f"epochs {other.epochs}, not {self.epochs}"
        for name in ("batch_size", "optimizer", "recipe"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return f"{name.replace('_', ' ')} {its}, not {mine}"
        labeled_only = self.data == other.data and bool(self.left_out) != bool(other.left_out)
        if self.fingerprint != other.fingerprint and not labeled_only:
            return "other training images"
        return None


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """One training run, measured; or the mean of several seed runs, see ``average()``."""

    name: str
    """Name of the run, unique within a benchmark."""
    path: Path
    """Directory of the run, or of the seed runs."""
    architecture: str
    distill: Distill
    """Source of the soft targets: a store, a live teacher, or none."""
    loss: str
    """Name of the loss that the student was trained with."""
    seed: int | None
    """None for several seeds."""
    figures: Mapping[str, float | None]
    """Results of ``metrics.measure()``, and ``adversarial_top1`` and ``gap_recovered`` where they were computed."""
    parameters: int
    """Number of parameters."""
    file_bytes: int
    """Size of the weights on disk, in bytes."""
    network: Network | None = None
    """The network, which all runs of one architecture share; None if it was not timed."""
    timings: Mapping[Workload, Timing] = field(default_factory=dict)
    """The timings of its network: the same objects for all its runs, in the order in which they were asked for."""
    cost: Cost | None = None
    """Multiply-accumulates, and size by format, of its network."""
    ship_engine: str = ""
    """Engine of the latencies that students are compared by (default: the first that was timed)."""
    gap_note: str | None = None
    """Why a distilled student has no gap recovered; filled by ``compare()``."""
    on_front: bool = False
    """Whether no other student is both as accurate and as fast, and better in one; filled by ``compare()``."""
    budget: Budget = field(default_factory=Budget)
    """Its training, which baselines share."""
    seed_runs: tuple[StudentResult, ...] = ()
    """The runs, in the order of their seeds, that the figures are means of; empty for a single run."""
    digest: str | None = None
    """Digest of its weights, ``model.safetensors``."""
    parent: str | None = None
    """Digest of the weights of the run that it was compressed from; None where it was not."""

    @property
    def family(self) -> str:
        """Architecture of its baselines: that before compression where it was compressed."""
        return self.architecture if self.parent is None else base_of(self.architecture)

    @property
    def top1(self) -> float | None:
        """Test accuracy, 0..1; None without labels."""
        return self.figures.get("top1")

    @property
    def gap_recovered(self) -> float | None:
        """Fraction of the teacher-baseline accuracy difference that distillation closes; None where undefined."""
        return self.figures.get(GAP_RECOVERED.name)

    @property
    def latencies(self) -> dict[int, Timing]:
        """The timings that students are compared by, by batch size: of the engine to ship, with the first precision
        and number of threads that were timed."""
        return shipped_timings(self.timings, self.ship_engine)

    @property
    def single_image_ms(self) -> float | None:
        """Median latency at batch size 1, in milliseconds; None if it was not measured."""
        found = self.latencies.get(1)
        return None if found is None else found.p50_ms

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one image; None if they were not counted."""
        return None if self.cost is None else self.cost.macs

    @property
    def runs(self) -> tuple[StudentResult, ...]:
        """The seed runs, or the single run itself."""
        return self.seed_runs or (self,)

    @property
    def shipped(self) -> Path:
        """Directory of the run to ship: the first of several seeds, which is fixed before anything is tested.

        Selecting the run that is best on the test set would bias its accuracy.
        """
        return self.runs[0].path

    def std(self, figure: str) -> float | None:
        """Return the sample standard deviation, with ``n - 1``, of a figure over the seeds.

        None for fewer than two runs, or where one of them lacks the figure or has one that is not finite.
        """
        found = [run.figures.get(figure) for run in self.runs]
        values = [value for value in found if value is not None and math.isfinite(value)]
        return stdev(values) if 1 < len(values) == len(self.runs) else None

    def with_timings(self, timings: Mapping[Workload, Timing], costs: Mapping[Network, Cost]) -> StudentResult:
        """Return the same result with those timings and costs that are of its network; so for its seed runs."""
        found = costs.get(self.network) if self.network is not None else None
        if found is not None:
            found = replace(found, format_bytes={"safetensors": self.file_bytes, **found.format_bytes})
        return replace(
            self,
            timings={each: timing for each, timing in timings.items() if each.network == self.network},
            cost=found,
            seed_runs=tuple(run.with_timings(timings, costs) for run in self.seed_runs),
        )

    def with_gap(self, gap: float | None, note: str | None = None) -> StudentResult:
        """Return the same result with a gap recovered, or with the reason why there is none."""
        return replace(self, figures={**self.figures, GAP_RECOVERED.name: gap}, gap_note=note)


def average(seed_runs: Sequence[StudentResult], *, name: str, path: Path) -> StudentResult:
    """Return runs of one student that differ in their seed as one student, with the means of their figures.

    Size and timings are those of the first run, since all have the same architecture. A figure that one of the
    runs lacks is None.
    """

    def mean(figure: str) -> float | None:
        values = [value for run in seed_runs if (value := run.figures.get(figure)) is not None]
        return fmean(values) if len(values) == len(seed_runs) else None

    first = seed_runs[0]
    return replace(
        first,
        name=name,
        path=path,
        seed=first.seed if len(seed_runs) == 1 else None,
        figures={figure: mean(figure) for figure in first.figures},
        seed_runs=tuple(seed_runs),
    )


def shipped_timings(timings: Mapping[Workload, Timing], engine: str = "") -> dict[int, Timing]:
    """Return the timings of ``engine``, or of the first engine, by batch size.

    Of several precisions, numbers of threads or devices the first is taken.
    """
    first = next((each for each in timings if engine in ("", each.engine)), None)
    if first is None:
        return {}
    return {
        each.batch_size: timing
        for each, timing in timings.items()
        if replace(first, batch_size=each.batch_size) == each
    }


def mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Return the mean of training histories by epoch, for as many epochs and figures as all of them have."""
    return [
        {key: fmean(row[key] for row in rows) for key in rows[0] if all(key in row for row in rows)}
        for rows in zip(*histories, strict=False)
    ]


@dataclass(frozen=True)
class TeacherResult:
    """The teacher's figures on the test set."""

    name: str
    figures: Mapping[str, float | None]
    """Results of ``metrics.measure()``."""
    network: Network | None = None
    """Its network; None where its weights are not at hand."""
    timings: Mapping[Workload, Timing] = field(default_factory=dict)
    """The timings of its network, as those of a student."""
    cost: Cost | None = None
    ship_engine: str = ""
    """As that of a student."""

    @property
    def top1(self) -> float | None:
        """Test accuracy, 0..1; None without labels."""
        return self.figures.get("top1")

    @property
    def latencies(self) -> dict[int, Timing]:
        """The timings that students are compared with, by batch size."""
        return shipped_timings(self.timings, self.ship_engine)

    @property
    def single_image_ms(self) -> float | None:
        """Median latency at batch size 1, in milliseconds; None if it was not measured."""
        found = self.latencies.get(1)
        return None if found is None else found.p50_ms

    def with_timings(
        self, network: Network, timings: Mapping[Workload, Timing], costs: Mapping[Network, Cost]
    ) -> TeacherResult:
        """Return the same result with those timings and costs that are of ``network``."""
        own = {each: timing for each, timing in timings.items() if each.network == network}
        return replace(self, network=network, timings=own, cost=costs.get(network))


@dataclass(frozen=True)
class AttackIdentity:
    """The attack that the students were measured under."""

    written: str
    """As the user wrote it, such as ``pgd:8/255,20``."""
    samples: int
    """Number of test samples that were attacked."""


@dataclass(frozen=True)
class StoreIdentity:
    """A store that the students learned from."""

    path: str
    digest: str
    weight: float = 1.0
    """Its weight in the mean of all stores' logits."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All students of one benchmark, measured on the same samples and the same machine.

    Raises:
        RunError: there is no student, or two of them share a name.
    """

    dataset: str
    """The dataset as the user wrote it."""
    samples: int
    """Number of test samples."""
    students: tuple[StudentResult, ...]
    machine: Mapping[str, str | int | None]
    """Result of ``machine()``."""
    created: str
    """When the benchmark ran, as an ISO 8601 time."""
    teacher: TeacherResult | None = None
    stores: tuple[StoreIdentity, ...] = ()
    """The stores whose mean is the teacher; empty for students without one."""
    attack: AttackIdentity | None = None
    load: Load | None = None
    """The load of the machine during the timing; None if nothing was timed."""
    timing_notes: tuple[str, ...] = ()
    """Sentences on what was left out of the timing and why, and on reasons to doubt it."""

    def __post_init__(self) -> None:
        """Refuse results that cannot be told apart by name."""
        names = [student.name for student in self.students]
        if not names:
            raise RunError("a benchmark needs at least one student run, got none. Train one with train-student.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"two student runs are called '{twice[0]}'. Rename one of them, or benchmark only one.")

    @property
    def timings(self) -> dict[Workload, Timing]:
        """Every timing, each once: those of the students' networks and of the teacher's."""
        found: dict[Workload, Timing] = {}
        for each in self.rated:
            found |= each.timings
        return found

    def speed_ups(self, student: StudentResult) -> dict[int, float]:
        """Return how many times as fast as the teacher a student is, by batch size: the ratio of their medians.

        Empty where the teacher was not timed.
        """
        teacher = {} if self.teacher is None else self.teacher.latencies
        own = student.latencies
        return {batch: teacher[batch].p50_ms / own[batch].p50_ms for batch in own if batch in teacher}

    @property
    def rated(self) -> tuple[StudentResult | TeacherResult, ...]:
        """The students, and the teacher if there is one."""
        return self.students if self.teacher is None else (*self.students, self.teacher)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures of the students, in the order of their columns."""
        first, *others = (metric.figure for metric in METRICS.values())
        attacked = () if self.attack is None else (ADVERSARIAL_TOP1,)
        return (first, *attacked, *others, GAP_RECOVERED)
