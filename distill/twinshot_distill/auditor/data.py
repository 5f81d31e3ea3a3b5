"""Training pictures for the auditor: the generator's composer, moved, spoiled, and labelled cell by cell.

Drawing takes longer than everything else, so a pool of drawn pictures is used several times, each time moved
and spoiled anew, and renewed little by little.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.auditor.model import CELLS, OWN_COLOR, SIDE
from twinshot_distill.world.composer import MOST_OBJECTS, Composer, SceneBatch, arrange
from twinshot_distill.world.scenes import TASKS, Split, sample_scene
from twinshot_distill.world.sprites import VARIANTS, variant_index
from twinshot_distill.world.vocabulary import BACKGROUNDS, COLORS, OBJECTS

IGNORED = -100
"""The label of cells at an object's edge, which may be called either way."""

NOTHING = len(OBJECTS)
_COLOR_LABELS = {name: label for label, name in enumerate(COLORS)}
_SPLITS: tuple[Split, ...] = ("train", "unseen")
_CROWDED = 0.6
"""The share of pictures that are crowds."""

_CORE, _RIM = 0.25, 0.34
"""Cells nearer to an object's centre than the first share of its size are it, beyond the second are not.

Both are well inside of it, so that equal objects side by side have nothing between them.
"""


class Examples(NamedTuple):
    """Pictures ``[N, 3, 128, 128]`` in 0..1 and the labels ``[N, 16, 16]`` of what is in their cells."""

    pictures: Tensor
    kinds: Tensor
    colors: Tensor


def scenes(rng: Random, count: int) -> SceneBatch:
    """Arrange scenes of all tasks, whether their combinations are held out from the generator or not."""
    tasks = rng.choices(TASKS, k=count)
    return arrange(rng, [sample_scene(rng, task, rng.choice(_SPLITS)) for task in tasks])


def crowds(rng: Random, count: int) -> SceneBatch:
    """Arrange four objects each, one in every quarter: more to learn from in a picture than a scene has."""
    variants = np.zeros((count, MOST_OBJECTS), np.int64)
    boxes = np.zeros((count, MOST_OBJECTS, 3), np.float32)
    backgrounds = np.zeros(count, np.int64)
    for row in range(count):
        things = rng.choices(OBJECTS, k=MOST_OBJECTS)
        colors = [
            rng.choice(entry.colors) if entry.colors and rng.random() < 0.5 else None for entry in things
        ]
        backgrounds[row] = rng.choice([at for at, name in enumerate(BACKGROUNDS) if name not in colors])
        for slot, (entry, color) in enumerate(zip(things, colors, strict=True)):
            variants[row, slot] = variant_index(entry.name, color)
            x, y = (0.27 + 0.46 * side + rng.uniform(-0.04, 0.04) for side in (slot % 2, slot // 2))
            boxes[row, slot] = x, y, rng.uniform(0.36, 0.47)
    picks = np.array([rng.getrandbits(30) for _ in range(count)], np.int64)
    return SceneBatch(variants, boxes, backgrounds, picks)


class PicturePool:
    """Drawn pictures ``[P, 3, 128, 128]`` with their scenes, the oldest replaced as they are used.

    Args:
        composer: draws, on the device that holds the pictures; their labels stay on the CPU.
        size: pictures held.
        portion: pictures replaced at each draw; must divide ``size``.
        seed: of scenes and of everything that is done to them.
    """

    def __init__(self, composer: Composer, size: int, portion: int, seed: int) -> None:
        if size % portion:
            raise ValueError(f"a pool of {size} pictures cannot be renewed {portion} at a time")
        self._composer, self._portion = composer, portion
        self._rng, self._generator = Random(seed), torch.Generator().manual_seed(seed)
        self._pictures = torch.empty(size, 3, SIDE, SIDE, dtype=torch.float16, device=composer.device)
        self._variants = torch.empty(size, MOST_OBJECTS, dtype=torch.int64)
        self._boxes = torch.empty(size, MOST_OBJECTS, 3)
        self._oldest = 0
        for _ in range(size // portion):
            self._renew()

    def _renew(self) -> None:
        """Replace the oldest pictures."""
        rng, chosen = self._rng, slice(self._oldest, self._oldest + self._portion)
        batch = (crowds if rng.random() < _CROWDED else scenes)(rng, self._portion)
        drawn = self._composer.render(batch) / 2 + 0.5
        self._pictures[chosen] = F.interpolate(drawn, (SIDE, SIDE), mode="bilinear", antialias=True).half()
        self._variants[chosen] = torch.from_numpy(batch.variants)
        self._boxes[chosen] = torch.from_numpy(batch.boxes)
        self._oldest = chosen.stop % len(self._pictures)

    def draw(self, count: int) -> Examples:
        """Move and spoil some of the pictures."""
        self._renew()
        generator = self._generator
        rows = torch.randint(len(self._pictures), (count,), generator=generator)
        zoom = 0.6 + 0.65 * torch.rand(count, generator=generator)
        shift = 0.3 * torch.rand(count, 2, generator=generator) - 0.15
        pictures = _move(self._pictures[rows.to(self._pictures.device)].float(), zoom, shift)
        boxes = self._boxes[rows]
        centres = (boxes[..., :2] - 0.5) * zoom[:, None, None] + 0.5 + shift[:, None]
        kinds, colors = label(self._variants[rows], centres, boxes[..., 2] * zoom[:, None])
        return _spoil(Examples(pictures, kinds, colors), generator)


def _move(pictures: Tensor, zoom: Tensor, shift: Tensor) -> Tensor:
    """Magnify by ``zoom`` and move by ``shift`` of a side."""
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta[:, :, 2] = -2 * shift / zoom[:, None]
    grid = F.affine_grid(theta.to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def label(variants: Tensor, centres: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Label the cells of every picture; an object in front hides those behind it.

    Args:
        variants: ``[N, K]`` indices into ``VARIANTS``, -1 for none.
        centres: ``[N, K, 2]``, in shares of the side.
        sizes: ``[N, K]``, likewise.

    Returns the kinds and colours of :class:`Examples`.
    """
    axis = (torch.arange(CELLS) + 0.5) / CELLS
    kinds = torch.full((len(variants), CELLS, CELLS), NOTHING)
    colors = torch.full_like(kinds, IGNORED)
    for row, slots in enumerate(variants.tolist()):
        for slot, variant in enumerate(slots):
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
    """Blur, noise and tint all a little; melt some into others or into a smear, which are nothing."""
    pictures, kinds, colors = examples
    count, device = len(pictures), pictures.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(device)

    roll, soft = chance(1, 1, 1), chance(1, 1, 1) < 0.5
    ghost, smear = roll < 0.07, (roll >= 0.07) & (roll < 0.12)
    share = torch.where(ghost, 0.4 + 0.25 * chance(1, 1, 1), 1.0)
    pictures = pictures * share + pictures.roll(1, 0) * (1 - share)
    pictures = torch.where(smear, _soften(pictures, 13), pictures)
    pictures = torch.where(soft, _soften(pictures, 3), pictures)
    gain, offset = 0.9 + 0.2 * chance(3, 1, 1), 0.08 * chance(1, 1, 1) - 0.04
    noise = torch.randn(pictures.shape, generator=generator).to(device) * 0.06 * chance(1, 1, 1)
    pictures = (pictures * gain + offset + noise).clamp(0, 1)
    spoiled = (ghost | smear)[:, 0].to(kinds.device)
    kinds = torch.where(spoiled & (kinds != IGNORED), NOTHING, kinds)
    return Examples(pictures, kinds, torch.where(spoiled, IGNORED, colors))


def _soften(pictures: Tensor, width: int) -> Tensor:
    """Blur by two box filters."""
    for _ in range(2):
        padded = F.pad(pictures, (width // 2,) * 4, mode="replicate")
        pictures = F.avg_pool2d(padded, width, stride=1)
    return pictures
