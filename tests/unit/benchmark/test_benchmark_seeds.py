"""Students of several seeds: means, deviations, gaps by seed, and which run to ship."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.benchmark.comparison import compare
from kdpipe.benchmark.results import StudentResult, average, mean_history
from tests.timings import timed

SHARES = st.lists(st.integers(0, 10_000).map(lambda hits: hits / 10_000), min_size=2, max_size=7)


FIGURES = ("top5", "cross_entropy", "agreement")


def _run(name: str, *, top1: float | None, seed: int = 0, ms: float = 1.0, **other: Any) -> StudentResult:
    figures = {"top1": top1} | {figure: other.pop(figure, None) for figure in FIGURES}
    values: dict[str, Any] = {
        "path": Path("runs") / name, "architecture": "resnet8", "distill": "cache", "loss": "kd",
        "parameters": 10, "file_bytes": 40, "timings": timed({1: ms}),
    }  # fmt: skip
    return StudentResult(name=name, figures=figures, seed=seed, **values | other)


def _seeds(
    name: str, top1: Sequence[float | None], *, seeds: Sequence[int] | None = None, **other: Any
) -> StudentResult:
    numbers = range(len(top1)) if seeds is None else seeds
    members = [
        _run(f"{name}/seed-{seed}", top1=value, seed=seed, **other) for seed, value in zip(numbers, top1, strict=True)
    ]
    return average(members, name=name, path=Path("runs") / name)


@given(SHARES)
@settings(max_examples=100, deadline=None)
def test_mean_and_deviation_are_those_of_numpy(values: list[float]) -> None:
    student = _seeds("a", values)
    assert student.top1 == pytest.approx(np.mean(values), abs=1e-12)
    assert student.std("top1") == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_every_figure_of_several_seeds_is_a_mean_and_the_rest_is_the_first_run_s() -> None:
    first = _run("a/seed-4", top1=0.5, seed=4, ms=2.0, top5=0.9, cross_entropy=1.0, agreement=0.25, file_bytes=41)
    second = _run("a/seed-1", top1=0.75, seed=1, ms=9.0, top5=0.8, cross_entropy=2.0, agreement=0.75, timings={})
    student = average([first, second], name="a", path=Path("runs/a"))
    assert student.figures == pytest.approx({"top1": 0.625, "top5": 0.85, "cross_entropy": 1.5, "agreement": 0.5})
    assert (student.std("top5"), student.std("cross_entropy")) == pytest.approx((0.1 / 2**0.5, 0.5**0.5))
    assert (student.name, student.path, student.seed, student.seed_runs) == ("a", Path("runs/a"), None, (first, second))
    assert (student.latencies[1].p50_ms, student.file_bytes, student.shipped) == (2.0, 41, first.path)


def test_one_seed_has_no_deviation() -> None:
    student = _seeds("a", [0.5], seeds=[7])
    assert (student.top1, student.std("top1"), student.seed) == (0.5, None, 7)
    assert _run("a", top1=0.5).std("top1") is None


def test_a_figure_that_a_run_lacks_has_neither_mean_nor_deviation() -> None:
    unlabeled = _seeds("a", [None, None, None])
    assert (unlabeled.top1, unlabeled.std("top1"), unlabeled.std("agreement")) == (None, None, None)
    members = [_run("a", top1=0.5, cross_entropy=1.0), _run("b", top1=0.6, cross_entropy=math.inf)]
    assert average(members, name="c", path=Path("c")).std("cross_entropy") is None
    assert average([*members, _run("d", top1=None)], name="c", path=Path("c")).top1 is None


def test_gaps_are_paired_by_seed_whatever_their_order() -> None:
    distilled = _seeds("kd", [0.80, 0.70, 0.75], seeds=[0, 1, 2])
    labels = _seeds("none", [0.65, 0.60, 0.50], seeds=[2, 0, 1], distill="none", agreement=None)
    compared, baseline = compare([distilled, labels], teacher_top1=0.9, samples=10_000)
    expected = [(0.80 - 0.60) / 0.30, (0.70 - 0.50) / 0.40, (0.75 - 0.65) / 0.25]
    assert [run.gap_recovered for run in compared.seed_runs] == pytest.approx(expected)
    assert compared.gap_recovered == pytest.approx(np.mean(expected))
    assert compared.std("gap_recovered") == pytest.approx(np.std(expected, ddof=1))
    assert (baseline.gap_recovered, baseline.std("gap_recovered")) == (None, None)


@pytest.mark.parametrize(
    "labels",
    [
        [_seeds("none", [0.5, 0.6], seeds=[0, 1], distill="none")],
        [_seeds("none", [0.5, 0.55, 0.6], seeds=[0, 1, 3], distill="none")],
        [_run("none", top1=0.55, distill="none")],
        [_run("none-0", top1=0.5, distill="none"), _run("none-8", top1=0.6, seed=8, distill="none")],
    ],
)
def test_other_seeds_are_compared_by_their_means(labels: list[StudentResult]) -> None:
    compared = compare([_seeds("kd", [0.7, 0.8, 0.75]), *labels], teacher_top1=0.95, samples=10_000)[0]
    assert compared.gap_recovered == pytest.approx((0.75 - 0.55) / (0.95 - 0.55))
    assert compared.std("gap_recovered") is None


def test_single_runs_pair_with_a_student_of_several_seeds() -> None:
    labels = [_run("none-0", top1=0.5, distill="none"), _run("none-1", top1=0.6, seed=1, distill="none")]
    together = _seeds("none", [0.5, 0.6], distill="none")
    for baselines in (labels, [together]):
        single, several = compare(
            [_run("one", top1=0.7, seed=1), _seeds("kd", [0.6, 0.7]), *baselines], teacher_top1=0.8, samples=10_000
        )[:2]
        assert single.gap_recovered == pytest.approx((0.7 - 0.55) / (0.8 - 0.55))
        assert several.gap_recovered == pytest.approx((0.1 / 0.3 + 0.1 / 0.2) / 2)


def test_a_seed_without_a_gap_leaves_that_of_the_means() -> None:
    labels = _seeds("none", [0.50, 0.90], distill="none")
    compared = compare([_seeds("kd", [0.8, 0.7]), labels], teacher_top1=0.85, samples=10_000)[0]
    assert compared.gap_recovered == pytest.approx((0.75 - 0.70) / (0.85 - 0.70))
    assert compared.std("gap_recovered") is None
    assert compare([_seeds("kd", [None, None]), labels], teacher_top1=0.85, samples=10_000)[0].gap_recovered is None


def test_a_gap_by_seed_that_is_within_the_noise_leaves_that_of_the_means() -> None:
    """On 100 samples 0.9 differs from 0.6 and 0.7, but not from 0.85."""
    labels = _seeds("none", [0.6, 0.85], distill="none")
    compared = compare([_seeds("kd", [0.8, 0.8]), labels], teacher_top1=0.9, samples=100)[0]
    assert compared.gap_recovered == pytest.approx((0.8 - 0.725) / (0.9 - 0.725))
    assert (compared.std("gap_recovered"), compared.gap_note) == (None, None)
    every = compare([_seeds("kd", [0.8, 0.8]), labels], teacher_top1=0.9, samples=30)[0]
    assert every.gap_recovered is None
    assert every.gap_note is not None
    assert "baseline (72.50%) is within the noise of 30 test samples" in every.gap_note


def test_histories_are_averaged_by_epoch() -> None:
    runs = [[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "kd": 3.0}], [{"epoch": 1, "loss": 4.0}] * 2]
    assert mean_history(runs) == [{"epoch": 1, "loss": 3.0}, {"epoch": 1.5, "loss": 2.5}]
    assert mean_history(runs[:1]) == runs[0]
    assert mean_history([runs[0], []]) == []
