"""Recolour a shaded sprite: move one dominant hue to a named colour, keep shading and highlights.

Works in OKLab (Ottosson 2020), where a change of hue leaves perceived lightness alone. The pixels
whose hue lies near the sprite's chroma-weighted main hue move; the others (a leaf, a tyre) stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinshot_distill.world.vocabulary import COLORS

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)
_HUE_REACH = np.deg2rad(62.0)
_SOFTNESS = np.deg2rad(14.0)


def to_oklab(rgb: Pixels) -> Floats:
    """sRGB uint8 [..., 3] -> OKLab float32 [..., 3] (L in 0..1)."""
    c = rgb.astype(np.float32) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return np.asarray(np.cbrt(linear @ _LMS.T) @ _LAB.T, np.float32)


def from_oklab(lab: Floats) -> Pixels:
    """OKLab float32 [..., 3] -> sRGB uint8 [..., 3], clipped to the gamut."""
    linear = np.clip((lab @ np.linalg.inv(_LAB).T) ** 3 @ np.linalg.inv(_LMS).T, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(srgb * 255), np.uint8)


def _main_hue(hue: Floats, weight: Floats) -> float:
    """The chroma-weighted mode of the hues, in radians."""
    bins = 72
    counts, edges = np.histogram(hue, bins, (-np.pi, np.pi), weights=weight)
    smooth = sum(np.roll(counts, shift) for shift in range(-2, 3))
    return float(edges[int(np.argmax(smooth))] + np.pi / bins)


def _membership(lab: Floats, alpha: Floats) -> Floats:
    """How far each pixel belongs to the main hue, 0..1, shape [H, W]."""
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.arctan2(lab[..., 2], lab[..., 1])
    weight = np.where(chroma > 0.03, chroma, 0) * alpha
    distance = np.abs((hue - _main_hue(hue, weight) + np.pi) % (2 * np.pi) - np.pi)
    near = np.clip((_HUE_REACH + _SOFTNESS - distance) / (2 * _SOFTNESS), 0, 1)
    return np.asarray(near * np.clip((chroma - 0.02) / 0.03, 0, 1), np.float32)


def recolour(rgba: Pixels, color: str) -> Pixels:
    """A sprite [H, W, 4] uint8 with its main hue moved to `color` (a name of `COLORS`).

    Lightness and chroma are moved so that the recoloured area's mean meets the target while the
    shading's contrast stays; raises ValueError on an unknown colour.
    """
    if color not in COLORS:
        raise ValueError(f"unknown colour {color!r}; choose one of {', '.join(COLORS)}")
    lab = to_oklab(rgba[..., :3])
    alpha = rgba[..., 3].astype(np.float32) / 255
    share = _membership(lab, alpha)
    weight = share * alpha + 1e-6
    target = to_oklab(np.array(COLORS[color], np.uint8))
    light = lab[..., 0]
    mean = float((light * weight).sum() / weight.sum())
    spread = 0.75 if color in ("black", "white") else 0.9
    new_light = np.clip(target[0] + (light - mean) * spread, 0.04, 0.985)
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    scale = np.clip(chroma / (float((chroma * weight).sum() / weight.sum()) + 1e-6), 0.3, 1.25)
    # Chroma must fade towards black and white or highlights turn fluorescent.
    fade = np.clip((1 - np.abs(2 * new_light - 1) ** 8), 0.2, 1)
    moved = np.stack([new_light, target[1] * scale * fade, target[2] * scale * fade], -1)
    mixed = lab + (moved - lab) * share[..., None]
    return np.concatenate([from_oklab(mixed.astype(np.float32)), rgba[..., 3:]], -1)
