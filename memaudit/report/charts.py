"""The page's charts as inline SVG. Colours come from the page's CSS: its CSP forbids style attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# In viewBox units. Small enough that 12-unit text is still readable when a phone shrinks the drawing to 350 px.
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 44


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        style: CSS class `series-<style>`: colour and dash; the marker's shape differs too.
        points: (x, rate) with rate in [0, 1], x ascending.
    """

    style: str
    points: Sequence[tuple[float, float]]
    square: bool = False


def bar(share: float, expected: float, most: float) -> Markup:
    """A horizontal bar of `share` with a tick at `expected`; both relative to `most`, the longest bar of its column."""
    scale = 100 / most if most > 0 else 0.0
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"/><rect class="fill" width="{}" height="10"/>'
        '<line class="tick" x1="{}" x2="{}" y1="-3" y2="13"/></svg>'
    ).format(_n(share * scale), _n(expected * scale), _n(expected * scale))


def rates(title: str, x_name: str, series: Sequence[Line]) -> Markup:
    """Rates in [0, 1] against a quantity that starts at 0, one line per series."""
    most = max((x for line in series for x, _ in line.points), default=0) or 1
    grid = Markup("").join(_gridline(step / 4) for step in range(5))
    ticks = Markup("").join(_tick(x, most) for x in _ticks(most))
    lines = Markup("").join(_line(line, most) for line in series)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}'
        '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text></svg>'
    ).format(WIDTH, HEIGHT, title, grid, ticks, lines, _n(LEFT + _span() / 2), HEIGHT - 6, x_name)


def course(title: str, names: Sequence[str], series: Sequence[Line]) -> Markup:
    """Rates in [0, 1] at named checkpoints, evenly spaced; a missing point leaves a gap in its series."""
    return _steps(title, names, series, 0.0, 1.0, [(step / 4, f"{25 * step}%") for step in range(5)])


def cosines(title: str, names: Sequence[str], series: Sequence[Line]) -> Markup:
    """Values in [-1, 1] at named checkpoints."""
    marks = [(step / 2, f"{step / 2:g}".replace("-", "−")) for step in range(-2, 3)]
    return _steps(title, names, series, -1.0, 1.0, marks)


def multiples(title: str, names: Sequence[str], series: Sequence[Line]) -> Markup:
    """Positive ratios at named checkpoints, on a logarithmic axis with 1 in it."""
    values = [v for line in series for _, v in line.points if v > 0]
    low = math.floor(math.log10(min([1.0, *values])))
    high = max(low + 1, math.ceil(math.log10(max([1.0, *values]))))
    lines = [Line(s.style, [(x, math.log10(v)) for x, v in s.points if v > 0], s.square) for s in series]
    marks = [(float(power), f"{10.0**power:g}×") for power in range(low, high + 1)]
    return _steps(title, names, lines, float(low), float(high), marks)


def _steps(
    title: str,
    names: Sequence[str],
    series: Sequence[Line],
    low: float,
    high: float,
    marks: Sequence[tuple[float, str]],
) -> Markup:
    def height(value: float) -> float:
        return _y((value - low) / (high - low))

    def across(place: float) -> float:
        return LEFT + place / max(1, len(names) - 1) * _span()

    grid = Markup("").join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(LEFT, WIDTH - RIGHT, _n(height(v)), _n(height(v)), LEFT - 7, _n(height(v) + 4), text)
        for v, text in marks
    )
    shown = [0, len(names) // 2, len(names) - 1] if len(names) > 2 else list(range(len(names)))
    ticks = Markup("").join(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _n(across(n)), HEIGHT - BOTTOM + 20, anchor, names[n]
        )
        for n, anchor in zip(sorted(set(shown)), ("start", "middle", "end"), strict=False)
    )
    lines = Markup("").join(
        Markup('<g class="series-{}"><polyline points="{}"/>{}</g>').format(
            line.style,
            " ".join(f"{_n(across(x))},{_n(height(v))}" for x, v in line.points),
            Markup("").join(_mark(across(x), height(v), line.square) for x, v in line.points),
        )
        for line in series
    )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        WIDTH, HEIGHT - 16, title, grid, ticks, lines
    )


def _gridline(rate: float) -> Markup:
    y = _y(rate)
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        '<text class="axis" x="{}" y="{}" text-anchor="end">{}%</text>'
    ).format(LEFT, WIDTH - RIGHT, _n(y), _n(y), LEFT - 7, _n(y + 4), round(100 * rate))


def _tick(x: float, most: float) -> Markup:
    text = Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{:,}</text>')
    return text.format(_n(_x(x, most)), HEIGHT - BOTTOM + 18, round(x))


def _line(series: Line, most: float) -> Markup:
    places = [(_x(x, most), _y(rate)) for x, rate in series.points]
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in places)
    marks = Markup("").join(_mark(x, y, series.square) for x, y in places)
    return Markup('<g class="series-{}"><polyline points="{}"/>{}</g>').format(series.style, path, marks)


def _mark(x: float, y: float, square: bool) -> Markup:
    if square:
        return Markup('<rect x="{}" y="{}" width="7" height="7"/>').format(_n(x - 3.5), _n(y - 3.5))
    return Markup('<circle cx="{}" cy="{}" r="4"/>').format(_n(x), _n(y))


def _ticks(most: float) -> list[float]:
    """At most seven round numbers from 0 to `most`."""
    step = 1.0
    while most / step > 6:
        step *= 2.5 if str(step).lstrip("0.")[0] == "2" else 2
    return [step * i for i in range(int(most // step) + 1)]


def _span() -> float:
    return WIDTH - LEFT - RIGHT


def _x(value: float, most: float) -> float:
    return LEFT + value / most * _span()


def _y(rate: float) -> float:
    return TOP + (1 - rate) * (HEIGHT - TOP - BOTTOM)


def _n(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
