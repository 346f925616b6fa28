"""A benchmark's predictions as files: ``predictions.npz``, ``quality.json``, and values for ``metrics.json``.

Values are those of JSON; one that is undefined or not finite is None.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np

from kdpipe.benchmark.quality import Quality
from kdpipe.benchmark.results import BenchmarkResult, StudentResult, TeacherResult
from kdpipe.metrics import Bin
from kdpipe.metrics.significance import PairedDifference
from kdpipe.report.figures import finite

MOST_CLASSES = 200
"""Classes up to which ``quality.json`` holds the confusion matrix."""
COVERAGES = 100
"""Points of a risk-coverage curve."""


def predictions_npz(result: BenchmarkResult) -> bytes | None:
    """Return ids, labels and all logits as a file for ``np.load(path)``; None without a test split.

    ``ids`` uint8 ``(n, 16)``, ``labels`` int32 ``(n,)`` with -1 for none, ``classes`` (their names), ``runs`` (the name
    of each run), ``logits`` float32 ``(runs, n, classes)``; with a teacher ``teacher_logits`` float32 ``(n, classes)``.
    It holds no pickled objects, and equal predictions give equal bytes.
    """
    runs = [run for student in result.students for run in student.runs]
    logits = [run.quality.logits for run in runs if run.quality is not None]
    if result.test is None or len(logits) < len(runs):
        return None
    teacher = None if result.teacher is None or result.teacher.quality is None else result.teacher.quality.logits
    file = io.BytesIO()
    np.savez(
        file,
        allow_pickle=False,
        ids=result.test.ids,
        labels=result.test.labels.astype(np.int32),
        classes=np.array(result.test.classes, dtype=np.str_),
        runs=np.array([run.name for run in runs], dtype=np.str_),
        logits=np.stack(logits).astype(np.float32),
        **({} if teacher is None else {"teacher_logits": teacher.astype(np.float32)}),
    )
    return file.getvalue()


def quality_values(result: BenchmarkResult) -> dict[str, Any] | None:
    """Return what ``quality.json`` holds: classes, confusion, reliability and risk-coverage; None without a test split.

    Each student has those of the run to ship, the first of several seeds.
    """
    if result.test is None:
        return None
    teacher = None if result.teacher is None else result.teacher.quality
    return {
        "format": 1,
        "classes": list(result.test.classes),
        "students": {
            student.name: {"run": student.runs[0].name, **_quality(student.quality)}
            for student in result.students
            if student.quality is not None
        },
        "teacher": None if teacher is None else _quality(teacher),
    }


def comparison_values(student: StudentResult, result: BenchmarkResult) -> dict[str, Any]:
    """Return a student's accuracy by corruption, and its differences from the best and the teacher."""
    quality, best, teacher = student.quality, result.best, result.teacher
    return {
        "against_best": None if best is None else _difference(student, best),
        "against_teacher": None if teacher is None else _difference(student, teacher),
        "temperature_note": None if quality is None else quality.temperature_note,
        "corrupted": {kind: list(values) for kind, values in student.corrupted.items()},
    }


def absent_classes(result: BenchmarkResult) -> list[str]:
    """Return the names of the classes without a labeled test sample."""
    if result.test is None:
        return []
    present = np.bincount(result.test.labels[result.test.labels >= 0], minlength=len(result.test.classes))
    return [name for name, count in zip(result.test.classes, present, strict=True) if not count]


def _difference(student: StudentResult, other: StudentResult | TeacherResult) -> dict[str, Any] | None:
    found: PairedDifference | None = None if student is other else student.minus(other)
    if found is None:
        return None
    return {"name": other.name, **asdict(found), "samples_needed": found.samples_needed()}


def _quality(quality: Quality) -> dict[str, Any]:
    small = quality.confusion.shape[0] <= MOST_CLASSES
    calibrated = quality.calibrated_reliability
    return {
        "samples": quality.labeled,
        "per_class": [asdict(scores) for scores in quality.per_class],
        "confusion": quality.confusion.tolist() if small else None,
        "reliability": _bins(quality.reliability),
        "temperature": finite(quality.temperature),
        "temperature_note": quality.temperature_note,
        "calibrated_reliability": None if calibrated is None else _bins(calibrated),
        "risk_coverage": [{"coverage": share, "risk": risk} for share, risk in risk_coverage_points(quality)],
    }


def _bins(bins: tuple[Bin, ...]) -> list[dict[str, float | int | None]]:
    return [asdict(each) for each in bins]


def risk_coverage_points(quality: Quality) -> list[tuple[float, float]]:
    """Return coverage and risk at no more than ``COVERAGES`` places, evenly spaced, the last at full coverage."""
    curve, count = quality.risk_coverage, quality.labeled
    taken = sorted({-(-point * count // COVERAGES) for point in range(1, COVERAGES + 1)}) if count else []
    return [(float(curve.coverage[i - 1]), float(curve.risk[i - 1])) for i in taken]
