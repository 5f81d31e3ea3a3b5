"""Backgrounds drawn by code: ten plain studio colours and nine scenes, each with endless variations.

Every painter takes a numpy Generator and returns float32 RGB in 0..1 at twice the final size;
`background` halves it, which smooths all edges. No pictures, so no licences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinshot_distill.world.vocabulary import BACKGROUNDS, COLORS

Canvas = NDArray[np.floating[Any]]
_SIDE = 512
_Y, _X = (axis.astype(np.float32) / _SIDE for axis in np.mgrid[0:_SIDE, 0:_SIDE])


def _rgb(*values: int) -> Canvas:
    return np.array(values, np.float32) / 255


def _gradient(stops: Sequence[tuple[float, Canvas]], along: Canvas = _Y) -> Canvas:
    """A vertical colour ramp through (position, colour) stops."""
    where = [position for position, _ in stops]
    channels = [np.interp(along, where, [color[c] for _, color in stops]) for c in range(3)]
    return np.stack(channels, -1).astype(np.float32)


def _blend(canvas: Canvas, color: Canvas, mask: Canvas) -> Canvas:
    return canvas + (color - canvas) * np.clip(mask, 0, 1)[..., None]


def _disc(x: float, y: float, radius: float, soft: float = 0.003) -> Canvas:
    return np.asarray(np.clip((radius - np.hypot(_X - x, _Y - y)) / soft + 0.5, 0, 1))


def _glow(x: float, y: float, radius: float) -> Canvas:
    return np.asarray(np.exp(-((_X - x) ** 2 + (_Y - y) ** 2) / (2 * radius**2)), np.float32)


def _ridge(rng: np.random.Generator, height: float, swing: float, waves: float) -> Canvas:
    """A wavy horizon line y(x) of shape [1, side]."""
    x = _X[:1]
    line = height + swing * np.sin(2 * np.pi * (waves * x + rng.random()))
    return np.asarray(line + swing * 0.4 * np.sin(2 * np.pi * (2.3 * waves * x + rng.random())), np.float32)


def _below(line: Canvas) -> Canvas:
    return np.asarray(np.clip((_Y - line) * _SIDE * 0.5 + 0.5, 0, 1))


def _clouds(rng: np.random.Generator, canvas: Canvas, highest: float = 0.32) -> Canvas:
    for _ in range(int(rng.integers(0, 4))):
        x, y, size = rng.random(), rng.uniform(0.05, highest), rng.uniform(0.02, 0.035)
        for step in range(-2, 3):
            puff = _disc(
                x + step * size * 1.1, y - (2 - abs(step)) * size * 0.3, size * (1.25 - 0.2 * abs(step))
            )
            canvas = _blend(canvas, _rgb(255, 255, 255), puff * 0.9 * (y + size * 0.6 > _Y))
    return canvas


def _stars(rng: np.random.Generator, canvas: Canvas, count: int, lowest: float) -> Canvas:
    for _ in range(count):
        canvas = _blend(
            canvas,
            _rgb(255, 250, 235),
            _disc(rng.random(), rng.random() * lowest, rng.uniform(0.0015, 0.0045)) * rng.uniform(0.5, 1),
        )
    return canvas


def _studio(rng: np.random.Generator, name: str) -> Canvas:
    base = np.array(COLORS[name], np.float32) / 255
    if name in ("black", "brown", "white"):
        base = base * {"black": 0.9, "brown": 1.05, "white": 0.97}[name]
    light = _glow(rng.uniform(0.35, 0.65), rng.uniform(0.25, 0.45), rng.uniform(0.4, 0.55))[..., None]
    floor = np.clip((_Y - 0.78) / 0.4, 0, 1)[..., None]
    return np.asarray(np.clip(base * (0.8 + 0.24 * light) + 0.07 * light - 0.1 * floor * base, 0, 1))


def _meadow(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(96, 178, 245)), (0.55, _rgb(206, 236, 255)), (1, _rgb(206, 236, 255))])
    canvas = _clouds(rng, _blend(canvas, _rgb(255, 240, 170), _disc(rng.uniform(0.1, 0.9), 0.12, 0.05)))
    greens = ((118, 190, 92), (98, 178, 74), (82, 164, 60))
    for depth, green in enumerate(greens):
        line = _ridge(rng, 0.52 + 0.13 * depth, rng.uniform(0.015, 0.035), rng.uniform(0.5, 1.1))
        shade = _rgb(*green) * (1.08 - 0.28 * np.clip((_Y - line) / 0.4, 0, 1)[..., None])
        canvas = canvas + (shade - canvas) * _below(line)[..., None]
    petals = (_rgb(255, 255, 255), _rgb(255, 214, 80), _rgb(250, 140, 170))
    for _ in range(int(rng.integers(8, 22))):
        spot = _disc(rng.random(), rng.uniform(0.72, 0.98), rng.uniform(0.004, 0.009))
        canvas = _blend(canvas, petals[int(rng.integers(3))], spot)
    return canvas


def _beach(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(84, 176, 244)), (0.42, _rgb(196, 234, 255)), (1, _rgb(196, 234, 255))])
    canvas = _clouds(rng, canvas, 0.28)
    sea = _gradient([(0.4, _rgb(24, 122, 196)), (0.66, _rgb(70, 196, 214)), (1, _rgb(70, 196, 214))])
    canvas = canvas + (sea - canvas) * _below(np.full_like(_X[:1], 0.42))[..., None]
    line = _ridge(rng, rng.uniform(0.6, 0.68), 0.012, rng.uniform(0.6, 1.4))
    canvas = _blend(canvas, _rgb(255, 255, 255), _below(line - 0.014))
    sand = _gradient([(0.6, _rgb(244, 222, 170)), (1, _rgb(226, 190, 124))])
    return canvas + (sand - canvas) * _below(line)[..., None]


def _desert(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(248, 176, 92)), (0.6, _rgb(255, 224, 168)), (1, _rgb(255, 224, 168))])
    canvas = _blend(canvas, _rgb(255, 246, 214), _disc(rng.uniform(0.12, 0.88), rng.uniform(0.1, 0.25), 0.06))
    for depth, tone in enumerate(((226, 150, 82), (236, 166, 92), (222, 148, 76))):
        line = _ridge(rng, 0.55 + 0.12 * depth, rng.uniform(0.02, 0.045), rng.uniform(0.5, 1.0))
        shade = _rgb(*tone) * (1.06 - 0.22 * np.clip((_Y - line) / 0.35, 0, 1)[..., None])
        canvas = canvas + (shade - canvas) * _below(line)[..., None]
    return canvas


def _snow(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(128, 184, 232)), (0.6, _rgb(222, 238, 250)), (1, _rgb(222, 238, 250))])
    for _ in range(int(rng.integers(2, 4))):
        peak_x, peak_y, slope = rng.random(), rng.uniform(0.22, 0.36), rng.uniform(0.8, 1.2)
        side = peak_y + slope * np.abs(_X - peak_x)
        canvas = _blend(canvas, _rgb(122, 146, 184), _below(side))
        cap = peak_y + 0.1 + 0.02 * np.sin(_X * 70)
        canvas = _blend(canvas, _rgb(248, 251, 255), _below(side) * (1 - _below(cap)))
    line = _ridge(rng, rng.uniform(0.56, 0.62), 0.018, rng.uniform(0.5, 1))
    ground = _gradient([(0.55, _rgb(250, 252, 255)), (1, _rgb(206, 220, 238))])
    canvas = canvas + (ground - canvas) * _below(line)[..., None]
    for _ in range(int(rng.integers(15, 40))):
        canvas = _blend(
            canvas, _rgb(255, 255, 255), _disc(rng.random(), rng.random(), rng.uniform(0.003, 0.007))
        )
    return canvas


def _night(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(12, 16, 52)), (0.7, _rgb(44, 56, 118)), (1, _rgb(44, 56, 118))])
    canvas = _stars(rng, canvas, int(rng.integers(25, 60)), 0.6)
    x, y = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.2)
    canvas = _blend(canvas, _rgb(190, 196, 240), _glow(x, y, 0.09) * 0.5)
    canvas = _blend(canvas, _rgb(252, 244, 206), _disc(x, y, 0.06))
    for depth, tone in enumerate(((26, 46, 78), (18, 34, 58))):
        line = _ridge(rng, 0.64 + 0.13 * depth, rng.uniform(0.02, 0.04), rng.uniform(0.5, 1.0))
        canvas = _blend(canvas, _rgb(*tone), _below(line))
    return canvas


def _space(rng: np.random.Generator) -> Canvas:
    canvas = np.broadcast_to(_rgb(14, 10, 34), (_SIDE, _SIDE, 3)).copy()
    for tone in ((92, 36, 140), (36, 50, 150), (150, 40, 110)):
        cloud = _glow(rng.random(), rng.random(), rng.uniform(0.15, 0.32))
        canvas = _blend(canvas, _rgb(*tone), cloud * rng.uniform(0.35, 0.6))
    canvas = _stars(rng, canvas, int(rng.integers(50, 90)), 1.0)
    if rng.random() < 0.5:
        x, y, radius = rng.choice((0.12, 0.88)), rng.choice((0.12, 0.88)), rng.uniform(0.05, 0.08)
        ball = _rgb(*((226, 150, 96), (120, 190, 220), (220, 120, 150))[int(rng.integers(3))])
        canvas = _blend(canvas, ball * 0.55, _disc(x, y, radius))
        canvas = _blend(
            canvas, ball, _disc(x, y, radius) * _glow(x - radius * 0.4, y - radius * 0.4, radius * 0.7)
        )
    return canvas


def _sunset(rng: np.random.Generator) -> Canvas:
    canvas = _gradient(
        [
            (0, _rgb(78, 44, 124)),
            (0.3, _rgb(222, 88, 118)),
            (0.55, _rgb(255, 178, 92)),
            (1, _rgb(255, 178, 92)),
        ]
    )
    x = rng.uniform(0.2, 0.8)
    canvas = _blend(canvas, _rgb(255, 222, 150), _glow(x, 0.55, 0.14) * 0.6)
    canvas = _blend(canvas, _rgb(255, 238, 176), _disc(x, 0.545, rng.uniform(0.08, 0.1)))
    sea = _gradient([(0.57, _rgb(196, 82, 110)), (1, _rgb(62, 36, 104))])
    canvas = canvas + (sea - canvas) * _below(np.full_like(_X[:1], 0.57))[..., None]
    for row in np.linspace(0.6, 0.9, 9):
        half = 0.1 * (1 - (row - 0.57)) * rng.uniform(0.3, 1)
        streak = (np.abs(_X - x) < half) * (np.abs(_Y - row) < 0.004)
        canvas = _blend(canvas, _rgb(255, 206, 140), streak.astype(np.float32) * 0.7)
    return canvas


def _underwater(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(92, 214, 236)), (0.5, _rgb(30, 142, 206)), (1, _rgb(14, 84, 160))])
    for _ in range(int(rng.integers(3, 6))):
        tilt, start, width = rng.uniform(-0.25, 0.25), rng.random(), rng.uniform(0.03, 0.08)
        ray = np.exp(-(((_X - start - tilt * _Y) / width) ** 2)) * np.clip(0.75 - _Y, 0, 1) * 0.4
        canvas = _blend(canvas, _rgb(220, 250, 255), ray)
    line = _ridge(rng, rng.uniform(0.82, 0.87), 0.018, rng.uniform(0.7, 1.4))
    sand = _gradient([(0.8, _rgb(226, 206, 150)), (1, _rgb(186, 164, 116))])
    canvas = canvas + (sand - canvas) * _below(line)[..., None]
    for _ in range(int(rng.integers(6, 14))):
        x, y, radius = rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.006, 0.016)
        ring = _disc(x, y, radius) - _disc(x, y, radius * 0.75) * 0.75
        canvas = _blend(canvas, _rgb(230, 250, 255), ring * 0.7)
    return canvas


def _city(rng: np.random.Generator) -> Canvas:
    canvas = _gradient([(0, _rgb(120, 186, 238)), (0.65, _rgb(220, 238, 250)), (1, _rgb(220, 238, 250))])
    canvas = _clouds(rng, canvas, 0.2)
    for tone, top in (((170, 186, 212), (0.2, 0.45)), ((134, 152, 186), (0.32, 0.55))):
        x = -rng.uniform(0, 0.1)
        while x < 1:
            width, height = rng.uniform(0.09, 0.16), rng.uniform(*top)
            inside = (x <= _X) & (x + width > _X) & (height <= _Y)
            canvas = _blend(canvas, _rgb(*tone), inside.astype(np.float32))
            panes = (
                inside
                & ((_X - x) % 0.032 > 0.016)
                & ((_Y - height) % 0.044 > 0.024)
                & (x + width - 0.012 > _X)
            )
            canvas = _blend(canvas, _rgb(232, 240, 250), panes.astype(np.float32) * 0.6)
            x += width + rng.uniform(0, 0.02)
    street = _gradient([(0.7, _rgb(150, 154, 164)), (1, _rgb(104, 108, 120))])
    canvas = canvas + (street - canvas) * _below(np.full_like(_X[:1], 0.7))[..., None]
    return _blend(canvas, _rgb(200, 204, 212), ((_Y > 0.7) & (_Y < 0.715)).astype(np.float32))


_PAINTERS: dict[str, Callable[[np.random.Generator], Canvas]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "space": _space,
    "sunset": _sunset,
    "underwater": _underwater,
    "city": _city,
}


def background(name: str, seed: int) -> NDArray[np.uint8]:
    """A variation of a background: uint8 [256, 256, 3]; raises ValueError on an unknown name."""
    if name not in BACKGROUNDS:
        raise ValueError(f"unknown background {name!r}; choose one of {', '.join(BACKGROUNDS)}")
    rng = np.random.default_rng([BACKGROUNDS.index(name), seed])
    canvas = _PAINTERS[name](rng) if name in _PAINTERS else _studio(rng, name)
    half = canvas.reshape(_SIDE // 2, 2, _SIDE // 2, 2, 3).mean((1, 3))
    return np.asarray(np.clip(half * 255 + 0.5, 0, 255), np.uint8)
