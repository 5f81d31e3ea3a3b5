"""Degradations, batched on torch: what a picture may suffer and still count, and what it may not.

Training mixes both: mild warps, blur, noise and colour casts keep their labels; ghosts of two pictures,
heavy blur and melted pictures lose them. `degrade` gives the fixed levels of the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_BLUR_TAPS = 21


@dataclass(frozen=True, slots=True)
class Level:
    """A degradation at 128 px: warp amplitude and blur sigma in pixels, noise sigma in grey levels."""

    warp: float
    blur: float
    noise: float


LEVELS: dict[str, Level] = {
    "clean": Level(0, 0, 0),
    "mild": Level(1, 0.8, 6),
    "strong": Level(1, 1.5, 14),
}
"""The three levels at which pass rates are measured."""


def blur(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of [N, 3, H, W], each picture with its own sigma [N] in pixels."""
    n, channels, height, width = pictures.shape
    taps = torch.arange(_BLUR_TAPS, device=pictures.device) - _BLUR_TAPS // 2
    kernel = torch.exp(-0.5 * (taps / sigma.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    half = _BLUR_TAPS // 2
    flat = F.pad(pictures.reshape(1, n * channels, height, width), (half,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=n * channels)
    return flat.reshape(n, channels, height, width)


def wobble(count: int, side: int, amplitude: Tensor, cells: int, rng: Generator) -> Tensor:
    """Smooth displacements [N, side, side, 2] in grid_sample's units; `amplitude` [N] is in pixels."""
    coarse = torch.randn(count, 2, cells, cells, generator=rng)
    fine = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    return (fine * (amplitude * 2 / side)[:, None, None, None]).permute(0, 2, 3, 1)


def resample(pictures: Tensor, zoom: Tensor, shift: Tensor, displacement: Tensor) -> Tensor:
    """Read [N, 3, S, S] at zoom * position + shift + displacement, mirrored at the edges."""
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False) + displacement
    return F.grid_sample(pictures, grid, "bilinear", "reflection", align_corners=False)


def degrade(pictures: Tensor, level: Level, rng: Generator) -> Tensor:
    """Warp, blur and noise [N, 3, 128, 128] in 0..1 at a fixed level."""
    count, side = len(pictures), pictures.shape[-1]
    if level.warp:
        displacement = wobble(count, side, torch.full((count,), level.warp), 6, rng)
        pictures = resample(pictures, torch.ones(count), torch.zeros(count, 2), displacement)
    if level.blur:
        pictures = blur(pictures, torch.full((count,), level.blur))
    noise = torch.randn(pictures.shape, generator=rng) * (level.noise / 255)
    return (pictures + noise).clamp(0, 1)


def _uniform(rng: Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def _tint(pictures: Tensor, rng: Generator) -> Tensor:
    """A slight colour cast, contrast and brightness change."""
    count = len(pictures)
    gain = _uniform(rng, count * 3, 0.95, 1.05).view(count, 3, 1, 1)
    contrast = _uniform(rng, count, 0.88, 1.1).view(count, 1, 1, 1)
    offset = _uniform(rng, count, -0.05, 0.05).view(count, 1, 1, 1)
    return ((pictures - 0.5) * gain * contrast + 0.5 + offset).clamp(0, 1)


def _move(labels: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Labels [N, K, 5] after `resample`; objects whose centre has left the picture are dropped."""
    moved = labels.clone()
    moved[..., 2:4] = ((labels[..., 2:4] * 2 - 1) - shift[:, None]) / zoom[:, None, None] / 2 + 0.5
    moved[..., 4] = labels[..., 4] / zoom[:, None]
    outside = ((moved[..., 2:4] < 0.04) | (moved[..., 2:4] > 0.96)).any(-1)
    moved[..., 0] = torch.where(outside, -1.0, moved[..., 0])
    return moved


def augment(pictures: Tensor, labels: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Training's random degradations of [N, 3, 128, 128] in 0..1 with labels [N, K, 5].

    Of the pictures, 6 % become ghosts of two, 3 % are melted and 4 % blurred past recognition: those
    lose their labels. A few keep them under a faint second picture.
    """
    count, side = len(pictures), pictures.shape[-1]
    roll = torch.rand(count, generator=rng)
    ghost, melted, smeared = roll < 0.06, (roll >= 0.06) & (roll < 0.09), (roll >= 0.09) & (roll < 0.13)
    zoom, shift = _uniform(rng, count, 0.92, 1.08), _uniform(rng, count * 2, -0.08, 0.08).view(count, 2)
    displacement = wobble(count, side, _uniform(rng, count, 0, 1.3), 6, rng)
    displacement += wobble(count, side, _uniform(rng, count, 5, 9) * melted, 9, rng)
    pictures, labels = resample(pictures, zoom, shift, displacement), _move(labels, zoom, shift)
    share = torch.where(roll > 0.95, _uniform(rng, count, 0.9, 1), torch.ones(count))
    share = torch.where(ghost, _uniform(rng, count, 0.35, 0.74), share)[:, None, None, None]
    pictures = pictures * share + pictures.roll(1, 0) * (1 - share)
    sigma = _uniform(rng, count, -0.6, 1.75).clamp(min=0.05)
    sigma = torch.where(smeared, _uniform(rng, count, 2.9, 4.5), sigma)
    pictures = _tint(blur(pictures, sigma), rng)
    noise = torch.randn(pictures.shape, generator=rng) * _uniform(rng, count, -0.02, 0.06).clamp(min=0).view(
        -1, 1, 1, 1
    )
    spoiled = (ghost | melted | smeared)[:, None] & torch.ones_like(labels[..., 0], dtype=torch.bool)
    labels[..., 0] = torch.where(spoiled, -1.0, labels[..., 0])
    return (pictures + noise).clamp(0, 1), labels
