"""Training pictures for the auditor: the generator's composer, moved, spoiled, and labelled cell by cell."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.auditor.model import CELLS, OWN_COLOR, SIDE
from twinshot_distill.world.composer import Composer, SceneBatch, arrange
from twinshot_distill.world.scenes import TASKS, sample_scene
from twinshot_distill.world.sprites import VARIANTS
from twinshot_distill.world.vocabulary import COLORS, OBJECTS

IGNORED = -100
"""The label of cells at an object's edge, which may be called either way."""

NOTHING = len(OBJECTS)
_COLOR_LABELS = {name: label for label, name in enumerate(COLORS)}
_CORE, _RIM = 0.26, 0.48
"""Cells nearer to an object's centre than the first share of its size are it, beyond the second are not."""


class Examples(NamedTuple):
    """Pictures ``[N, 3, 128, 128]`` in 0..1 and the labels ``[N, 16, 16]`` of what is in their cells."""

    pictures: Tensor
    kinds: Tensor
    colors: Tensor


def draw_examples(rng: Random, generator: torch.Generator, composer: Composer, count: int) -> Examples:
    """Draw scenes of all tasks, whether held out from the generator or not, and spoil some of them."""
    splits = ("train", "unseen")
    scenes = [sample_scene(rng, TASKS[rng.randrange(len(TASKS))], rng.choice(splits)) for _ in range(count)]
    batch = arrange(rng, scenes)
    pictures = composer.render(batch) / 2 + 0.5
    zoom = 0.8 + 0.45 * torch.rand(count, generator=generator)
    shift = 0.3 * torch.rand(count, 2, generator=generator) - 0.15
    pictures = _move(pictures, zoom, shift)
    kinds, colors = _label(batch, zoom, shift)
    return _spoil(Examples(pictures, kinds, colors), generator)


def _move(pictures: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Magnify by ``zoom``, move by ``shift`` of a side, and reduce to the network's size."""
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta[:, :, 2] = -2 * shift / zoom[:, None]
    small = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
    grid = F.affine_grid(theta, list(small.shape), align_corners=False)
    return F.grid_sample(small, grid, padding_mode="border", align_corners=False)


def _label(batch: SceneBatch, zoom: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Label the cells of every picture; an object in front hides those behind it."""
    boxes = torch.from_numpy(batch.boxes)
    centres = (boxes[..., :2] - 0.5) * zoom[:, None, None] + 0.5 + shift[:, None]
    sizes = boxes[..., 2] * zoom[:, None]
    axis = (torch.arange(CELLS) + 0.5) / CELLS
    kinds = torch.full((len(boxes), CELLS, CELLS), NOTHING)
    colors = torch.full_like(kinds, IGNORED)
    for row, variants in enumerate(batch.variants.tolist()):
        for slot, variant in enumerate(variants):
            if variant < 0:
                continue
            kind, color = VARIANTS[variant]
            x, y = centres[row, slot]
            distance = torch.hypot(axis[:, None] - y, axis[None] - x) / sizes[row, slot]
            kinds[row][distance < _RIM] = IGNORED
            core = distance < _CORE
            kinds[row][core] = kind
            colors[row][core] = OWN_COLOR if color is None else _COLOR_LABELS[color]
    return kinds, colors


def _spoil(examples: Examples, generator: torch.Generator) -> Examples:
    """Blur, noise and tint all a little; melt some pictures into others or into a smear, which are nothing."""
    pictures, kinds, colors = examples
    count = len(pictures)
    roll = torch.rand(count, generator=generator)
    ghost, smear = roll < 0.07, (roll >= 0.07) & (roll < 0.12)
    share = torch.where(ghost, 0.4 + 0.25 * torch.rand(count, generator=generator), 1.0)[:, None, None, None]
    pictures = pictures * share + pictures.roll(1, 0) * (1 - share)
    pictures = torch.where(smear[:, None, None, None], _soften(pictures, 13), pictures)
    soft = torch.rand(count, generator=generator) < 0.5
    pictures = torch.where(soft[:, None, None, None], _soften(pictures, 3), pictures)
    gain = 0.9 + 0.2 * torch.rand(count, 3, 1, 1, generator=generator)
    offset = 0.08 * torch.rand(count, 1, 1, 1, generator=generator) - 0.04
    noise = torch.randn(pictures.shape, generator=generator) * 0.06
    noise = noise * torch.rand(count, 1, 1, 1, generator=generator)
    pictures = (pictures * gain + offset + noise).clamp(0, 1)
    spoiled = (ghost | smear)[:, None, None]
    kinds = torch.where(spoiled & (kinds != IGNORED), NOTHING, kinds)
    return Examples(pictures, kinds, torch.where(spoiled, IGNORED, colors))


def _soften(pictures: Tensor, width: int) -> Tensor:
    """Blur by two box filters."""
    for _ in range(2):
        padded = F.pad(pictures, (width // 2,) * 4, mode="replicate")
        pictures = F.avg_pool2d(padded, width, stride=1)
    return pictures
