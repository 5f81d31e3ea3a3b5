"""Objects drawn wrongly on purpose: what a detector must not take for the real thing.

A generator's failures are not other objects but halves, ghosts and mixtures; a detector that has only
seen perfect drawings accepts them all. Each fault turns a sprite's picture into one that counts as
absent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]


def alpha_of(sprite: Image.Image) -> Floats:
    """A sprite's coverage, float32 [h, w] in 0..1."""
    return np.asarray(np.asarray(sprite.getchannel("A")) / 255, np.float32)


def with_alpha(sprite: Image.Image, alpha: Floats) -> Image.Image:
    """The sprite with another coverage."""
    changed = sprite.copy()
    changed.putalpha(Image.fromarray(np.clip(alpha * 255, 0, 255).astype(np.uint8)))
    return changed


def half_plane(rng: np.random.Generator, alpha: Floats, share: float, angle: float | None = None) -> Floats:
    """A soft mask [h, w] that keeps all of the coverage but `share` of it, cut along a straight line."""
    y, x = np.mgrid[0 : alpha.shape[0], 0 : alpha.shape[1]].astype(np.float32)
    turn = rng.uniform(0, 2 * np.pi) if angle is None else angle
    along = x * np.cos(turn) + y * np.sin(turn)
    order = np.argsort(along, axis=None)
    mass = np.cumsum(alpha.ravel()[order])
    cut = along.ravel()[order[int(np.searchsorted(mass, share * mass[-1]))]]
    return np.asarray(np.clip((along - cut) / rng.uniform(0.5, 6) + 0.5, 0, 1), np.float32)


def erase(rng: np.random.Generator, sprite: Image.Image, share: float) -> Image.Image:
    """Remove a share of the object, from a straight edge or as a hole near its middle."""
    alpha = alpha_of(sprite)
    if rng.random() < 0.75:
        return with_alpha(sprite, alpha * half_plane(rng, alpha, share))
    y, x = np.mgrid[0 : alpha.shape[0], 0 : alpha.shape[1]].astype(np.float32)
    middle = rng.uniform(0.3, 0.7, 2) * alpha.shape
    away = np.hypot(y - middle[0], x - middle[1])
    order = np.sort(away[alpha > 0.5])
    radius = order[int(share * (order.size - 1))] if order.size else 1.0
    return with_alpha(sprite, alpha * np.clip((away - radius) / rng.uniform(0.5, 5), 0, 1))


def _half(rng: np.random.Generator, sprite: Image.Image, _other: Image.Image) -> Image.Image:
    return erase(rng, sprite, float(rng.uniform(0.36, 0.75)))


def _ghost(rng: np.random.Generator, sprite: Image.Image, _other: Image.Image) -> Image.Image:
    return with_alpha(sprite, alpha_of(sprite) * np.float32(rng.uniform(0.25, 0.68)))


def _mixture(rng: np.random.Generator, sprite: Image.Image, other: Image.Image) -> Image.Image:
    """Two objects blended in one place."""
    return Image.blend(sprite, other.resize(sprite.size), float(rng.uniform(0.34, 0.66)))


def _chimera(rng: np.random.Generator, sprite: Image.Image, other: Image.Image) -> Image.Image:
    """One object's half joined to another's."""
    mask = half_plane(rng, np.ones(sprite.size[::-1], np.float32), float(rng.uniform(0.4, 0.6)))
    return Image.composite(sprite, other.resize(sprite.size), Image.fromarray((mask * 255).astype(np.uint8)))


def _smear(rng: np.random.Generator, sprite: Image.Image, _other: Image.Image) -> Image.Image:
    radius = max(sprite.size) * float(rng.uniform(0.07, 0.14))
    margin = round(2 * radius)
    padded = Image.new("RGBA", (sprite.width + 2 * margin, sprite.height + 2 * margin))
    padded.paste(sprite, (margin, margin))
    # Premultiplied, or the colours under transparent pixels bleed in.
    return padded.convert("RGBa").filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")


def _shuffle(rng: np.random.Generator, sprite: Image.Image, _other: Image.Image) -> Image.Image:
    """The object's quarters in another order: its colours and texture without its shape."""
    pixels = np.asarray(sprite)
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    parts = [p for row in np.split(pixels[:height, :width], 2) for p in np.split(row, 2, axis=1)]
    turn = int(rng.integers(1, 4))
    a, b, c, d = (parts[(k + turn) % 4] for k in range(4))
    return Image.fromarray(np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)]))


_FAULTS: tuple[Callable[[np.random.Generator, Image.Image, Image.Image], Image.Image], ...] = (
    _half,
    _half,
    _ghost,
    _mixture,
    _chimera,
    _smear,
    _shuffle,
)


def spoil(rng: np.random.Generator, sprite: Image.Image, other: Image.Image) -> Image.Image:
    """The sprite with a random fault; `other` is a different object, for mixtures."""
    return _FAULTS[int(rng.integers(len(_FAULTS)))](rng, sprite, other)
