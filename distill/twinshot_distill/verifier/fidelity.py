"""How well an object is drawn: the known sprite refitted around its detection, and their correlation.

The detector answers "is it there"; a soft or half-mixed object can still be found. This score is the
normalised cross-correlation of the sprite's opaque pixels with the picture, each colour channel about
its own mean, at the best of 9 scales and 7 x 7 shifts, then refined at half those steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from twinshot_distill.verifier.bank import SpriteBank
from twinshot_distill.world.vocabulary import INDEX

_COARSE, _FINE = 24, 64
_SCALES = tuple(1.22 ** (k / 4) for k in range(-4, 5))
_SHIFTS = tuple(0.04 * k for k in range(-3, 4))
_FINE_SCALES = tuple(1.22 ** (k / 8) for k in (-1, 0, 1))
_FINE_SHIFTS = tuple(0.01 * k for k in range(-2, 3))
_NOISE = (2 / 255) ** 2
"""Variance below which a patch counts as flat, or a blank one would correlate by its noise."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A sprite and where to look for it; position and size in shares of the picture's side."""

    noun: str
    color: str | None
    x: float
    y: float
    size: float


@cache
def _bank() -> SpriteBank:
    return SpriteBank()


@cache
def _square(noun: str, color: str | None) -> Tensor:
    """The cropped drawing, premultiplied, centred in a square: float32 [4, S, S] in 0..1."""
    rgba = torch.from_numpy(_bank().get(INDEX[noun], color).copy()).permute(2, 0, 1).float() / 255
    rgba[:3] *= rgba[3:]
    wide, high = max(rgba.shape[1:]) - rgba.shape[2], max(rgba.shape[1:]) - rgba.shape[1]
    return F.pad(rgba, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def _template(fit: Fit, side: int, pixels: int) -> tuple[Tensor, Tensor]:
    """The sprite as it looks at `pixels` a side, read at side x side: colours [3, n], weights [n]."""
    small = F.interpolate(
        _square(fit.noun, fit.color)[None], (pixels, pixels), mode="bilinear", antialias=True
    )
    read = F.interpolate(small, (side, side), mode="bilinear", antialias=True)[0]
    weight = (read[3] > 0.6).float().flatten()
    return (read[:3] / read[3:].clamp(min=0.05)).flatten(1), weight


def _patches(picture: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Square parts (x, y, size) [K, 3] of a picture [3, S, S], read at side x side: [K, 3, n]."""
    theta = torch.zeros(len(boxes), 2, 3, device=picture.device)
    theta[:, 0, 0] = theta[:, 1, 1] = boxes[:, 2]
    theta[:, :, 2] = boxes[:, :2] * 2 - 1
    grid = F.affine_grid(theta, [len(boxes), 3, side, side], align_corners=False)
    # One tall grid instead of K pictures: the picture is read in place, not copied K times.
    read = F.grid_sample(picture[None], grid.view(1, -1, side, 2), align_corners=False)[0]
    return read.view(3, len(boxes), side * side).transpose(0, 1)


def _correlate(patches: Tensor, template: Tensor, weight: Tensor) -> Tensor:
    """Masked correlation [K] of patches [K, 3, n] with a template [3, n] under weights [n]."""
    total = weight.sum().clamp(min=1)
    centred = (template - (template * weight).sum(1, keepdim=True) / total) * weight
    covariance = torch.einsum("kcn,cn->k", patches, centred)
    means = patches @ weight / total
    power = torch.einsum("kcn,n->k", patches**2, weight) - total * (means**2).sum(1)
    floor = 3 * total * _NOISE
    return covariance / torch.sqrt((power.clamp(min=0) + floor) * (centred.square().sum() + floor))


def _boxes(x: float, y: float, size: float, scales: Sequence[float], shifts: Sequence[float]) -> Tensor:
    """Every scale at every shift around a box: [K, 3]."""
    grid = torch.cartesian_prod(torch.tensor(shifts), torch.tensor(shifts), torch.tensor(scales))
    return torch.stack([x + grid[:, 0] * size, y + grid[:, 1] * size, size * grid[:, 2]], 1)


def _best(picture: Tensor, fit: Fit, boxes: Tensor, side: int, pixels: int) -> tuple[float, list[float]]:
    """The best correlation among the boxes, and its box."""
    template, weight = (t.to(picture.device) for t in _template(fit, side, pixels))
    scores = _correlate(_patches(picture, boxes.to(picture.device), side), template, weight)
    top = int(scores.argmax())
    return float(scores[top]), [float(v) for v in boxes[top]]


def refit(picture: Tensor, fits: Sequence[Fit]) -> list[float]:
    """Each sprite's best correlation, 0..1, near its expected place in a picture [3, S, S] in 0..1."""
    half = F.avg_pool2d(picture[None], 2)[0]
    scores = []
    for fit in fits:
        pixels = max(4, round(fit.size * half.shape[-1]))
        wide = _boxes(fit.x, fit.y, fit.size, _SCALES, _SHIFTS)
        _, (x, y, size) = _best(half, fit, wide, _COARSE, pixels)
        near = _boxes(x, y, size, _FINE_SCALES, _FINE_SHIFTS)
        score, _ = _best(picture, fit, near, _FINE, max(8, round(size * picture.shape[-1])))
        scores.append(max(0.0, score))
    return scores
