"""Students beside each other: what distilling gained, who is on the Pareto front, which one to ship."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from kdpipe.benchmark.results import BenchmarkResult, StudentResult

Baselines = dict[int | None, list[float]]
TOLERANCE = 0.005
"""How much top-1 the recommended student may lose against the best one: half a percentage point."""


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

    The baselines of a distilled student are the runs of the same architecture with ``distill="none"``, which have
    no gap themselves. Where both have the same seeds, each run is compared with the mean top-1 of the baselines of its
    own seed, and the student has the mean of these gaps. Otherwise, or where one of them is undefined, mean top-1
    is compared with mean top-1.

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
        replace(_with_gap(student, _baselines(student, students), teacher_top1=teacher_top1), on_front=on_front)
        for student, on_front in zip(students, pareto_front(points), strict=True)
    )


def _baselines(student: StudentResult, students: Sequence[StudentResult]) -> Baselines:
    """Return what the runs that a distilled student is compared with reach, by their seed."""
    found: Baselines = {}
    for other in students:
        if student.distill != "none" and other.distill == "none" and other.architecture == student.architecture:
            for run in other.runs:
                if run.top1 is not None:
                    found.setdefault(run.seed, []).append(run.top1)
    return found


def _with_gap(student: StudentResult, baselines: Baselines, *, teacher_top1: float | None) -> StudentResult:
    """Return the student with its ``gap_recovered``, and with those of its runs where they are paired by seed."""
    if not baselines:
        return replace(student, gap_recovered=None)
    if set(baselines) == {run.seed for run in student.runs}:
        gaps = [
            gap_recovered(run.top1, baseline=fmean(baselines[run.seed]), teacher=teacher_top1) for run in student.runs
        ]
        known = [gap for gap in gaps if gap is not None]
        if len(known) == len(gaps):
            paired = zip(student.members, known, strict=False)  # a single run has no members
            members = tuple(replace(run, gap_recovered=gap) for run, gap in paired)
            return replace(student, gap_recovered=fmean(known), members=members)
    baseline = fmean(top1 for of_a_seed in baselines.values() for top1 in of_a_seed)
    return replace(student, gap_recovered=gap_recovered(student.top1, baseline=baseline, teacher=teacher_top1))


def recommend(result: BenchmarkResult) -> Recommendation:
    """Name the student to ship: the fastest whose top-1 lies within ``TOLERANCE`` of the best student's.

    The top-1 of several seeds is their mean. Fast means the median latency at batch size 1; ties go to the more
    accurate student, then to the first name. Students without a known top-1 are considered only if nobody has one,
    and students without a latency only if no other is left.
    """
    rated = [student for student in result.students if student.top1 is not None]
    if not rated:
        chosen = min(result.students, key=_by_speed)
        reason = f"No student has a known top-1 accuracy; {chosen.name} is {_pace(chosen)}."
        return Recommendation(chosen.name, reason + _which_run(chosen))
    best = min(rated, key=lambda student: (-_top1(student), *_by_speed(student)))
    # The small term keeps a student that is exactly half a point behind, which binary fractions can miss.
    close = [student for student in rated if _top1(best) - _top1(student) <= TOLERANCE + 1e-9]
    chosen = min(close, key=_by_speed)
    return Recommendation(chosen.name, _reason(chosen, best=best) + _which_run(chosen))


def _reason(chosen: StudentResult, *, best: StudentResult) -> str:
    figures = f"{chosen.name} reaches {_shown_top1(chosen)} top-1"
    if len(chosen.members) > 1:
        figures += f" in the mean of {len(chosen.members)} seeds"
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
    """Name the run of several seeds to ship, and why it is not the best of them."""
    if not chosen.members:
        return ""
    run = f" The run to ship is {chosen.shipped.as_posix()}"
    if len(chosen.members) == 1:
        return f"{run}."
    return f"{run}, the first seed: picked by its test accuracy, a run would look better than it is."


def _pace(student: StudentResult) -> str:
    if student.single_image_ms is None:
        return "the first by name, as latency at batch size 1 was not measured either"
    return f"the fastest at {student.single_image_ms:.3g} ms per image (batch size 1, median)"


def _top1(student: StudentResult) -> float:
    return -math.inf if student.top1 is None else student.top1


def _by_speed(student: StudentResult) -> tuple[float, float, str]:
    speed = math.inf if student.single_image_ms is None else student.single_image_ms
    return speed, -_top1(student), student.name
