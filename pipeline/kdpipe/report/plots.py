"""The report's charts: accuracy against latency, training curves, reliability, risk against coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdpipe.benchmark.comparison import pareto_front
from kdpipe.benchmark.deciding import Verdict
from kdpipe.benchmark.results import BenchmarkResult, Distill, StudentResult
from kdpipe.report.figures import Engine, Row, engines, number
from kdpipe.report.svg import HEIGHT, SERIES, WIDTH, Chart, Point, horizontal, vertical

History = Sequence[Mapping[str, float]]

STYLES: dict[Distill, tuple[str, str, str]] = {
    "cache": ("circle", "s0", "distilled from a store"),
    "live": ("square", "s1", "distilled live"),
    "none": ("triangle", "s7", "labels only"),
}
"""Shape, color and name of the marks; the shape repeats the distinction for those who see no colors."""
MOST_CURVES = 24
CURVES = ("loss", "top1", "accuracy", "agreement")
"""Parts of the names of the figures that are drawn by epoch."""


@dataclass(frozen=True)
class Placed:
    """A student in the plot of accuracy against latency."""

    student: StudentResult
    ms: float
    """Median latency at batch size 1, in milliseconds."""
    low: float
    high: float
    top1: float
    """In percent."""
    on_front: bool


def placed(result: BenchmarkResult, engine: Engine) -> list[Placed]:
    """Return the students that have both a top-1 and a latency at batch size 1 with an engine."""
    known = []
    for student in result.students:
        timing = Row(student, engine).timing(1)
        if student.top1 is not None and timing is not None and math.isfinite(timing.p50_ms):
            known.append((student, student.top1, timing.latency))
    front = pareto_front([top1 for _, top1, _ in known], [each for *_, each in known])
    return [
        Placed(student, each.ms, each.low, each.high, top1 * 100, on_front)
        for (student, top1, each), on_front in zip(known, front, strict=True)
    ]


def pareto(result: BenchmarkResult, engine: Engine | None, *, chosen: str | None) -> Chart | None:
    """Draw top-1 against the median latency at batch size 1; None where no student has both.

    The front is a step line: the best accuracy within a given latency. The teacher's accuracy, if known, is a dashed
    line. Whiskers are 95 % intervals of both, a thick bar is ± one standard deviation over several seeds, and an arrow
    leads from the parent to a compressed student. Names that would overlap something are left out, except those of the
    front.
    """
    points = [] if engine is None else placed(result, engine)
    if engine is None or not points:
        return None
    times = [value for point in points for value in (point.ms, point.low, point.high) if value > 0]
    x = horizontal(times, log=max(times) > 8 * min(times), room=0.15)
    teacher = None if result.teacher is None else result.teacher.top1
    heights = [bound for point in points for bound in _span(point)] + ([] if teacher is None else [teacher * 100])
    y = vertical(heights, room=0.08)
    front = sorted((point for point in points if point.on_front), key=lambda point: point.ms)
    chart = Chart(
        x, y, title=f"Accuracy against latency with {engine.title}", text=_pareto_text(points, teacher, engine)
    )
    chart.axes(f"median latency of one image, {engine.name} {engine.precision} (ms)", "top-1 accuracy (%)")
    if teacher is not None:
        chart.line([(x.low, teacher * 100), (x.high, teacher * 100)], "teacher")
        chart.text_at(x.end - 4, y(teacher * 100) - 6, "teacher", anchor="end", style="label")
    steps: list[Point] = []
    for point in front:
        steps += [(point.ms, steps[-1][1]), (point.ms, point.top1)] if steps else [(point.ms, point.top1)]
    if front:
        chart.line([*steps, (x.high, front[-1].top1)], "front")
    by_weights = {run.origin.weights: point for point in points for run in point.student.runs}
    for point in points:
        _whiskers(chart, point)
        compressed_from = point.student.origin.parent_digest
        parent = None if compressed_from is None else by_weights.get(compressed_from)
        if parent is not None and parent is not point:
            _arrow(chart, parent, point)
    for point in points:
        shape, style, _ = STYLES[point.student.distill]
        ship = " ship" if point.student.name == chosen else ""
        chart.mark(x(point.ms), y(point.top1), shape=shape, style=style + ship, title=_words(point))
    for point in sorted(points, key=lambda each: (each.student.name != chosen, not each.on_front, -each.top1)):
        needed = point.on_front or point.student.name == chosen
        chart.label(x(point.ms), y(point.top1), point.student.name, needed=needed)
    kinds = [kind for kind in STYLES if any(point.student.distill == kind for point in points)]
    chart.legend([*(STYLES[kind] for kind in kinds), ("line", "front", "Pareto front")])
    return chart


def pareto_file(result: BenchmarkResult, verdict: Verdict) -> str:
    """Return the plot with the engine to ship as an SVG file; where nothing can be drawn, one that says so."""
    chart = pareto(result, next(iter(engines(result)), None), chosen=verdict.chosen)
    if chart is None:
        text = "No student has both a top-1 accuracy and a latency at batch size 1."
        chart = Chart(horizontal([0, 1]), vertical([0, 1]), title="Accuracy against latency", text=text)
        chart.text_at(WIDTH / 2, HEIGHT / 2, text, anchor="middle")
    return chart.standalone()


def curves(histories: Mapping[str, History], losses: Mapping[str, str]) -> list[Chart]:
    """Draw the figures by epoch, one chart for each figure, at most ``MOST_CURVES`` students in each.

    Losses of students that were trained with different losses are not comparable, so that each loss has a chart of its
    own; ``losses`` has the name of each student's. Losses and accuracies are drawn if there are any, otherwise every
    figure. The x axis is the record's ``epoch`` if it has one, otherwise its position from 0.
    """
    histories = dict(list(histories.items())[:MOST_CURVES])
    style = {name: index for index, name in enumerate(histories)}
    drawn = []
    for key in _curve_keys(histories):
        of_loss = "loss" in key or key in ("kd", "ce")
        groups: dict[str, dict[str, list[Point]]] = {}
        for name, history in histories.items():
            if points := _curve(history, key):
                groups.setdefault(losses.get(name, "") if of_loss else "", {})[name] = points
        for loss, lines in groups.items():
            drawn.append(_curve_chart(key if not loss else f"{key}, trained with {loss}", lines, style))
    return drawn


def reliability(
    bins: Sequence[tuple[float, float, int]], *, name: str, after: Sequence[tuple[float, float, int]] = ()
) -> Chart:
    """Draw accuracy against confidence of bins ``(confidence, accuracy, samples)``, before and after a temperature."""
    x, y = horizontal([0, 1], room=0.0), vertical([0, 1], height=300, room=0.0)
    said = ", ".join(f"{count} samples at {mean:.2f}: {share:.2f}" for mean, share, count in bins if count)
    text = f"Accuracy by confidence. {said}."
    chart = Chart(x, y, title=f"Reliability of {name}", text=text, height=300)
    chart.axes("confidence", "accuracy")
    chart.line([(0, 0), (1, 1)], "teacher")
    most = max((count for *_, count in bins), default=1)
    for mean, share, count in bins:
        if count:
            chart.add(
                '<circle class="mark s0 soft" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>',
                *(x(mean), y(share), 3 + 9 * math.sqrt(count / most)),
                f"{count} samples: confidence {mean:.3f}, accuracy {share:.3f}",
            )
    chart.line([(mean, share) for mean, share, count in bins if count], "s0")
    if after:
        chart.line([(mean, share) for mean, share, count in after if count], "s1 dash1")
    chart.legend(
        [("line", "s0", "as it is"), *([("line", "s1 dash1", "after the temperature")] if after else []),
         ("line", "teacher", "perfectly calibrated")]
    )  # fmt: skip
    return chart


def risk_coverage(curves: Mapping[str, Sequence[Point]]) -> Chart:
    """Draw the error of the most confident part of the predictions against the size of that part, for each student."""
    curves = dict(list(curves.items())[:MOST_CURVES])
    points = [(share * 100, risk * 100) for curve in curves.values() for share, risk in curve]
    x, y = horizontal([0, 100], room=0.0), vertical([0, *(risk for _, risk in points)], height=300, room=0.04)
    ends = ", ".join(f"{name} {curve[-1][1]:.2%}" for name, curve in curves.items() if curve)
    chart = Chart(x, y, title="Risk against coverage", text=f"Error at full coverage: {ends}.", height=300)
    chart.axes("coverage: most confident predictions (%)", "error (%)")
    for index, curve in enumerate(curves.values()):
        chart.line([(share * 100, risk * 100) for share, risk in curve], _series(index))
    chart.legend([("line", _series(index), name) for index, name in enumerate(curves)])
    return chart


def _span(point: Placed) -> tuple[float, float]:
    """Return the vertical extent of a point's whiskers and bar, in percent."""
    interval, std = point.student.interval("top1"), 100 * (point.student.std("top1") or 0.0)
    low, high = (point.top1, point.top1) if interval is None else (interval.low * 100, interval.high * 100)
    return min(low, point.top1 - std), max(high, point.top1 + std)


def _whiskers(chart: Chart, point: Placed) -> None:
    """Draw the intervals of a point as thin lines with ends, and the deviation over seeds as a thick one."""
    x, y, style = chart.x(point.ms), chart.y(point.top1), STYLES[point.student.distill][1]
    interval, std = point.student.interval("top1"), 100 * (point.student.std("top1") or 0.0)
    if interval is not None:
        top, bottom = chart.y(interval.high * 100), chart.y(interval.low * 100)
        path = f"M{x - 4:.1f} {top:.1f}h8m-4 0V{bottom:.1f}m-4 0h8"
        chart.add('<path class="whisker {}" d="{}"/>', style, path)
        chart.taken.append((x - 3, top, x + 3, bottom))
    if point.low < point.high:
        left, right = chart.x(point.low), chart.x(point.high)
        chart.add('<path class="whisker {}" d="{}"/>', style, f"M{left:.1f} {y - 4:.1f}v8m0-4H{right:.1f}m0-4v8")
        chart.taken.append((left, y - 3, right, y + 3))
    if std:
        top, bottom = chart.y(point.top1 + std), chart.y(point.top1 - std)
        chart.add('<path class="deviation {}" d="M{:.2f} {:.2f}V{:.2f}"/>', style, x, top, bottom)


def _arrow(chart: Chart, start: Placed, end: Placed) -> None:
    x0, y0, x1, y1 = chart.x(start.ms), chart.y(start.top1), chart.x(end.ms), chart.y(end.top1)
    length = math.dist((x0, y0), (x1, y1))
    if length < 20:
        return
    along = ((x1 - x0) / length, (y1 - y0) / length)
    tip = (x1 - 8 * along[0], y1 - 8 * along[1])
    wings = [
        (tip[0] - 7 * along[0] + side * 4 * along[1], tip[1] - 7 * along[1] - side * 4 * along[0]) for side in (1, -1)
    ]
    chart.add(
        '<path class="arrow" d="M{:.1f} {:.1f}L{:.1f} {:.1f}M{:.1f} {:.1f}L{:.1f} {:.1f}L{:.1f} {:.1f}"/>',
        *(x0, y0, *tip, *wings[0], *tip, *wings[1]),
    )


def _words(point: Placed) -> str:
    return f"{point.student.name}: {point.top1:.2f} % at {number(point.ms)} ms"


def _pareto_text(points: Sequence[Placed], teacher: float | None, engine: Engine) -> str:
    front = [point.student.name for point in points if point.on_front]
    said = "; ".join(map(_words, sorted(points, key=lambda point: point.ms)))
    taught = "" if teacher is None else f" The teacher has {teacher:.2%}."
    return f"{said}.{taught} On the Pareto front with {engine.name} {engine.precision}: {', '.join(front)}."


def _curve_chart(title: str, lines: Mapping[str, list[Point]], style: Mapping[str, int]) -> Chart:
    every = [point for points in lines.values() for point in points]
    x = horizontal([epoch for epoch, _ in every], room=0.02)
    y = vertical([value for _, value in every], height=260, room=0.06)
    ends = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in lines.items())
    chart = Chart(x, y, title=title, text=f"After the last epoch: {ends}.", height=260)
    ticks = [tick for tick in x.ticks if float(tick).is_integer()]
    chart.axes("epoch", title.partition(", trained")[0], x_ticks=ticks)
    for name, points in lines.items():
        chart.line(points, _series(style[name]))
    chart.legend([("line", _series(style[name]), name) for name in lines])
    return chart


def _series(index: int) -> str:
    """Return the classes of the color and the dashes of a series."""
    return f"s{index % SERIES} dash{index // SERIES % 4}"


def _curve_keys(histories: Mapping[str, History]) -> list[str]:
    """Return the figures to draw, in the order of their first appearance."""
    seen = dict.fromkeys(key for history in histories.values() for record in history for key in record)
    keys = [key for key in seen if key != "epoch" and any(_curve(each, key) for each in histories.values())]
    return [key for key in keys if any(word in key for word in CURVES)] or keys


def _curve(history: History, key: str) -> list[Point]:
    """Return the values of a figure by epoch; empty where none is finite."""
    pairs = [
        (float(record.get("epoch", index)), float(record[key])) for index, record in enumerate(history) if key in record
    ]
    return pairs if any(math.isfinite(value) for _, value in pairs) else []
