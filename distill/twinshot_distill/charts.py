"""Line charts as SVG, for the live page of a run and the report of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#6b7280")
_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 34, 40
_INSET = 18  # of the first and last marked points, or their values lie outside
_ROW = 13  # of text
_LETTER = 6.2  # wide, at most on average


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
    inset = _INSET if marked else 0
    across = _scale(min(xs), max(xs), _LEFT + inset, _WIDTH - _RIGHT - inset)
    up = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    ticks = sorted({x for x, _ in everything}) if marked or logarithmic else _ticks(min(xs), max(xs))
    parts = [_frame(x_label), _vertical(low, high, up)]
    parts += [_text(across(place(x)), _HEIGHT - _BOTTOM + 16, f"{x:g}", "middle") for x in ticks]
    placed = [[(across(place(x)), up(y), y) for x, y in points] for points in kept.values()]
    parts += [_line(points, index, marked=marked) for index, points in enumerate(placed)]
    parts += _values(placed) if marked else []
    legend, rows = _legend(list(kept))
    moved = f'<g transform="translate(0 {rows * _ROW})">{"".join(parts)}</g>'
    heading = f'<text x="{_LEFT}" y="18" font-size="14" fill="currentColor">{escape(title)}</text>'
    box = f"0 0 {_WIDTH} {_HEIGHT + rows * _ROW}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{heading}{legend}{moved}</svg>'


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Names beside their colours, as many in a row as fit; returns the number of rows too."""
    parts, x, row = [], float(_LEFT), 0
    for index, name in enumerate(names):
        width = _LETTER * len(name) + 30
        if x > _LEFT and x + width > _WIDTH:
            x, row = _LEFT, row + 1
        y = _TOP + row * _ROW
        color = COLORS[index % len(COLORS)]
        parts.append(f'<path d="M{x:.1f} {y - 4}h12" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(x + 16, y, name, "start"))
        x += width
    return "".join(parts), row + 1


def _values(placed: Sequence[Sequence[tuple[float, float, float]]]) -> list[str]:
    """Each point's value above it; points that lie on each other share the one of the line on top."""
    labels: dict[float, dict[str, tuple[float, str]]] = {}
    for index, points in enumerate(placed):
        for x, y, value in points:
            labels.setdefault(x, {})[f"{value:.3g}"] = y - 7, COLORS[index % len(COLORS)]
    return [
        _text(x, y, words, "middle", color)
        for x, texts in labels.items()
        for y, words, color in _spread([(y, words, color) for words, (y, color) in texts.items()])
    ]


def _spread(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Labels (y, words, colour) at least a row apart: moved up, and down again where the chart ends."""
    lowest_first, y = sorted(labels, reverse=True), math.inf
    moved = []
    for wanted, words, color in lowest_first:
        y = min(wanted, y - _ROW)
        moved.append((y, words, color))
    y = _TOP - 1.0 - _ROW
    spread = []
    for wanted, words, color in reversed(moved):
        y = max(wanted, y + _ROW)
        spread.append((y, words, color))
    return spread


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    top = min(high + margin, 1.0) if high <= 1 else high + margin  # no share is above 1
    return (max(0.0, low - margin) if low >= 0 else low - margin), top


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    return [low + (high - low) * k / 4 for k in range(5)] if high > low else [low]


def _frame(x_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    axes = f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#9ca3af"/>'
    return axes + _text((_LEFT + right) / 2, _HEIGHT - 6, x_label, "middle")


def _vertical(low: float, high: float, up: Callable[[float], float]) -> str:
    marks = []
    for value in _ticks(low, high):
        y = up(value)
        marks.append(
            f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#9ca3af" stroke-opacity=".25"/>'
            + _text(_LEFT - 6, y + 4, f"{value:.3g}", "end")
        )
    return "".join(marks)


def _line(placed: Sequence[tuple[float, float, float]], index: int, *, marked: bool) -> str:
    color = COLORS[index % len(COLORS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
    drawn = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    if marked:
        drawn += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y, _ in placed)
    return drawn


def _text(x: float, y: float, words: str, anchor: str, color: str = "currentColor") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}" fill="{color}">'
        f"{escape(words)}</text>"
    )
