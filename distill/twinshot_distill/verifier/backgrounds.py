"""The verifier's own backgrounds: the world's nineteen names drawn anew, and wild ones beside them.

Nothing here is shared with the generator's composer, so that a detector trained on these pictures
cannot profit from knowing how the generator's were drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from twinshot_distill.world.vocabulary import BACKGROUNDS, COLORS

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Rgb = tuple[float, float, float]
WILD = "wild"


def _jitter(rng: np.random.Generator, color: Rgb, spread: float = 14) -> Floats:
    """A colour near `color`, float32 [3]."""
    return np.clip(np.asarray(color) + rng.normal(0, spread, 3), 0, 255).astype(np.float32)


def _ramp(rng: np.random.Generator, side: int, top: Rgb, bottom: Rgb) -> Floats:
    """A vertical gradient [side, side, 3] with a random bend."""
    share = np.linspace(0, 1, side, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.6)
    column = _jitter(rng, top) * (1 - share) + _jitter(rng, bottom) * share
    return np.repeat(column.astype(np.float32), side, axis=1)


def _paint(canvas: Floats, mask: Floats | NDArray[np.bool_], color: Floats) -> None:
    """Lay a colour over the canvas where the mask [side, side] (0..1) says, in place."""
    canvas += (color - canvas) * mask.astype(np.float32)[..., None]


def _below(rng: np.random.Generator, side: int, level: float, height: float) -> NDArray[np.bool_]:
    """The area under a wavy ridge; `level` and `height` are shares of the side."""
    x = np.linspace(0, 1, side)
    waves = range(int(rng.integers(2, 5)))
    ridge = np.zeros(side)
    for k in waves:
        ridge += np.sin(x * rng.uniform(3, 16) + rng.uniform(0, 6.3)) / (k + 1.5)
    return np.asarray(np.linspace(0, 1, side)[:, None] > level + height * ridge)


def _disc(rng: np.random.Generator, side: int, radius: float, high: float) -> Floats:
    """A soft disc's mask somewhere above `high`: a sun, a moon, a cloud's part."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    away = np.hypot(x - rng.uniform(0.1, 0.9), y - rng.uniform(0.05, high))
    return np.asarray(np.clip((radius - away) * side / rng.uniform(1, 5), 0, 1), np.float32)


def _specks(rng: np.random.Generator, side: int, share: float) -> NDArray[np.bool_]:
    """Scattered single pixels: stars, snow."""
    return np.asarray(rng.random((side, side)) < share)


def smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Floats:
    """Smooth noise in 0..1, [side, side, 3]; `cells` is the number of bumps along a side."""
    small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return np.asarray(np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 255, np.float32)


def _studio(rng: np.random.Generator, side: int, color: str) -> Floats:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    away = np.hypot(x - rng.uniform(0.3, 0.7), y - rng.uniform(0.2, 0.7))[..., None]
    base = _jitter(rng, COLORS[color], 10)
    canvas = base + rng.uniform(0, 55) * (1 - 1.5 * away) - rng.uniform(0, 60) * away**2
    if rng.random() < 0.35:
        floor = np.clip((y - rng.uniform(0.5, 0.85)) * rng.uniform(4, 40), 0, 1)
        _paint(canvas, floor * rng.uniform(0.1, 0.5), base * rng.uniform(0.6, 1.2))
    return np.asarray(canvas, np.float32)


def _clouds(rng: np.random.Generator, canvas: Floats) -> None:
    for _ in range(int(rng.integers(0, 9))):
        mask = _disc(rng, len(canvas), rng.uniform(0.02, 0.09), 0.35)
        _paint(canvas, mask * rng.uniform(0.3, 0.9), _jitter(rng, (250, 250, 255), 4))


def _land(rng: np.random.Generator, side: int, sky: tuple[Rgb, Rgb], grounds: tuple[Rgb, ...]) -> Floats:
    """Sky, clouds and one or more bands of ground from back to front."""
    canvas = _ramp(rng, side, *sky)
    if rng.random() < 0.6:
        _clouds(rng, canvas)
    levels = np.sort(rng.uniform(0.35, 0.85, len(grounds)))
    for level, ground in zip(levels, grounds, strict=True):
        mask = _below(rng, side, float(level), float(rng.uniform(0.005, 0.06)))
        _paint(canvas, mask, _jitter(rng, ground))
    shade = np.linspace(0, 1, side, dtype=np.float32)[:, None, None] * rng.uniform(-30, 15)
    return np.asarray(canvas + shade, np.float32)


def _meadow(rng: np.random.Generator, side: int) -> Floats:
    return _land(rng, side, ((90, 175, 240), (200, 232, 250)), ((120, 190, 90), (92, 172, 66)))


def _beach(rng: np.random.Generator, side: int) -> Floats:
    return _land(rng, side, ((70, 170, 240), (190, 228, 250)), ((30, 130, 190), (238, 214, 160)))


def _desert(rng: np.random.Generator, side: int) -> Floats:
    return _land(rng, side, ((245, 175, 105), (253, 215, 165)), ((238, 185, 110), (222, 155, 85)))


def _snow(rng: np.random.Generator, side: int) -> Floats:
    canvas = _land(rng, side, ((140, 190, 235), (220, 235, 248)), ((140, 160, 195), (240, 246, 252)))
    _paint(canvas, _specks(rng, side, 0.004), np.full(3, 252, np.float32))
    return canvas


def _night(rng: np.random.Generator, side: int) -> Floats:
    canvas = _land(rng, side, ((10, 14, 50), (38, 46, 100)), ((18, 30, 55), (20, 48, 50)))
    stars = _specks(rng, side, 0.003) & ~_below(rng, side, 0.5, 0)
    _paint(canvas, stars, np.full(3, 235, np.float32))
    _paint(canvas, _disc(rng, side, rng.uniform(0.03, 0.08), 0.35), _jitter(rng, (248, 240, 205), 6))
    return canvas


def _space(rng: np.random.Generator, side: int) -> Floats:
    canvas = _ramp(rng, side, (14, 8, 34), (36, 16, 60))
    cloud = smooth_noise(rng, side, int(rng.integers(3, 7)))[..., 0] ** 2 * rng.uniform(0.2, 0.8)
    _paint(canvas, cloud, _jitter(rng, (120, 45, 130), 40))
    _paint(canvas, _specks(rng, side, rng.uniform(0.002, 0.01)), np.full(3, 240, np.float32))
    return canvas


def _sunset(rng: np.random.Generator, side: int) -> Floats:
    canvas = _ramp(rng, side, (80, 45, 125), (255, 175, 95))
    _paint(canvas, _disc(rng, side, rng.uniform(0.06, 0.13), 0.6), _jitter(rng, (255, 232, 160), 8))
    _paint(canvas, _below(rng, side, rng.uniform(0.5, 0.7), 0.01), _jitter(rng, (130, 50, 105), 22))
    return canvas


def _underwater(rng: np.random.Generator, side: int) -> Floats:
    canvas = _ramp(rng, side, (90, 205, 232), (18, 80, 150))
    slant = np.linspace(0, rng.uniform(-0.4, 0.4), side)[:, None]
    rays = np.clip(np.sin((np.linspace(0, 1, side) + slant) * rng.uniform(15, 35)), 0, 1) * 0.15
    _paint(canvas, rays.astype(np.float32), np.full(3, 245, np.float32))
    for _ in range(int(rng.integers(2, 12))):
        bubble = _disc(rng, side, rng.uniform(0.005, 0.02), 0.9) * 0.5
        _paint(canvas, bubble, np.full(3, 235, np.float32))
    _paint(canvas, _below(rng, side, rng.uniform(0.78, 0.93), 0.02), _jitter(rng, (222, 198, 145)))
    return canvas


def _city(rng: np.random.Generator, side: int) -> Floats:
    canvas = _ramp(rng, side, (120, 180, 235), (212, 230, 245))
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    ground = side * rng.uniform(0.6, 0.8)
    for left in np.arange(0, side, side * rng.uniform(0.08, 0.16)):
        top, right = side * rng.uniform(0.15, 0.55), left + side * rng.uniform(0.07, 0.15)
        draw.rectangle((left, top, right, side), fill=_ints(_jitter(rng, (130, 145, 180), 25)))
        for y in np.arange(top + 3, ground, side * 0.05):
            draw.line((left + 2, y, right - 2, y), fill=_ints(_jitter(rng, (200, 212, 232), 12)), width=1)
    draw.rectangle((0, ground, side, side), fill=_ints(_jitter(rng, (115, 118, 128), 18)))
    return np.asarray(picture, np.float32)


def _ints(color: Floats) -> tuple[int, int, int]:
    return int(color[0]), int(color[1]), int(color[2])


def _wild(rng: np.random.Generator, side: int) -> Floats:
    """Noise of any colour with flat shapes on it, so that no background is ever a surprise."""
    canvas = smooth_noise(rng, side, int(rng.integers(2, 9))) * rng.uniform(60, 255) + rng.uniform(0, 60)
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 7))):
        corner, extent = rng.uniform(-0.1, 0.9, 2) * side, rng.uniform(0.05, 0.5, 2) * side
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((*corner, *(corner + extent)), fill=_ints(rng.uniform(0, 255, 3).astype(np.float32)))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3)))), np.float32)


_SCENES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "night": _night,
    "space": _space,
    "sunset": _sunset,
    "underwater": _underwater,
    "city": _city,
    WILD: _wild,
}


def background(rng: np.random.Generator, side: int, name: str) -> Pixels:
    """One background, uint8 [side, side, 3]; `name` is one of `BACKGROUNDS` or "wild".

    Raises ValueError for any other name.
    """
    if name in COLORS:
        canvas = _studio(rng, side, name)
    elif name in _SCENES:
        canvas = _SCENES[name](rng, side)
    else:
        raise ValueError(f"unknown background {name!r}; choose one of {', '.join((*BACKGROUNDS, WILD))}")
    return np.asarray(np.clip(canvas, 0, 255), np.uint8)


def random_name(rng: np.random.Generator, wild: float) -> str:
    """A background's name; `wild` is the probability of a wild one."""
    return WILD if rng.random() < wild else str(rng.choice(BACKGROUNDS))
