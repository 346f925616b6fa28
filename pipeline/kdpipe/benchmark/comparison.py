"""Comparison of students: gap recovered, the Pareto front, and which student to ship."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from kdpipe.benchmark.results import BenchmarkResult, StudentResult

TOLERANCE = 0.005
"""Largest top-1 difference between the recommended and the best student: half a percentage point."""
Z95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""


class Gap(NamedTuple):
    """A gap recovered, or the reason why it is undefined."""

    value: float | None
    note: str | None = None


class Recommendation(NamedTuple):
    """The student to ship, and the reason in one sentence with its figures."""

    name: str
    reason: str


def accuracy_noise(first: float, second: float, samples: int) -> float:
    """Return the half-width of the 95 % interval of the difference of two accuracies on ``samples`` test samples.

    ``1.96 * sqrt(p(1 - p)/n + q(1 - q)/n)``: Newcombe, "Interval estimation for the difference between independent
    proportions" (1998), method 1. Two models that are tested on the same samples make partly the same errors, so
    their difference varies less than that: the bound is conservative. Averaging over seeds does not lower it, since
    all of them have the same test samples.
    """
    return Z95 * math.sqrt((first * (1 - first) + second * (1 - second)) / samples)


def gap_recovered(student: float | None, *, baseline: float | None, teacher: float | None, samples: int) -> Gap:
    """Return ``(student - baseline) / (teacher - baseline)``: the fraction of that difference that distillation closes.

    All three are top-1 accuracies on the same ``samples`` labeled test samples; ``baseline`` is that of the same
    architecture trained on labels only. 0 is no gain, 1 matches the teacher, and values outside are possible.

    Undefined, with a note, if a figure is missing or the teacher does not exceed the baseline by more than
    ``accuracy_noise``: the quotient would then be noise divided by noise.
    """
    if student is None:
        return Gap(None, "the test samples have no labels")
    if teacher is None:
        return Gap(None, "no teacher was measured")
    if baseline is None:
        return Gap(None, "there is no baseline, a run of the same architecture on labels only (--distill none)")
    difference = teacher - baseline
    if not difference > 0:
        return Gap(None, f"the teacher's top-1 ({teacher:.2%}) is not above the baseline's ({baseline:.2%})")
    noise = accuracy_noise(teacher, baseline, samples)
    if not difference > noise:
        return Gap(
            None,
            f"the difference between teacher ({teacher:.2%}) and baseline ({baseline:.2%}) is within the noise of "
            f"{samples:,} test samples (± {noise * 100:.2f} percentage points)",
        )
    return Gap((student - baseline) / difference)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return for each ``(accuracy, latency)`` whether it is on the Pareto front.

    A point is on the front unless another is at least as accurate and at least as fast, and better in one
    of the two. Equal points are both on it or both not; a point with a NaN is not, and does not count for others.
    """
    front = [False] * len(points)
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    best: tuple[float, float] | None = None
    for i in sorted(known, key=lambda i: (points[i][1], -points[i][0])):
        if best is None or points[i][0] > best[0]:
            best = points[i]
        front[i] = points[i] == best
    return front


def compare(
    students: Sequence[StudentResult], *, teacher_top1: float | None, samples: int
) -> tuple[StudentResult, ...]:
    """Return the students in the same order, with ``gap_recovered``, ``gap_note`` and ``on_front`` filled in.

    ``samples`` is the number of labeled test samples. The baselines of a distilled student are the runs of the same
    architecture, budget, recipe and data with ``distill="none"``, which have no gap themselves; of a compressed one
    those of its architecture before compression. If both have the same
    seeds, each run is compared with the mean top-1 of the baselines of its own seed, and the student has the mean of
    these gaps. Otherwise, or if one of them is undefined, mean top-1 is compared with mean top-1.

    The front is of top-1 against the median latency at batch size 1; a student that lacks one of the two is not
    on it.
    """
    nan = math.nan
    points = [
        (
            nan if student.top1 is None else student.top1,
            nan if student.single_image_ms is None else student.single_image_ms,
        )
        for student in students
    ]
    return tuple(
        replace(
            _with_gap(student, students, teacher_top1=teacher_top1, samples=samples),
            on_front=on_front,
        )
        for student, on_front in zip(students, pareto_front(points), strict=True)
    )


def _baselines(student: StudentResult, students: Sequence[StudentResult]) -> dict[int | None, list[float]]:
    """Return the top-1 of the runs that a distilled student is compared with, by their seed."""
    found: dict[int | None, list[float]] = {}
    for other in _without_teacher(student, students):
        if student.budget.difference(other.budget) is None:
            for run in other.runs:
                if run.top1 is not None:
                    found.setdefault(run.seed, []).append(run.top1)
    return found


def _without_teacher(student: StudentResult, students: Sequence[StudentResult]) -> list[StudentResult]:
    return [
        each
        for each in students
        if each.distill == "none" and each.parent is None and each.architecture == student.family
    ]


def _with_gap(
    student: StudentResult, students: Sequence[StudentResult], *, teacher_top1: float | None, samples: int
) -> StudentResult:
    """Return the student with its gap, and its seed runs with theirs if they are paired by seed."""
    if student.distill == "none":
        return student.with_gap(None)
    baselines = _baselines(student, students)
    if not baselines and teacher_top1 is not None and student.top1 is not None:
        for other in _without_teacher(student, students):
            if (difference := student.budget.difference(other.budget)) is not None:
                return student.with_gap(None, f"the baseline {other.name} was trained with {difference}")
    if set(baselines) == {run.seed for run in student.runs}:
        gaps = [
            gap_recovered(run.top1, baseline=fmean(baselines[run.seed]), teacher=teacher_top1, samples=samples).value
            for run in student.runs
        ]
        known = [gap for gap in gaps if gap is not None]
        if len(known) == len(gaps):
            paired = zip(student.seed_runs, known, strict=False)  # a single run has no seed runs
            return replace(student.with_gap(fmean(known)), seed_runs=tuple(run.with_gap(gap) for run, gap in paired))
    every = [top1 for of_a_seed in baselines.values() for top1 in of_a_seed]
    baseline = fmean(every) if every else None
    return student.with_gap(*gap_recovered(student.top1, baseline=baseline, teacher=teacher_top1, samples=samples))


def recommend(result: BenchmarkResult) -> Recommendation:
    """Return the student to ship: the fastest whose top-1 lies within ``TOLERANCE`` of the best student's.

    The top-1 of several seeds is their mean. Speed is the median latency at batch size 1; ties go to the more
    accurate student, then to the first name. Students without a top-1 are considered only if no student has one,
    and students without a latency only if no other is left.
    """
    rated = [student for student in result.students if student.top1 is not None]
    if not rated:
        chosen = min(result.students, key=_by_speed)
        reason = f"No student has a known top-1 accuracy; {chosen.name} is {_pace(chosen)}."
        return Recommendation(chosen.name, reason + _which_run(chosen))
    best = min(rated, key=lambda student: (-_top1(student), *_by_speed(student)))
    # A student that is exactly half a point behind is included: binary fractions can miss it by 1e-17.
    close = [student for student in rated if _top1(best) - _top1(student) <= TOLERANCE + 1e-9]
    chosen = min(close, key=_by_speed)
    return Recommendation(chosen.name, _reason(chosen, best=best) + _which_run(chosen))


def _reason(chosen: StudentResult, *, best: StudentResult) -> str:
    figures = f"{chosen.name} reaches {_shown_top1(chosen)} top-1"
    if len(chosen.seed_runs) > 1:
        figures += f" in the mean of {len(chosen.seed_runs)} seeds"
    points = f"{TOLERANCE * 100:g} percentage points"
    if chosen.single_image_ms is None:
        return f"{figures}, the best of all students; latency at batch size 1 was not measured."
    figures += f" at {chosen.single_image_ms:.3g} ms per image (batch size 1, median)"
    if chosen is best:
        return f"{figures}: the best of all students, and no faster one lies within {points} of it."
    lead = f"{best.name} ({_shown_top1(best)}"
    lead += ")" if best.single_image_ms is None else f" at {best.single_image_ms:.3g} ms)"
    return f"{figures}: the fastest within {points} of the best student, {lead}."


def _shown_top1(student: StudentResult) -> str:
    std = student.std("top1")
    return f"{_top1(student):.2%}" if std is None else f"{_top1(student) * 100:.2f} ± {std * 100:.2f}%"


def _which_run(chosen: StudentResult) -> str:
    """Return a sentence with the seed run to ship, and why it is not the best of them."""
    if not chosen.seed_runs:
        return ""
    run = f" The run to ship is {chosen.shipped.as_posix()}"
    if len(chosen.seed_runs) == 1:
        return f"{run}."
    return f"{run}, the first seed: selecting a run by its test accuracy would bias that accuracy."


def _pace(student: StudentResult) -> str:
    if student.single_image_ms is None:
        return "the first by name; latency at batch size 1 was not measured either"
    return f"the fastest at {student.single_image_ms:.3g} ms per image (batch size 1, median)"


def _top1(student: StudentResult) -> float:
    return -math.inf if student.top1 is None else student.top1


def _by_speed(student: StudentResult) -> tuple[float, float, str]:
    speed = math.inf if student.single_image_ms is None else student.single_image_ms
    return speed, -_top1(student), student.name
