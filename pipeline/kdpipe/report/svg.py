"""Charts as SVG: axes, marks and labels, in colors that follow the page's light and dark mode.

A chart is drawn in user units, about pixels at a width of ``WIDTH``. Colors are classes of ``chart.css``, which
``standalone`` puts into a file that needs no page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 50
CHARACTER = 7.0
"""Width of a character of a label, on average and rounded up."""
LONGEST_LABEL = 26
SERIES = 8
"""Number of colors of series; ``s0`` to ``s7``."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """An axis: maps the values ``low`` to ``high`` onto the pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values within the axis, about five."""
        if self.log:
            for steps in ((1, 2, 5), (1, 3), (1,)):
                powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [step * 10.0**power for power in powers for step in steps]
                found = [tick for tick in found if self.low <= tick <= self.high]
                if len(found) <= 7:
                    break
            return found
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def scale(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.08) -> Scale:
    """Return an axis that holds all finite ``values``, with ``room`` on both sides; 0 to 1 where there are none."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if log and low < high:
        factor = (high / low) ** room
        return Scale(low / factor, high * factor, start, end, log=True)
    spread = (high - low) or abs(high) or 1.0
    return Scale(low - room * spread, high + room * spread, start, end)


@dataclass
class Chart:
    """A chart that is being drawn; ``x`` and ``y`` are its axes."""

    x: Scale
    y: Scale
    title: str
    """Accessible name."""
    text: str = ""
    """Text alternative: the content of the chart in words."""
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[Markup] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Boxes ``(left, top, right, bottom)`` that labels keep away from."""

    def add(self, template: str, *values: object) -> None:
        """Add an element; values are escaped."""
        self.parts.append(Markup(template).format(*values))

    def axes(self, x_label: str, y_label: str, *, x_ticks: Sequence[float] | None = None) -> None:
        """Draw grid lines, ticks and the names of the axes."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        for value in self.x.ticks if x_ticks is None else x_ticks:
            at = self.x(value)
            self.add('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>', at, top, bottom)
            self.text_at(at, bottom + 17, f"{value:,.6g}", anchor="middle")
        for value in self.y.ticks:
            at = self.y(value)
            self.add('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>', left, at, right)
            self.text_at(left - 6, at + 4, f"{value:,.6g}", anchor="end")
        self.add('<path class="axis" d="M{:.1f} {:.1f}V{:.1f}H{:.1f}"/>', left, top, bottom, right)
        self.text_at((left + right) / 2, bottom + 38, x_label, anchor="middle", style="name")
        middle = (top + bottom) / 2
        self.add(
            '<text class="name" text-anchor="middle" transform="translate(14 {:.1f}) rotate(-90)">{}</text>',
            middle,
            y_label,
        )

    def text_at(self, x: float, y: float, text: str, *, anchor: str = "start", style: str = "tick") -> None:
        """Draw text whose baseline is at ``y``."""
        self.add('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>', style, x, y, anchor, text)

    def line(self, points: Sequence[Point], style: str) -> None:
        """Draw a line through values; those that are not finite leave a gap, and a lone one is a dot."""
        strokes: list[list[Point]] = [[]]
        for value in points:
            if all(map(math.isfinite, value)):
                strokes[-1].append((self.x(value[0]), self.y(value[1])))
            elif strokes[-1]:
                strokes.append([])
        for stroke in filter(None, strokes):
            if len(stroke) == 1:
                self.add('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>', style, *stroke[0])
            else:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in stroke)
                self.add('<path class="line {}" d="M{}"/>', style, path)
            for start, end in pairwise(stroke):
                self._keep_clear(start, end)

    def mark(self, x: float, y: float, *, shape: str, style: str, title: str) -> None:
        """Draw a mark centered on a pixel, with a tooltip."""
        shapes = {
            "circle": "M{0:.1f} {1:.1f}m-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
            "square": "M{0:.1f} {1:.1f}m-5-5h10v10h-10z",
            "triangle": "M{0:.1f} {1:.1f}m0-6.5l6 11h-12z",
        }
        path = shapes[shape].format(x, y)
        self.add('<path class="mark {}" d="{}"><title>{}</title></path>', style, path, title)
        self.taken.append((x - 7, y - 7, x + 7, y + 7))

    def label(self, x: float, y: float, text: str, *, needed: bool) -> None:
        """Write a name beside a point where nothing is in its way; one that is not ``needed`` is else left out."""
        short = shortened(text)
        width = CHARACTER * sum(2 if ord(character) > 0x2E80 else 1 for character in short)
        places = []
        for right, up in ((10, 0), (-10, 0), (0, 13), (0, -13), (9, 13), (-9, 13), (9, -13), (-9, -13), (0, 26)):
            left = x + right if right > 0 else x + right - width if right < 0 else x - width / 2
            places.append((left, y - up - 8, left + width, y - up + 6))
        free = [place for place in places if self._is_free(place)]
        if not free and not needed:
            return
        left, top, _, _ = box = free[0] if free else self._inside(places[0])
        self.taken.append(box)
        self.text_at(left, top + 12, short, style="label")

    def legend(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Write ``(shape, style, name)`` below the chart, in as many lines as they need, and make room for them."""
        x, y = float(self.x.start), float(self.height + 4)
        for shape, style, name in entries:
            short = shortened(name)
            width = 22 + CHARACTER * len(short) + 14
            if x > self.x.start and x + width > self.width:
                x, y = self.x.start, y + 20
            if shape == "line":
                self.add('<path class="line {}" d="M{:.1f} {:.1f}h16"/>', style, x, y)
            else:
                self.mark(x + 8, y, shape=shape, style=style, title=name)
            self.text_at(x + 22, y + 4, short, style="label")
            x += width
        self.height = round(y + 12)

    def __html__(self) -> str:
        """Return the SVG element, whose name and text alternative are read out in place of its parts."""
        return Markup(
            '<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">'
            "<desc>{}</desc>{}</svg>"
        ).format(
            self.width, self.height, f"{self.title}. {self.text}".strip(), self.text, Markup("\n").join(self.parts)
        )

    def standalone(self) -> str:
        """Return the SVG as a file, with the styles in it and a background."""
        style = resources.files("kdpipe.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
        head, _, body = self.__html__().partition("<desc>")
        back = '<rect class="back" width="100%" height="100%"/>'
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<style>{escape(style)}</style>{back}<desc>{body}\n'

    def _is_free(self, box: tuple[float, float, float, float]) -> bool:
        left, top, right, bottom = box
        if left < self.x.start + 2 or right > self.width or top < self.y.end - 8 or bottom > self.y.start - 1:
            return False
        return not any(left < x1 and right > x0 and top < y1 and bottom > y0 for x0, y0, x1, y1 in self.taken)

    def _inside(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        left, top, right, bottom = box
        move = min(0.0, self.width - right)
        return left + move, top, right + move, bottom

    def _keep_clear(self, start: Point, end: Point) -> None:
        """Keep labels away from a piece of a line, in steps short enough for slanted ones."""
        steps = max(1, int(math.dist(start, end) // 16))
        for step in range(steps):
            (x0, y0), (x1, y1) = (
                tuple(a + (b - a) * part / steps for a, b in zip(start, end, strict=True)) for part in (step, step + 1)
            )
            self.taken.append((min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2))


def horizontal(values: Iterable[float], *, log: bool = False, room: float = 0.08) -> Scale:
    """Return the x axis of a chart of the usual size for these values."""
    return scale(values, LEFT, WIDTH - RIGHT, log=log, room=room)


def vertical(values: Iterable[float], *, height: int = HEIGHT, room: float = 0.1) -> Scale:
    """Return the y axis of a chart of the usual size for these values."""
    return scale(values, height - BOTTOM, TOP, room=room)


def shortened(name: str) -> str:
    """Return a name of at most ``LONGEST_LABEL`` characters, shortened in the middle."""
    half = (LONGEST_LABEL - 1) // 2
    return name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[-half:]}"
