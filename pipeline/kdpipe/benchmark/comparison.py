"""Students beside each other: what distilling gained, who is on the Pareto front, which one to ship."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

from kdpipe.benchmark.latency import Latency
from kdpipe.errors import RunError

Distill = Literal["cache", "live", "none"]
TOLERANCE = 0.005
"""How much top-1 the recommended student may lose against the best one: half a percentage point."""


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """One training run, measured."""

    name: str
    """Name of the run, unique within a benchmark."""
    path: Path
    """Directory of the run."""
    architecture: str
    distill: Distill
    """Where the soft targets came from: a store, a teacher in the loop, or nowhere."""
    loss: str
    """Name of the loss that the student was trained with."""
    seed: int
    top1: float | None
    """Test accuracy, 0..1; None without labels."""
    top5: float | None
    """Test top-5 accuracy, 0..1; None without labels."""
    loss_value: float | None
    """Mean cross-entropy on the test set, in nats; None without labels."""
    parameters: int
    """Number of parameters."""
    file_bytes: int
    """Size of the weights on disk, in bytes."""
    latencies: Mapping[int, Latency] = field(default_factory=dict)
    """Latency by batch size."""
    agreement: float | None = None
    """Share of test samples on which student and teacher name the same class; None without a teacher."""
    gap_recovered: float | None = None
    """See ``gap_recovered()``; filled by ``compare()``."""
    on_front: bool = False
    """Whether no other student is at once as accurate and as fast, and better in one; see ``compare()``."""

    @property
    def single_image_ms(self) -> float | None:
        """Median latency at batch size 1, in milliseconds; None if it was not measured."""
        return self.latencies[1].p50_ms if 1 in self.latencies else None


@dataclass(frozen=True)
class TeacherResult:
    """The teacher's accuracy on the test set."""

    name: str
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class StoreIdentity:
    """One of the stores that the students learnt from."""

    path: str
    digest: str
    weight: float = 1.0
    """Its share of the mean of all stores' logits."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All students of one benchmark, measured on the same samples and the same machine.

    Raises:
        RunError: There is no student, or two of them share a name.

    """

    dataset: str
    """The dataset as the user wrote it."""
    samples: int
    """Number of test samples."""
    students: tuple[StudentResult, ...]
    machine: Mapping[str, str | int | None]
    """What ``machine()`` returned."""
    created: str
    """When the benchmark ran, as an ISO 8601 time."""
    teacher: TeacherResult | None = None
    stores: tuple[StoreIdentity, ...] = ()
    """The stores whose mean is the teacher; empty where the students had none."""

    def __post_init__(self) -> None:
        """Refuse results that cannot be told apart by name."""
        names = [student.name for student in self.students]
        if not names:
            raise RunError("a benchmark needs at least one student run, got none. Train one with train-student.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RunError(f"two student runs are called '{twice[0]}'. Rename one of them, or benchmark only one.")


class Recommendation(NamedTuple):
    """Which student to ship, and a sentence that says why with its figures."""

    name: str
    reason: str


def gap_recovered(student: float | None, *, baseline: float | None, teacher: float | None) -> float | None:
    """Return ``(student - baseline) / (teacher - baseline)``: how much of the gap distilling closed.

    All three are top-1 accuracies; ``baseline`` is the same student trained on labels alone. 0 is no gain,
    1 matches the teacher, and either can be passed. None if a figure is missing or the teacher is not better
    than the baseline, since there is then no gap to recover.
    """
    if student is None or baseline is None or teacher is None or not teacher > baseline:
        return None
    return (student - baseline) / (teacher - baseline)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say for each ``(accuracy, latency)`` whether it is on the Pareto front.

    A point is on the front unless another is at least as accurate and at least as fast, and better in one
    of the two. Equal points share their fate; a point with a NaN is never on the front and beats nobody.
    """
    front = [False] * len(points)
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    best: tuple[float, float] | None = None
    for i in sorted(known, key=lambda i: (points[i][1], -points[i][0])):
        if best is None or points[i][0] > best[0]:
            best = points[i]
        front[i] = points[i] == best
    return front


def compare(students: Sequence[StudentResult], *, teacher_top1: float | None) -> tuple[StudentResult, ...]:
    """Return the students in the same order, with ``gap_recovered`` and ``on_front`` filled in.

    A distilled run's baseline is the mean top-1 of the runs of the same architecture with ``distill="none"``;
    those runs have no gap themselves. The front is of top-1 against the median latency at batch size 1;
    a student that lacks one of the two is not on it.
    """
    nan = math.nan
    points = [
        (
            nan if student.top1 is None else student.top1,
            nan if student.single_image_ms is None else student.single_image_ms,
        )
        for student in students
    ]
    compared = []
    for student, on_front in zip(students, pareto_front(points), strict=True):
        baselines = [
            other.top1
            for other in students
            if other.distill == "none" and other.architecture == student.architecture and other.top1 is not None
        ]
        recovered = None
        if student.distill != "none" and baselines:
            recovered = gap_recovered(student.top1, baseline=fmean(baselines), teacher=teacher_top1)
        compared.append(replace(student, gap_recovered=recovered, on_front=on_front))
    return tuple(compared)


def recommend(result: BenchmarkResult) -> Recommendation:
    """Name the student to ship: the fastest whose top-1 lies within ``TOLERANCE`` of the best student's.

    Fast means the median latency at batch size 1; ties go to the more accurate student, then to the first
    name. Students without a known top-1 are considered only if nobody has one, and students without a latency
    only if no other is left.
    """
    rated = [student for student in result.students if student.top1 is not None]
    if not rated:
        chosen = min(result.students, key=_by_speed)
        return Recommendation(chosen.name, f"No student has a known top-1 accuracy; {chosen.name} is {_pace(chosen)}.")
    best = min(rated, key=lambda student: (-_top1(student), *_by_speed(student)))
    # The small term keeps a student that is exactly half a point behind, which binary fractions can miss.
    close = [student for student in rated if _top1(best) - _top1(student) <= TOLERANCE + 1e-9]
    chosen = min(close, key=_by_speed)
    return Recommendation(chosen.name, _reason(chosen, best=best))


def _reason(chosen: StudentResult, *, best: StudentResult) -> str:
    figures = f"{chosen.name} reaches {_top1(chosen):.2%} top-1"
    points = f"{TOLERANCE * 100:g} percentage points"
    if chosen.single_image_ms is None:
        return f"{figures}, the best of all students; latency at batch size 1 was not measured."
    figures += f" at {chosen.single_image_ms:.3g} ms per image (batch size 1, median)"
    if chosen is best:
        return f"{figures}: the best of all students, and no faster one lies within {points} of it."
    lead = f"{best.name} ({_top1(best):.2%}"
    lead += ")" if best.single_image_ms is None else f" at {best.single_image_ms:.3g} ms)"
    return f"{figures}: the fastest within {points} of the best student, {lead}."


def _pace(student: StudentResult) -> str:
    if student.single_image_ms is None:
        return "the first by name, as latency at batch size 1 was not measured either"
    return f"the fastest at {student.single_image_ms:.3g} ms per image (batch size 1, median)"


def _top1(student: StudentResult) -> float:
    return -math.inf if student.top1 is None else student.top1


def _by_speed(student: StudentResult) -> tuple[float, float, str]:
    speed = math.inf if student.single_image_ms is None else student.single_image_ms
    return speed, -_top1(student), student.name
