"""Gaps, the Pareto front and the recommendation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.benchmark.comparison import accuracy_noise, compare, gap_recovered, pareto_front, recommend
from kdpipe.benchmark.results import BenchmarkResult, Budget, StudentResult
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


@given(st.lists(st.tuples(COORDINATES, COORDINATES), max_size=12))
@settings(max_examples=300, deadline=None)
def test_front_by_brute_force(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])

    known = [point for point in points if not any(map(math.isnan, point))]
    expected = [not any(map(math.isnan, p)) and not any(beats(q, p) for q in known) for p in points]
    assert pareto_front(points) == expected


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


def test_recommends_the_fastest_within_half_a_point() -> None:
    chosen, reason = recommend(
        _result(
            _student("best", top1=0.900, ms=9.0),
            _student("edge", top1=0.895, ms=2.0),
            _student("near", top1=0.899, ms=4.0),
            _student("fast", top1=0.8949, ms=1.0),
        )
    )
    assert chosen == "edge"
    assert reason == (
        "edge reaches 89.50% top-1 at 2 ms per image (batch size 1, median): the fastest within "
        "0.5 percentage points of the best student, best (90.00% at 9 ms)."
    )


def test_recommends_the_best_when_nothing_near_is_faster() -> None:
    chosen, reason = recommend(_result(_student("a", top1=0.5, ms=0.1), _student("b", top1=0.9, ms=2.5)))
    assert chosen == "b"
    assert "b reaches 90.00% top-1 at 2.5 ms" in reason
    assert "no faster one" in reason


def test_equal_speed_goes_to_accuracy_then_name() -> None:
    students = [_student(name, top1=top1, ms=1.0) for name, top1 in [("c", 0.9), ("b", 0.9), ("a", 0.899)]]
    assert recommend(_result(*students)).name == "b"


def test_recommends_with_figures_missing() -> None:
    assert recommend(_result(_student("a", top1=0.90), _student("b", top1=0.897, ms=3.0))).name == "b"
    untimed = recommend(_result(_student("a", top1=0.899), _student("b", top1=0.9)))
    assert untimed.name == "b"
    assert "not measured" in untimed.reason
    unlabeled = recommend(_result(_student("a", top1=None, ms=2.0), _student("b", top1=None, ms=1.0)))
    assert unlabeled.name == "b"
    assert "No student has a known top-1" in unlabeled.reason
    assert recommend(_result(_student("b", top1=None), _student("a", top1=None))).name == "a"


def test_a_benchmark_needs_students_with_names_of_their_own() -> None:
    with pytest.raises(RunError, match="at least one"):
        _result()
    with pytest.raises(RunError, match="called 'a'"):
        _result(_student("a", top1=0.5), _student("a", top1=0.6))


def test_the_baseline_of_a_compressed_student_is_its_parents_family_with_the_epochs_of_both() -> None:
    """Networks of the same smaller shape are none, and neither are those of fewer epochs."""
    small = "compressed:resnet8,widths=-8"
    budgets = {epochs: Budget(epochs=epochs, samples=100) for epochs in (10, 13)}
    compressed = _student("small", top1=0.6, architecture=small, parent="ab", budget=budgets[13])
    family = _student("family", top1=0.5, distill="none", budget=budgets[13])
    shorter = _student("shorter", top1=0.4, distill="none", budget=budgets[10])
    alike = _student("alike", top1=0.1, architecture=small, distill="none", parent="ab", budget=budgets[13])
    anew = _student("anew", top1=0.2, architecture=small, distill="none", budget=budgets[13])
    found = compare([compressed, family, alike, anew], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_recovered == pytest.approx(0.5)
    found = compare([compressed, shorter, alike, anew], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_note == "the baseline shorter was trained with 1,000 images over 10 epochs, not 1,300 over 13"
    taught_anew = _student("taught", top1=0.45, architecture=small, budget=budgets[13])
    found = compare([taught_anew, anew, family], teacher_top1=0.7, samples=10_000)
    assert found[0].gap_recovered == pytest.approx(0.5)
