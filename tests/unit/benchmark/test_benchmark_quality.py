"""Predictions of a benchmark's students: intervals, paired differences, calibration on validation samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from kdpipe.benchmark.quality import CALIBRATED_ECE, TEMPERATURE, Quality, scaling
from kdpipe.benchmark.results import BenchmarkResult, StudentResult, TeacherResult, average
from kdpipe.metrics import measure


def _logits(seed: int, *, right: float, labels: np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(seed)
    predicted = np.where(draw.random(len(labels)) < right, labels, (labels + 1) % 4)
    return (draw.standard_normal((len(labels), 4)) + 6 * np.eye(4)[predicted]).astype(np.float32)


LABELS = np.arange(400, dtype=np.int32) % 4


def _student(name: str, *, seed: int = 0, right: float, labels: np.ndarray = LABELS) -> StudentResult:
    logits = _logits(seed, right=right, labels=np.maximum(labels, 0))
    return StudentResult(
        name=name,
        path=Path(name),
        architecture="resnet8",
        distill="none",
        loss="ce",
        seed=seed,
        figures=measure(logits, labels),
        parameters=1,
        file_bytes=1,
        quality=Quality(logits, labels),
    )


def test_a_difference_has_mcnemars_p_value_and_an_interval_around_it() -> None:
    good, bad = _student("good", right=0.9), _student("bad", seed=1, right=0.7)
    assert good.quality is not None
    assert bad.quality is not None
    found = good.minus(bad)
    assert found is not None
    first, second = good.quality.correct, bad.quality.correct
    better, worse = int((first & ~second).sum()), int((second & ~first).sum())
    assert found.p_value == pytest.approx(binomtest(better, better + worse).pvalue)
    assert found.difference == pytest.approx(good.top1 - bad.top1)
    assert found.low < found.difference < found.high
    assert found.significant
    assert good.minus(good).p_value == 1


def test_the_interval_counts_labeled_samples_only() -> None:
    hidden = np.where(np.arange(400) < 100, LABELS, -1).astype(np.int32)
    student = _student("hidden", right=0.8, labels=hidden)
    expected = binomtest(round(student.top1 * 100), 100).proportion_ci(method="wilson")
    assert student.interval() == pytest.approx((expected.low, expected.high))
    assert student.interval("top5") == pytest.approx((binomtest(100, 100).proportion_ci(method="wilson").low, 1.0))
    assert student.interval("gap_recovered") is None


def test_seeds_are_compared_by_their_mean_on_each_sample() -> None:
    runs = [_student(f"kd/seed-{seed}", seed=seed, right=0.85) for seed in range(3)]
    kd, single = average(runs, name="kd", path=Path("kd")), _student("single", seed=9, right=0.7)
    assert kd.correct.shape == (3, 400)
    found = kd.minus(single)
    assert found.difference == pytest.approx(np.mean([run.top1 for run in runs]) - single.top1)
    assert found.samples == 400
    assert kd.quality is runs[0].quality


def test_a_student_is_compared_with_the_teacher() -> None:
    logits = _logits(5, right=0.95, labels=LABELS)
    teacher = TeacherResult("teacher", measure(logits, LABELS), quality=Quality(logits, LABELS))
    found = _student("student", right=0.8).minus(teacher)
    assert found.difference < 0
    assert found.significant
    expected = binomtest(int(teacher.correct.sum()), 400).proportion_ci(method="wilson")
    assert teacher.interval() == pytest.approx((expected.low, expected.high))
    assert _student("student", right=0.8).minus(TeacherResult("teacher", {"top1": 0.9})) is None
    assert TeacherResult("teacher", {"top1": 0.9}).interval() is None


def test_without_labels_nothing_is_compared() -> None:
    blind = _student("blind", right=0.8, labels=np.full(400, -1, np.int32))
    assert blind.correct is None
    assert blind.interval() is None
    assert blind.minus(_student("other", right=0.8)) is None
    assert blind.quality.absent == (0, 1, 2, 3)


def test_the_best_is_the_first_of_the_most_accurate() -> None:
    students = tuple(_student(name, right=right) for name, right in (("a", 0.5), ("b", 0.8), ("c", 0.8)))
    result = BenchmarkResult(dataset="x", samples=400, students=students, machine={}, created="now")
    assert result.best.name == "b"


def test_calibration_on_validation_samples_is_measured_on_the_test_samples() -> None:
    validation = _logits(1, right=0.8, labels=LABELS)
    temperature, note = scaling(validation, LABELS)
    assert (temperature > 1, note) == (True, None)  # 6 to 0 is too sure for 80 %
    test = _logits(2, right=0.8, labels=LABELS)
    quality = Quality(test, LABELS, temperature)
    assert quality.figures[TEMPERATURE.name] == temperature
    assert quality.figures[CALIBRATED_ECE.name] == pytest.approx(measure(test / temperature, LABELS)["ece"], abs=1e-6)
    assert quality.figures[CALIBRATED_ECE.name] < 0.7 * measure(test, LABELS)["ece"]
    plain = Quality(test, LABELS)
    assert (plain.figures, plain.calibrated_reliability) == ({}, None)


def test_a_temperature_needs_labels() -> None:
    logits = _logits(1, right=0.8, labels=LABELS)
    assert scaling(logits, np.full(400, -1)) == (None, "no validation sample has a label")
    excluded = np.where(np.arange(4) == 0, -np.inf, logits).astype(np.float32)
    assert scaling(excluded, LABELS) == (None, "the cross-entropy of the validation samples is infinite")
    perfect = (6 * np.eye(4)[LABELS]).astype(np.float32)
    assert scaling(perfect, LABELS) == (0.01, "no temperature from 0.01 to 100 has the lowest cross-entropy")
