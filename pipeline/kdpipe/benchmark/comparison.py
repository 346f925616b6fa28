"""Comparison of students: gap recovered and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from kdpipe.benchmark.results import StudentResult
from kdpipe.benchmark.timing import Latency

_Z95 = 1.96
"""Two-sided 95 % quantile of the normal distribution, with the digits of the formula that reports print."""


class Gap(NamedTuple):
    """A gap recovered, or the reason why it is undefined."""

    value: float | None
    note: str | None = None


def accuracy_noise(first: float, second: float, samples: int) -> float:
    """Return the half-width of the 95 % interval of the difference of two accuracies on ``samples`` test samples.

    ``1.96 * sqrt(p(1 - p)/n + q(1 - q)/n)``: Newcombe, "Interval estimation for the difference between independent
    proportions" (1998), method 1. Two models that are tested on the same samples make partly the same errors, so
    their difference varies less than that: the bound is conservative. Averaging over seeds does not lower it, since
    all of them have the same test samples.
    """
    return _Z95 * math.sqrt((first * (1 - first) + second * (1 - second)) / samples)


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


def pareto_front(accuracies: Sequence[float], latencies: Sequence[Latency]) -> list[bool]:
    """Return for each model whether it is on the Pareto front.

    A model is on the front unless another is more accurate and not slower, or as accurate and faster. Only a latency
    that is significantly higher or lower counts: a front is not made by noise. Equal models are both on it or both not;
    one with a NaN is not, and does not count for others.
    """

    def beats(first: int, second: int) -> bool:
        if accuracies[first] == accuracies[second]:
            return latencies[first].faster_than(latencies[second])
        return accuracies[first] > accuracies[second] and not latencies[second].faster_than(latencies[first])

    pairs = enumerate(zip(accuracies, latencies, strict=True))
    known = {index for index, (accuracy, latency) in pairs if not math.isnan(accuracy) and not math.isnan(latency.ms)}
    return [index in known and not any(beats(other, index) for other in known) for index in range(len(accuracies))]


def compare(
    students: Sequence[StudentResult], *, teacher_top1: float | None, samples: int
) -> tuple[StudentResult, ...]:
    """Return the students in the same order, with ``gap_recovered``, ``gap_note`` and ``on_front`` filled in.

    ``samples`` is the number of labeled test samples. The baselines of a distilled student are the runs of the same
    architecture, budget, recipe and data with ``distill="none"``, which have no gap themselves; of a compressed one
    those of its architecture before compression. If both have the same seeds, each run is compared with the mean top-1
    of the baselines of its own seed, and the student has the mean of these gaps. Otherwise, or if one of them is
    undefined, mean top-1 is compared with mean top-1.

    The front is of top-1 against the latency at batch size 1; a student that lacks one of the two is not on it.
    """
    nan = math.nan
    unknown = Latency(nan, nan, nan)
    latencies = [each.latencies[1].latency if 1 in each.latencies else unknown for each in students]
    front = pareto_front([nan if student.top1 is None else student.top1 for student in students], latencies)
    return tuple(
        replace(_with_gap(student, students, teacher_top1=teacher_top1, samples=samples), on_front=on_front)
        for student, on_front in zip(students, front, strict=True)
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
        if each.distill == "none" and each.origin.parent_digest is None and each.architecture == student.family
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
