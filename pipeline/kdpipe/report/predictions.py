"""The page's view of the predictions: differences between students, classes, confusion, confidence, corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.benchmark.deciding import Verdict, p_text, points_text, span_text
from kdpipe.benchmark.quality import Quality
from kdpipe.benchmark.results import BenchmarkResult, StudentResult
from kdpipe.metrics import Bin
from kdpipe.report import plots
from kdpipe.report.figures import percent
from kdpipe.report.grids import Cell, Table, headings
from kdpipe.report.quality import risk_coverage_points
from kdpipe.report.svg import Chart

MOST_CLASSES = 20
"""Classes up to which the page has the whole confusion matrix and every class; of more it has the worst."""
MOST_CONFUSIONS = 15
SHADES = 6
"""Shades of a confusion matrix; the styles ``h1`` to ``h6``."""


@dataclass(frozen=True)
class Examined:
    """The predictions of one student's run to ship."""

    name: str
    run: str
    classes: Table
    """Scores by class."""
    confusion: Table
    """The confusion matrix, or the most frequent confusions of many classes."""
    reliability: Chart
    note: str
    """The temperature of the second line of the diagram, or why there is none."""


def examined(result: BenchmarkResult) -> list[Examined]:
    """Return the predictions of each student, those of the first of several seeds."""
    names = () if result.test is None else result.test.classes
    return [
        _examined(student, student.quality, names, number)
        for number, student in enumerate(result.students, start=1)
        if student.quality is not None and student.quality.labeled
    ]


def risk_coverage(result: BenchmarkResult) -> Chart | None:
    """Return the risk-coverage curves of all students; None where no test sample has a label."""
    found = {
        student.name: risk_coverage_points(student.quality)
        for student in result.students
        if student.quality is not None and student.quality.labeled
    }
    return plots.risk_coverage(found) if found else None


def differences(result: BenchmarkResult, verdict: Verdict) -> Table | None:
    """Return each student's difference in top-1 from the one to ship; None where there is nothing to compare."""
    chosen = next((student for student in result.students if student.name == verdict.chosen), None)
    lines = []
    for student in result.students:
        found = None if chosen is None or student is chosen else student.minus(chosen)
        if found is not None:
            needed = found.samples_needed()
            verdict_text = "differs" if found.significant else "within the noise"
            cells = (
                Cell(student.name, student.name),
                Cell(points_text(found.difference), found.difference, span_text(found), numeric=True),
                Cell(p_text(found.p_value), found.p_value, numeric=True),
                Cell(verdict_text, verdict_text),
                Cell("" if needed is None else f"{needed:,}", needed, numeric=True),
            )
            lines.append(("", cells))
    shown = headings("Student", "*Difference in points", "*McNemar", "At 5 %", "*Samples to decide it")
    return Table("differences", f"Top-1 minus that of {verdict.chosen}", shown, tuple(lines)) if lines else None


def corruptions(result: BenchmarkResult) -> Table | None:
    """Return the top-1 of each student under each kind of corruption, the mean of the strengths; None without."""
    kinds = list(dict.fromkeys(kind for student in result.students for kind in student.corrupted))
    lines = []
    for student in result.students:
        cells = []
        for kind in kinds:
            by_strength = student.corrupted.get(kind, ())
            known = [value for value in by_strength if value is not None]
            mean = sum(known) / len(known) if known and len(known) == len(by_strength) else None
            strengths = " ".join(percent(value) for value in by_strength)
            cells.append(Cell(percent(mean), mean, strengths, numeric=True))
        lines.append(("", (Cell(student.name, student.name), *cells)))
    caption = "Top-1 in % under each kind of corruption: the mean, and small the strengths 1 to 5"
    shown = headings("Student", *(f"*{kind}" for kind in kinds))
    return Table("corruptions", caption, shown, tuple(lines)) if kinds else None


def _examined(student: StudentResult, quality: Quality, names: Sequence[str], number: int) -> Examined:
    after = quality.calibrated_reliability
    note = (
        f"Temperature {quality.temperature:.3f}, fitted on the run's validation samples."
        if quality.temperature is not None
        else f"No second line: {quality.temperature_note or 'there is no temperature'}."
    )
    return Examined(
        name=student.name,
        run=student.runs[0].name,
        classes=_classes(quality, names, f"classes-{number}"),
        confusion=_confusion(quality, names, f"confusion-{number}"),
        reliability=plots.reliability(
            _points_of(quality.reliability), name=student.name, after=_points_of(after or ())
        ),
        note=note,
    )


def _classes(quality: Quality, names: Sequence[str], key: str) -> Table:
    scores = list(enumerate(quality.per_class))
    caption = f"Scores by class on {quality.labeled:,} labeled test samples"
    if len(scores) > MOST_CLASSES:
        scores = sorted(scores, key=lambda each: 2.0 if each[1].f1 is None else each[1].f1)[:MOST_CLASSES]
        caption += f": the {MOST_CLASSES} of {len(quality.per_class):,} classes with the lowest F1"
    if quality.absent:
        caption += f"; {len(quality.absent):,} classes have no sample and no scores"
    lines = tuple(
        ("", (
            Cell(_name(index, names), _name(index, names)),
            Cell(f"{each.samples:,}", each.samples, numeric=True),
            *(
                Cell(percent(value), value, numeric=True, bar=value)
                for value in (each.recall, each.precision, each.f1)
            ),
        ))
        for index, each in scores
    )  # fmt: skip
    return Table(key, caption, headings("Class", "*Samples", "*Recall %", "*Precision %", "*F1 %"), lines)


def _confusion(quality: Quality, names: Sequence[str], key: str) -> Table:
    matrix = quality.confusion
    if len(matrix) > MOST_CLASSES:
        return _confusions(quality, names, key)
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    lines = tuple(
        ("", (
            Cell(_name(row, names), _name(row, names)),
            *(
                Cell(
                    f"{int(count):,}" if count else "",
                    int(count),
                    numeric=True,
                    style=_shade(shares[row, column], right=row == column),
                )
                for column, count in enumerate(counts)
            ),
        ))
        for row, counts in enumerate(matrix)
    )  # fmt: skip
    shown = headings("Label", *(f"*{_name(index, names)}" for index in range(len(matrix))))
    return Table(key, "Confusion: samples of each class (row) by predicted class (column)", shown, lines)


def _confusions(quality: Quality, names: Sequence[str], key: str) -> Table:
    wrong = quality.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(int(place // len(wrong)), int(place % len(wrong))) for place in order]
    lines = tuple(
        ("", (
            Cell(_name(row, names), _name(row, names)),
            Cell(_name(column, names), _name(column, names)),
            Cell(f"{int(wrong[row, column]):,}", int(wrong[row, column]), numeric=True),
        ))
        for row, column in pairs if wrong[row, column]
    )  # fmt: skip
    return Table(key, "The most frequent confusions", headings("Label", "Predicted", "*Samples"), lines)


def _shade(share: float, *, right: bool) -> str:
    """Return the style of a cell: the darker the larger its share of the row."""
    level = int(np.ceil(share * SHADES))
    return f"h{level}{' right' if right else ''}" if level else ""


def _points_of(bins: Sequence[Bin]) -> list[tuple[float, float, int]]:
    return [
        (each.confidence, each.accuracy, each.samples)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    ]


def _name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else str(index)
