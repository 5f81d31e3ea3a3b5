"""Line charts as SVG, for the live page of a run and the report of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4b5563")
_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 40


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str,
    logarithmic: bool = False,
    span: tuple[float, float] | None = None,
    marked: bool = False,
) -> str:
    """Draw one line a series.

    Args:
        title: above the chart.
        series: points (x, y) by name; points that are not finite are left out.
        x_label: under the horizontal axis.
        logarithmic: powers of two of x are equally far apart.
        span: of the vertical axis; by default what the points need.
        marked: draw a dot and the value at each point.
    """
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    everything = [point for points in kept.values() for point in points]
    if not everything:
        return ""
    place = math.log2 if logarithmic else float
    xs = [place(x) for x, _ in everything]
    low, high = span or _padded([y for _, y in everything])
    across = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    ticks = sorted({x for x, _ in everything}) if marked or logarithmic else _ticks(min(xs), max(xs))
    parts = [_frame(title, x_label), _vertical(low, high, up)]
    parts += [_text(across(place(x)), _HEIGHT - _BOTTOM + 16, f"{x:g}", "middle") for x in ticks]
    for index, (name, points) in enumerate(kept.items()):
        placed = [(across(place(x)), up(y), y) for x, y in points]
        parts.append(_line(name, placed, index, marked=marked))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (max(0.0, low - margin) if low >= 0 else low - margin), high + margin


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * k / 4 for k in range(5)] if high > low else [low]


def _frame(title: str, x_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    axes = f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#9ca3af"/>'
    heading = f'<text x="{_LEFT}" y="18" font-size="14" fill="currentColor">{escape(title)}</text>'
    return axes + heading + _text((_LEFT + right) / 2, _HEIGHT - 6, x_label, "middle")


def _vertical(low: float, high: float, up: Callable[[float], float]) -> str:
    marks = []
    for value in _ticks(low, high):
        y = up(value)
        marks.append(
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#9ca3af" stroke-opacity=".25"/>'
            + _text(_LEFT - 6, y + 4, f"{value:.3g}", "end")
        )
    return "".join(marks)


def _line(name: str, placed: Sequence[tuple[float, float, float]], index: int, *, marked: bool) -> str:
    color = COLORS[index % len(COLORS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
    drawn = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    if marked:
        drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y, _ in placed)
        drawn += "".join(_text(x, y - 7, f"{value:.3g}", "middle", color) for x, y, value in placed)
    row = _text(_LEFT + 190 + 110 * (index % 3), 16 + 12 * (index // 3), name, "start", color)
    return drawn + row


def _text(x: float, y: float, words: str, anchor: str, color: str = "#6b7280") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{color}">'
        f"{escape(words)}</text>"
    )
