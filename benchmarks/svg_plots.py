"""Plots as SVG that takes its colours from the page: points with a front, lines, and stacked bars.

Colours are the page's classes s0, s1, … of series and k0, k1, … of parts of a bar. Sizes are in the drawing's own
units, 440 across, so that letters stay readable on a telephone. Text that comes from outside is escaped here.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

#: How many colours of series the page has.
SERIES = 8
_WIDTH = 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 36
#: About what a letter takes of the plots' 11 units.
_LETTER, _LINE = 5.8, 12


@dataclasses.dataclass(frozen=True)
class Point:
    """A labelled point, and its horizontal interval where it has one."""

    x: float
    y: float
    label: str
    #: Place of its series.
    series: int
    interval: tuple[float, float] | None = None


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats: none has a smaller x and at least its y, or its x at most and a greater y. By x."""
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if point.y > best:
            best = point.y
            kept.append(point)
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Some five round numbers that hold low and high between them; at least two."""
    # Values that are nearly equal are not drawn as if they were far apart.
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-9)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{count * step:.9g}") for count in range(first, max(last, first + 1) + 1)]


class _Axes:
    """Maps values to the drawing, and draws the grid with its numbers and names."""

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], height: int) -> None:
        self.x_ticks, self.y_ticks, self.height = x_ticks, y_ticks, height

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * (value - low) / (high - low)

    def grid(self, x_name: str, y_name: str) -> list[str]:
        bottom = self.height - _BOTTOM
        parts = []
        for tick in self.y_ticks:
            parts.append(f'<path class="grid" d="M{_LEFT} {self.y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 6}" y="{self.y(tick) + 4:.1f}">{tick:g}</text>')
        for tick in self.x_ticks:
            parts.append(f'<path class="grid" d="M{self.x(tick):.1f} {_TOP}V{bottom}"/>')
            parts.append(f'<text class="middle" x="{self.x(tick):.1f}" y="{bottom + 14}">{tick:g}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="middle" x="{middle:.1f}" y="{self.height - 6}">{_escape(x_name)}</text>')
        parts.append(
            f'<text class="middle" transform="translate(11 {(bottom + _TOP) / 2:.1f}) rotate(-90)">'
            f"{_escape(y_name)}</text>"
        )
        return parts


def scatter(points: Sequence[Point], x_name: str, y_name: str, title: str, height: int = 300) -> str:
    """Points with their labels, intervals as bars, and the front of each series as steps. One point at least; x from 0
    on."""
    ends = [value for point in points for value in (point.interval or (point.x, point.x))]
    axes = _Axes(ticks(0, max(*ends, *(point.x for point in points))), ticks(*_span([p.y for p in points])), height)
    parts = axes.grid(x_name, y_name)
    boxes = [(axes.x(point.x) - 4, axes.y(point.y) - 4, axes.x(point.x) + 4, axes.y(point.y) + 4) for point in points]
    for series in sorted({point.series for point in points}):
        edge = front([point for point in points if point.series == series])
        steps = "".join(
            f"{'H' if place else 'M'}{axes.x(point.x):.1f}{'V' if place else ' '}{axes.y(point.y):.1f}"
            for place, point in enumerate(edge)
        )
        if len(edge) > 1:
            parts.append(f'<path class="front {_series(series)}" d="{steps}"/>')
    for point in points:
        x, y, look = axes.x(point.x), axes.y(point.y), _series(point.series)
        if point.interval:
            low, high = (axes.x(value) for value in point.interval)
            ends_of = f"M{low:.1f} {y - 3:.1f}v6M{high:.1f} {y - 3:.1f}v6"
            parts.append(f'<path class="{look}" d="M{low:.1f} {y:.1f}H{high:.1f}{ends_of}"/>')
        parts.append(f'<circle class="dot {look}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    for point in points:
        box = _label_box(axes.x(point.x), axes.y(point.y), len(point.label) * _LETTER, boxes, height)
        boxes.append(box)
        parts.append(f'<text class="name" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{_escape(point.label)}</text>')
    return _svg(parts, height, title)


Box = tuple[float, float, float, float]


def _label_box(x: float, y: float, width: float, taken: Sequence[Box], height: int) -> Box:
    """Where a label stands near its point: the first place that touches nothing, or touches least."""
    half = _LINE / 2
    corners = [(x + 7, y - half), (x - 7 - width, y - half)]
    corners += [(x - width / 2, y - 7 - _LINE * step) for step in (1, 2, 3)]
    corners += [(x - width / 2, y + 7 + _LINE * step) for step in (0, 1, 2)]
    boxes = []
    for left, top in corners:
        left = min(max(left, _LEFT + 2.0), max(_WIDTH - 2 - width, 0.0))
        top = min(max(top, 1.0), height - _BOTTOM - _LINE * 1.0)
        boxes.append((left, top, left + width, top + _LINE))

    def touched(box: Box) -> float:
        sides = [
            (min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1]))
            for other in taken
        ]
        return sum(max(across, 0.0) * max(down, 0.0) for across, down in sides)

    return min(boxes, key=touched)  # the first of equals


def curves(
    lines: Sequence[tuple[int, Sequence[float]]], x_name: str, y_name: str, title: str, height: int = 260
) -> str:
    """A line for each (place of its series, values at equal steps over 0..1); all values in 0..1."""
    shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axes = _Axes(shares, shares, height)
    parts = axes.grid(x_name, y_name)
    for series, values in lines:
        if len(values) > 1:
            points = (f"{axes.x(i / (len(values) - 1)):.0f} {axes.y(v):.1f}" for i, v in enumerate(values))
            parts.append(f'<path class="line {_series(series)}" d="M{"L".join(points)}"/>')
    return _svg(parts, height, title)


def bars(rows: Sequence[tuple[str, Sequence[tuple[int, int]]]], title: str) -> str:
    """A stacked bar for each (name, parts); a part is the place of its colour and a count. Names stand above."""
    most = max((sum(count for _, count in parts) for _, parts in rows), default=0)
    drawn, y = [], 0.0
    for name, parts in rows:
        total = sum(count for _, count in parts)
        drawn.append(f'<text class="name" x="0" y="{y + 11:.0f}">{_escape(name)}: {total}</text>')
        x = 0.0
        for place, count in parts:
            width = _WIDTH * count / max(most, 1)
            drawn.append(f'<rect class="k{place}" x="{x:.1f}" y="{y + 16:.0f}" width="{width:.1f}" height="15"/>')
            if width > len(str(count)) * _LETTER + 4:
                drawn.append(f'<text class="inside" x="{x + width / 2:.1f}" y="{y + 27:.0f}">{count}</text>')
            x += width
        y += 40
    return _svg(drawn, max(int(y), 1), title)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Low and high with some air, so that no point lies on the frame."""
    low, high = min(values), max(values)
    air = max((high - low) * 0.12, 0.1)
    return low - air, high + air


def _series(place: int) -> str:
    return f"s{place % SERIES}"


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
