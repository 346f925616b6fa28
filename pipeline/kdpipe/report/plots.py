"""The report's plots, drawn without matplotlib's global state."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from kdpipe.benchmark.results import BenchmarkResult, Distill, StudentResult

History = Sequence[Mapping[str, float]]

# Okabe and Ito's palette, distinguishable with common color blindness; the marker shapes repeat the distinction.
STYLES: dict[Distill, tuple[str, str, str]] = {
    "cache": ("#0072B2", "o", "distilled from a store"),
    "live": ("#D55E00", "s", "distilled live"),
    "none": ("#7A7A7A", "^", "labels only"),
}
CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
CURVE_DASHES = ("-", "--", ":", "-.")
INK = "#333333"
DPI = 160
LONGEST_LABEL = 30
MOST_CURVES = 24
LABEL_PLACES = [(8, 0), (-8, 0), (0, 9), (0, -9), (9, 11), (-9, 11), (9, -11), (-9, -11), (0, 20), (0, -20)]
PREFERRED = ("loss", "top1", "accuracy", "agreement")


def pareto_png(result: BenchmarkResult) -> bytes:
    """Draw top-1 against the median latency at batch size 1, and return the PNG.

    The front is a step line: the best accuracy within a given latency. The teacher's accuracy, if known, is a
    dashed line. Students of several seeds have bars of ± one standard deviation. Labels that would overlap something
    are left out, except those of the front.
    """
    figure, axes = _canvas(8.0, 5.0)
    placed = [(student, point) for student in result.students if (point := _point(student)) is not None]
    if not placed:
        return _empty(figure, axes, "No student has both a top-1 accuracy and a latency at batch size 1.")
    for distill, (color, marker, label) in STYLES.items():
        points = [point for student, point in placed if student.distill == distill]
        if points:
            latencies, accuracies = zip(*points, strict=True)
            axes.scatter(
                latencies,
                accuracies,
                s=56,
                c=color,
                marker=marker,
                edgecolors="white",
                linewidths=0.8,
                label=label,
                zorder=3,
            )
    for student, (latency, accuracy) in placed:
        if bar := _bar(student):
            axes.errorbar(latency, accuracy, bar, color=STYLES[student.distill][0], capsize=3, linewidth=1.1, zorder=2)
    _scale(axes, [point for _, point in placed])
    teacher = result.teacher
    if teacher is not None and teacher.top1 is not None:
        label = f"teacher, {drawable(teacher.name)}"
        axes.axhline(teacher.top1 * 100, color=INK, linestyle="--", linewidth=1.1, label=label, zorder=1)
    _front_line(axes, [point for student, point in placed if student.on_front])
    axes.set_xlabel("median latency at batch size 1 (ms)")
    axes.set_ylabel("top-1 accuracy (%)")
    _legend(figure, axes, columns=3)
    _label_points(figure, axes, placed)
    return _png(figure)


def curves_png(histories: Mapping[str, History]) -> bytes:
    """Draw each student's figures by epoch, one panel per figure, and return the PNG.

    Losses and accuracies are drawn if there are any, otherwise every figure. The x axis is the record's
    ``epoch`` if it has one, otherwise its position from 0. Values that are not finite leave a gap. Students
    after the first ``MOST_CURVES`` are left out.
    """
    histories = dict(list(histories.items())[:MOST_CURVES])
    keys = _curve_keys(histories)
    if not keys:
        return _empty(*_canvas(8.0, 3.0), "The training histories hold no figures.")
    columns = min(2, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(8.0, 2.9 * rows + 0.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, key in zip(panels, keys, strict=False):
        _plain(axes)
        axes.set_title(drawable(key), fontsize=10, loc="left", parse_math=False)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for index, (name, history) in enumerate(histories.items()):
            epochs, values = _curve(history, key)
            style = CURVE_DASHES[index // len(CURVE_COLORS) % len(CURVE_DASHES)]
            color = CURVE_COLORS[index % len(CURVE_COLORS)]
            marker = "." if len(values) == 1 else None
            axes.plot(epochs, values, style, color=color, marker=marker, linewidth=1.4, label=drawable(name))
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    _legend(figure, panels[0], columns=2)
    return _png(figure)


def drawable(name: str) -> str:
    """Return a name with characters of the built-in font only, shortened in the middle to ``LONGEST_LABEL``."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    name = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in name)
    if len(name) > LONGEST_LABEL:
        half = (LONGEST_LABEL - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    # matplotlib keeps labels that start with an underscore out of legends.
    return f" {name}" if name.startswith("_") else name


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(visible=True, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _empty(figure: Figure, axes: Axes, text: str) -> bytes:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=INK, transform=axes.transAxes)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # matplotlib writes its version into the file unless Software is None.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _point(student: StudentResult) -> tuple[float, float] | None:
    """Return ``(latency in ms, top-1 in percent)``, or None if one of them is unknown."""
    if student.top1 is None or student.single_image_ms is None:
        return None
    point = (student.single_image_ms, student.top1 * 100)
    return point if all(map(math.isfinite, point)) else None


def _bar(student: StudentResult) -> float:
    """Return the standard deviation of top-1 over the seeds in percentage points, 0 without one."""
    return 100 * (student.std("top1") or 0.0)


def _scale(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Leave room for labels around the points, and use a log axis for latencies that differ tenfold."""
    fastest, slowest = min(x for x, _ in points), max(x for x, _ in points)
    if fastest > 0 and slowest / fastest > 10:
        axes.set_xscale("log")
        room = (slowest / fastest) ** 0.12
        axes.set_xlim(fastest / room, slowest * room)
        steps = [step * 10.0**power for power in range(-6, 9) for step in (1, 2, 5)]
        axes.set_xticks([step for step in steps if fastest / room <= step <= slowest * room])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.15 * (slowest - fastest) or 0.2 * slowest or 1.0
        axes.set_xlim(max(0.0, fastest - room), slowest + room)
    axes.margins(y=0.12)


def _front_line(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    if not points:
        return
    ordered = sorted(points)
    stairs = [ordered[0]]
    for x, y in ordered[1:]:
        stairs += [(x, stairs[-1][1]), (x, y)]
    stairs.append((axes.get_xlim()[1], stairs[-1][1]))
    latencies, accuracies = zip(*stairs, strict=True)
    axes.plot(latencies, accuracies, color=INK, linewidth=1.2, alpha=0.7, label="Pareto front", zorder=2)


def _label_points(figure: Figure, axes: Axes, placed: Sequence[tuple[StudentResult, tuple[float, float]]]) -> None:
    """Write each student's name in the first free place around its point, the front's names first."""
    figure.draw_without_rendering()  # settles the layout, so that pixel positions are final
    inside = axes.get_window_extent()
    taken = [_around(axes.transData.transform(point)) for _, point in placed]
    for student, (x, y) in placed:
        ends = axes.transData.transform([(x, y - _bar(student)), (x, y + _bar(student))])
        taken.append(Bbox(ends).padded(2))
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        taken += [Bbox([start, end]).padded(2) for start, end in itertools.pairwise(corners)]
    for student, point in sorted(placed, key=lambda pair: (not pair[0].on_front, -pair[1][1])):
        text = axes.annotate(
            drawable(student.name),
            point,
            xytext=LABEL_PLACES[0],
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            parse_math=False,
            zorder=4,
        )
        if not _fit(text, inside=inside, taken=taken) and not student.on_front:
            text.remove()
        else:
            taken.append(text.get_window_extent())


def _fit(text: Annotation, *, inside: Bbox, taken: Sequence[Bbox]) -> bool:
    """Move a label to its first free place, or to the first place of all if none is free."""
    for place in LABEL_PLACES:
        _move(text, place)
        box = text.get_window_extent()
        within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        if within and not any(box.overlaps(other) for other in taken):
            return True
    _move(text, LABEL_PLACES[0])
    return False


def _move(text: Annotation, place: tuple[int, int]) -> None:
    """Put a label ``place`` points right of and above its point, growing away from it."""
    right, up = place
    text.set_position(place)
    text.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    text.set_verticalalignment("bottom" if up > 0 else "top" if up < 0 else "center")


def _around(pixel: Iterable[float]) -> Bbox:
    x, y = pixel
    half = 4 * DPI / 72
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _curve_keys(histories: Mapping[str, History]) -> list[str]:
    """Return the figures to draw, in the order of their first appearance."""
    seen = dict.fromkeys(key for history in histories.values() for record in history for key in record)
    keys = [key for key in seen if key != "epoch" and any(_curve(h, key)[1] for h in histories.values())]
    return [key for key in keys if any(word in key for word in PREFERRED)] or keys


def _curve(history: History, key: str) -> tuple[list[float], list[float]]:
    kept = [(index, record) for index, record in enumerate(history) if key in record]
    pairs = [(float(record.get("epoch", index)), float(record[key])) for index, record in kept]
    if not any(math.isfinite(value) for _, value in pairs):
        return [], []
    return [x for x, _ in pairs], [y if math.isfinite(y) else math.nan for _, y in pairs]
