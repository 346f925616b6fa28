"""Results of a benchmark: students of one run or of several seeds, their teacher, and where they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import numpy as np

from kdpipe.benchmark.cam import CAM_OVERLAP, Explanations
from kdpipe.benchmark.corrupted import CorruptionIdentity
from kdpipe.benchmark.origin import Budget, Ledger, Origin
from kdpipe.benchmark.quality import BESIDE, Quality, Samples
from kdpipe.benchmark.settings import DecisionSettings
from kdpipe.benchmark.timing import Cost, Load, Network, Timing, Workload, shipped_timings
from kdpipe.errors import RunError
from kdpipe.metrics import METRICS, Figure
from kdpipe.metrics.significance import Correct, Interval, PairedDifference, accuracy_interval, paired
from kdpipe.models import base_of

Distill = Literal["cache", "live", "none"]

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
    """Results of ``metrics.measure()``, and ``adversarial_top1``, ``gap_recovered`` and those of ``quality.BESIDE``
    and of ``corrupted`` where they were computed."""
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
    quality: Quality | None = None
    """The predictions on the test samples; of several seeds those of the first, the run to ship."""
    corrupted: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Top-1 under each kind of corruption, at the strengths 1 to 5."""
    attacked: Correct | None = None
    """Whether it still predicts each attacked sample right, bool ``(n,)``; None without an attack."""
    origin: Origin = field(default_factory=Origin)
    """Data, settings and lineage of its training."""
    seed_runs: tuple[StudentResult, ...] = ()
    """The runs, in the order of their seeds, that the figures are means of; empty for a single run."""

    @property
    def family(self) -> str:
        """Architecture of its baselines: that before compression where it was compressed."""
        return self.architecture if self.origin.parent_digest is None else base_of(self.architecture)

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

    def right(self, figure: str = "top1") -> Correct | None:
        """Return whether each run is right on each sample, bool ``(runs, samples)``, for an accuracy by its name.

        None for other figures, and where it was not measured.
        """
        found = [run._right_alone(figure) for run in self.runs]
        known = [right for right in found if right is not None and len(right)]
        return np.stack(known) if known and len(known) == len(self.runs) else None

    def _right_alone(self, figure: str) -> Correct | None:
        if figure == "adversarial_top1":
            return self.attacked
        if self.quality is None or figure not in ("top1", "top5"):
            return None
        return self.quality.correct if figure == "top1" else self.quality.correct_in_five

    @property
    def correct(self) -> Correct | None:
        """Whether each run predicts each labeled test sample right, bool ``(runs, labeled)``; None if not measured."""
        return self.right("top1")

    def interval(self, figure: str = "top1") -> Interval | None:
        """Return the 95 % interval of an accuracy for the noise of the test samples; None where it is undefined."""
        return _interval(self.figures.get(figure), self.right(figure))

    def minus(self, other: StudentResult | TeacherResult) -> PairedDifference | None:
        """Return the difference of the top-1 accuracies on the same samples, with its test and its interval.

        None if one of the two has no predictions or no sample has a label.
        """
        first, second = self.correct, other.correct
        return None if first is None or second is None else paired(first, second)

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
        corrupted={kind: _mean_top1([run.corrupted[kind] for run in seed_runs]) for kind in first.corrupted},
        seed_runs=tuple(seed_runs),
    )


def _interval(accuracy: float | None, right: Correct | None) -> Interval | None:
    return None if accuracy is None or right is None else accuracy_interval(accuracy, right.shape[-1])


def _mean_top1(runs: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    """Return the mean of the runs at each strength; None where one has no accuracy."""
    known = [[value for value in values if value is not None] for values in zip(*runs, strict=True)]
    return tuple(fmean(values) if len(values) == len(runs) else None for values in known)


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
    quality: Quality | None = None
    """Its logits for the test samples, from the stores or computed by its network."""
    network: Network | None = None
    """Its network; None where its weights are not at hand."""
    timings: Mapping[Workload, Timing] = field(default_factory=dict)
    """The timings of its network, as those of a student."""
    cost: Cost | None = None
    ship_engine: str = ""
    """As that of a student."""

    @property
    def correct(self) -> Correct | None:
        """Whether it predicts each labeled test sample right, bool ``(labeled,)``; None if not measured."""
        return self.quality.correct if self.quality is not None and self.quality.labeled else None

    def interval(self, figure: str = "top1") -> Interval | None:
        """Return the 95 % interval of an accuracy for the noise of the test samples; None where it is undefined."""
        return _interval(self.figures.get(figure), self.correct)

    @property
    def top1(self) -> float | None:
        """Test accuracy, 0..1; None without labels."""
        return self.figures.get("top1")

    @property
    def latencies(self) -> dict[int, Timing]:
        """The timings that students are compared with, by batch size."""
        return shipped_timings(self.timings, self.ship_engine)

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
    test: Samples | None = None
    """The test samples; None without a test split."""
    corruptions: CorruptionIdentity | None = None
    cams: Explanations | None = None
    """Grad-CAM of the teacher and of the students; None where it was not asked for."""
    rules: DecisionSettings = field(default_factory=DecisionSettings)
    """Goal and constraints of the decision."""
    ledger: Ledger | None = None
    """Costs and savings of the students' training; None where they are not known."""
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
    def ship_engine(self) -> str:
        """Name of the engine whose latencies are compared; empty where nothing was timed."""
        named = next((student.ship_engine for student in self.students if student.ship_engine), "")
        return named or next((workload.engine for workload in self.timings), "")

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
        beside = [each for each in BESIDE if any(each.name in student.figures for student in self.students)]
        corrupted = () if self.corruptions is None else self.corruptions.figures
        explained = () if self.cams is None else (CAM_OVERLAP,)
        return (first, *attacked, *others, *beside, *corrupted, *explained, GAP_RECOVERED)

    @property
    def best(self) -> StudentResult | None:
        """The student with the highest top-1; of equal ones the first. None if no student has one."""
        rated = [student for student in self.students if student.top1 is not None]
        return max(rated, key=lambda student: student.top1 or 0.0, default=None)
