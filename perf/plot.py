"""Plots as SVG, written by hand: lines over logarithmic or plain axes, with a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 40, 50
_COLOURS = ("#0b6e99", "#c4551b", "#3f8f3f", "#7a4fa3", "#a08a00", "#b0305c", "#555555", "#18a999")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name in the legend, and points in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows; a logarithmic one has no place for values below or at 0."""

    title: str
    logarithmic: bool = False


def svg(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """A whole SVG document. Points that an axis cannot show are left out."""
    kept = [
        Line(line.name, [point for point in line.points if _shown(x, y, point)]) for line in lines
    ]
    kept = [line for line in kept if line.points]
    xs = _Scale(x, [point[0] for line in kept for point in line.points], _LEFT, _WIDTH - _RIGHT)
    ys = _Scale(y, [point[1] for line in kept for point in line.points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 22, title, size=15),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x.title, anchor="middle"),
        _text(_LEFT, _TOP - 6, y.title),
    ]
    for value in xs.ticks():
        place = xs(value)
        parts.append(_stroke([(place, _TOP), (place, _HEIGHT - _BOTTOM)], "#e4e4e4", 1))
        parts.append(_text(place, _HEIGHT - _BOTTOM + 16, _number(value), anchor="middle"))
    for value in ys.ticks():
        place = ys(value)
        parts.append(_stroke([(_LEFT, place), (_WIDTH - _RIGHT, place)], "#e4e4e4", 1))
        parts.append(_text(_LEFT - 6, place + 4, _number(value), anchor="end"))
    for number, line in enumerate(kept):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(xs(a), ys(b)) for a, b in line.points]
        parts.append(_stroke(places, colour, 2))
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
        height = _TOP + 10 + 20 * number
        legend = _WIDTH - _RIGHT + 14
        parts.append(_stroke([(legend, height), (legend + 18, height)], colour, 2))
        parts.append(_text(legend + 24, height + 4, line.name))
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Values to places between two ends."""

    def __init__(self, axis: Axis, values: Sequence[float], first: float, last: float) -> None:
        self._axis = axis
        self._first, self._last = first, last
        low, high = (min(values), max(values)) if values else (1.0, 10.0)
        if axis.logarithmic:
            self._low = float(math.floor(math.log10(low)))
            self._high = max(float(math.ceil(math.log10(high))), self._low + 1)
        else:
            self._low, self._high = min(low, 0.0), high or 1.0

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self._axis.logarithmic else value
        part = (at - self._low) / (self._high - self._low)
        return self._first + part * (self._last - self._first)

    def ticks(self) -> list[float]:
        if self._axis.logarithmic:
            return [10.0**power for power in range(round(self._low), round(self._high) + 1)]
        step = 10.0 ** math.floor(math.log10(self._high - self._low))
        while (self._high - self._low) / step < 4:
            step /= 2
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        return [number * step for number in range(first, last + 1)]


def _shown(x: Axis, y: Axis, point: tuple[float, float]) -> bool:
    return not (x.logarithmic and point[0] <= 0) and not (y.logarithmic and point[1] <= 0)


def _stroke(places: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#222222">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    if abs(value) >= 10_000:
        return f"{value / 1_000:g} k"
    return f"{value:g}"
