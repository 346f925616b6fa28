"""Gaps and the Pareto front."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.benchmark.comparison import accuracy_noise, compare, gap_recovered, pareto_front
from kdpipe.benchmark.origin import Budget, Origin
from kdpipe.benchmark.results import BenchmarkResult, StudentResult
from kdpipe.benchmark.timing import Latency
from kdpipe.errors import RunError
from tests.timings import timed

COORDINATES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan])


def _student(name: str, *, top1: float | None, ms: float | None = None, **other: Any) -> StudentResult:
    values: dict[str, Any] = {
        "path": Path(name), "architecture": "resnet8", "distill": "cache", "loss": "kd", "seed": 0,
        "parameters": 10, "file_bytes": 40, "timings": {} if ms is None else timed({1: ms}),
    }  # fmt: skip
    return StudentResult(name=name, figures={"top1": top1}, **values | other)


def _result(*students: StudentResult) -> BenchmarkResult:
    return BenchmarkResult(dataset="d", samples=1, students=students, machine={}, created="2025-01-01")


def test_gap_recovered() -> None:
    assert gap_recovered(0.8, baseline=0.7, teacher=0.9, samples=10_000) == (pytest.approx(0.5), None)
    assert gap_recovered(0.6, baseline=0.7, teacher=0.9, samples=10_000) == (pytest.approx(-0.5), None)
    assert gap_recovered(0.9, baseline=0.5, teacher=0.75, samples=10_000) == (pytest.approx(1.6), None)


@pytest.mark.parametrize(
    ("student", "baseline", "teacher", "note"),
    [
        (0.8, None, 0.9, "there is no baseline"),
        (0.8, 0.7, None, "no teacher was measured"),
        (None, 0.7, 0.9, "the test samples have no labels"),
        (0.8, 0.9, 0.9, "the teacher's top-1 (90.00%) is not above the baseline's (90.00%)"),
        (0.8, 0.95, 0.9, "is not above the baseline's (95.00%)"),
        (0.8, 0.7, math.nan, "is not above"),
    ],
)
def test_an_undefined_gap_has_a_reason(
    student: float | None, baseline: float | None, teacher: float | None, note: str
) -> None:
    gap = gap_recovered(student, baseline=baseline, teacher=teacher, samples=10_000)
    assert gap.value is None
    assert gap.note is not None
    assert note in gap.note


def test_a_gap_within_the_noise_of_the_test_set_is_undefined() -> None:
    """For 0.9 and 0.8 the noise is 1.96 * sqrt((0.09 + 0.16) / n), which is below their difference from n = 97 on."""
    assert accuracy_noise(0.9, 0.8, 100) == pytest.approx(0.098)
    assert gap_recovered(0.85, baseline=0.8, teacher=0.9, samples=97).value == pytest.approx(0.5)
    gap = gap_recovered(0.3, baseline=0.8, teacher=0.9, samples=96)
    assert gap == (
        None,
        "the difference between teacher (90.00%) and baseline (80.00%) is within the noise of 96 test samples "
        "(± 10.00 percentage points)",
    )


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_the_noise_is_that_of_two_proportions(first: int, second: int, samples: int) -> None:
    """The variance of a mean of n draws of 0 or 1 is p(1 - p)/n, and variances of independent means add up."""
    shares = [min(hits, samples) / samples for hits in (first, second)]
    variance = sum(float(np.var([1] * round(p * samples) + [0] * round((1 - p) * samples))) for p in shares) / samples
    assert accuracy_noise(*shares, samples) == pytest.approx(1.96 * math.sqrt(variance), abs=1e-12)


def _front(points: Sequence[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> list[bool]:
    """Return the front of accuracies and latencies with the given intervals."""
    latencies = [Latency(ms, *span) for (_, ms), span in zip(points, spans, strict=True)]
    return pareto_front([accuracy for accuracy, _ in points], latencies)


@given(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=12))
@settings(max_examples=300, deadline=None)
def test_front_by_brute_force(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])

    known = [point for point in points if not any(map(math.isnan, point))]
    expected = [not any(map(math.isnan, p)) and not any(beats(q, p) for q in known) for p in points]
    assert _front(points, [(ms, ms) for _, ms in points]) == expected


def test_compare_pairs_by_architecture_and_averages_the_baselines() -> None:
    students = compare(
        [
            _student("distilled", top1=0.85, ms=1.0),
            _student("labels-0", top1=0.79, ms=1.1, distill="none"),
            _student("labels-1", top1=0.81, ms=1.2, distill="none"),
            _student("other", top1=0.95, ms=3.0, architecture="resnet20"),
            _student("untimed", top1=0.99, distill="live"),
        ],
        teacher_top1=0.9,
        samples=10_000,
    )
    assert [student.gap_recovered for student in students] == pytest.approx([0.5, None, None, None, 1.9])
    assert [student.on_front for student in students] == [True, False, False, True, False]


def test_compare_without_a_teacher_leaves_the_gap_undefined() -> None:
    students = [_student("a", top1=0.8), _student("b", top1=0.7, distill="none")]
    compared = compare(students, teacher_top1=None, samples=10_000)
    assert [student.gap_recovered for student in compared] == [None, None]
    assert [student.gap_note for student in compared] == ["no teacher was measured", None]


def test_every_distilled_student_without_a_gap_has_a_reason() -> None:
    students = [
        _student("a", top1=0.9),
        _student("b", top1=0.89, distill="none"),
        _student("c", top1=0.9, architecture="resnet20"),
    ]
    close, baseline, alone = compare(students, teacher_top1=0.9, samples=360)
    assert close.gap_note is not None
    assert "within the noise of 360 test samples" in close.gap_note
    assert baseline.gap_note is None
    assert alone.gap_note is not None
    assert "no baseline" in alone.gap_note
    far = compare(students, teacher_top1=0.99, samples=360)[0]
    assert (far.gap_recovered, far.gap_note) == (pytest.approx(0.1), None)


def test_no_latency_within_its_noise_makes_a_front() -> None:
    """Two copies of one network are timed once; of other networks the intervals say which are faster."""
    points = [(0.90, 1.00), (0.91, 1.05), (0.89, 0.96), (0.80, 0.50)]
    exact = _front(points, [(ms, ms) for _, ms in points])
    noisy = _front(points, [(0.90, 1.10), (0.95, 1.15), (0.94, 0.98), (0.49, 0.51)])
    assert exact == [True, True, True, True]
    assert noisy == [False, True, False, True]
    assert _front([(0.9, 1.0), (0.9, 1.1)], [(0.8, 1.2), (0.9, 1.3)]) == [True, True]


@given(st.lists(st.tuples(COORDINATES, st.integers(0, 9), st.integers(0, 3)), max_size=9))
@settings(max_examples=200, deadline=None)
def test_front_with_intervals_by_brute_force(drawn: list[tuple[float, int, int]]) -> None:
    points = [(share, float(middle)) for share, middle, _ in drawn]
    spans = [(middle - half / 2, middle + half / 2) for _, middle, half in drawn]

    def beats(i: int, j: int) -> bool:
        apart = spans[i][0] > spans[j][1], spans[i][1] < spans[j][0]
        slower, faster = apart
        return (points[i][0] > points[j][0] and not slower) or (points[i][0] == points[j][0] and faster)

    known = [i for i, point in enumerate(points) if not math.isnan(point[0])]
    expected = [i in known and not any(beats(j, i) for j in known) for i in range(len(points))]
    assert _front(points, spans) == expected


def test_a_benchmark_needs_students_with_names_of_their_own() -> None:
    with pytest.raises(RunError, match="at least one"):
        _result()
    with pytest.raises(RunError, match="called 'a'"):
        _result(_student("a", top1=0.5), _student("a", top1=0.6))


def test_the_baseline_of_a_compressed_student_is_its_parents_family_with_the_epochs_of_both() -> None:
    """Networks of the same smaller shape are none, and neither are those of fewer epochs."""
    small = "compressed:resnet8,widths=-8"
    budgets = {epochs: Budget(epochs=epochs, samples=100) for epochs in (10, 13)}
    of_family = Origin(parent_digest="ab")
    compressed = _student("small", top1=0.6, architecture=small, origin=of_family, budget=budgets[13])
    family = _student("family", top1=0.5, distill="none", budget=budgets[13])
    shorter = _student("shorter", top1=0.4, distill="none", budget=budgets[10])
    alike = _student("alike", top1=0.1, architecture=small, distill="none", origin=of_family, budget=budgets[13])
    anew = _student("anew", top1=0.2, architecture=small, distill="none", budget=budgets[13])
    found = compare([compressed, family, alike, anew], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_recovered == pytest.approx(0.5)
    found = compare([compressed, shorter, alike, anew], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_note == "the baseline shorter was trained with 1,000 images over 10 epochs, not 1,300 over 13"
    taught_anew = _student("taught", top1=0.45, architecture=small, budget=budgets[13])
    found = compare([taught_anew, anew, family], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_recovered == pytest.approx(0.5)
