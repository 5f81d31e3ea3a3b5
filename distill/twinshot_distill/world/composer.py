"""Draw scenes in batches on any torch device: background, soft shadows, sprites.

A `SceneBatch` is arrays, not objects, so that a million scenes can be prepared on CPU cores and drawn
by a GPU at tens of thousands a second. Sprites are premultiplied by alpha before they are resampled,
or their edges would pick up the colour of invisible pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twinshot_distill.world.backgrounds import background
from twinshot_distill.world.layout import place
from twinshot_distill.world.scenes import Scene
from twinshot_distill.world.sprites import SPRITE_PX, sprite_variants, variant_index
from twinshot_distill.world.vocabulary import BACKGROUNDS, COLORS

SIDE = 256
MOST_OBJECTS = 4
_SMALL_PX = 128
_FLOATING = ("space", "underwater")


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """N scenes as arrays.

    `variants` int64 [N, 4] (-1 = no object), `boxes` float32 [N, 4, 3] (x, y, size in shares of the
    side), `backgrounds` int64 [N] into `BACKGROUNDS`, `picks` int64 [N], any number that chooses among
    a background's variations.
    """

    variants: NDArray[np.int64]
    boxes: NDArray[np.float32]
    backgrounds: NDArray[np.int64]
    picks: NDArray[np.int64]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> SceneBatch:
        return SceneBatch(self.variants[rows], self.boxes[rows], self.backgrounds[rows], self.picks[rows])


def arrange(rng: Random, scenes: Sequence[Scene]) -> SceneBatch:
    """Place the objects of scenes and fix everything their captions leave open."""
    variants = np.full((len(scenes), MOST_OBJECTS), -1, np.int64)
    boxes = np.zeros((len(scenes), MOST_OBJECTS, 3), np.float32)
    backgrounds = np.zeros(len(scenes), np.int64)
    for row, scene in enumerate(scenes):
        backgrounds[row] = BACKGROUNDS.index(scene.background or _any_background(rng, scene))
        for slot, (item, at) in enumerate(zip(scene.items, place(scene), strict=True)):
            variants[row, slot] = variant_index(item.noun, item.color)
            boxes[row, slot] = at.x, at.y, at.size
    picks = np.array([rng.getrandbits(30) for _ in scenes], np.int64)
    return SceneBatch(variants, boxes, backgrounds, picks)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for the work that is queued there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # From ordinary memory the copy would wait its turn, and the host with it.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _any_background(rng: Random, scene: Scene) -> str:
    taken = {item.color for item in scene.items}
    return rng.choice([name for name in BACKGROUNDS if name not in taken])


def _mipmaps(sprites: NDArray[np.uint8], device: torch.device) -> tuple[Tensor, Tensor]:
    """Premultiplied RGBA half [V, 4, S, S] at 192 and 128 px, and each one's (bottom, half width)."""
    pixels = torch.from_numpy(sprites).permute(0, 3, 1, 2).to(device).float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
    small = F.interpolate(pixels, (_SMALL_PX, _SMALL_PX), mode="bilinear", antialias=True)
    return pixels.contiguous().half(), small.contiguous().half()


def _feet(sprites: NDArray[np.uint8]) -> NDArray[np.float32]:
    """For each sprite: lowest opaque row, centre and half width of its base, as shares of its side."""
    feet = np.zeros((len(sprites), 3), np.float32)
    for index, alpha in enumerate(sprites[..., 3] > 100):
        rows = np.flatnonzero(alpha.any(1))
        columns = np.flatnonzero(alpha[int(rows[-1] * 0.8) :].any(0))
        feet[index] = rows[-1], (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) / 2
    return feet / np.float32(SPRITE_PX)


class Composer:
    """Holds every drawing and a bank of background variations on a device.

    `scene_variations` and `plain_variations` say how many pictures each of the nine scenes and ten
    plain colours gets; `workers` processes draw them.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        scene_variations: int = 64,
        plain_variations: int = 12,
        workers: int = 1,
    ) -> None:
        self.device = torch.device(device)
        self._counts = [plain_variations if n in COLORS else scene_variations for n in BACKGROUNDS]
        jobs = [(n, k) for n, count in zip(BACKGROUNDS, self._counts, strict=True) for k in range(count)]
        names, seeds = zip(*jobs, strict=True)
        if workers > 1:
            with ProcessPoolExecutor(workers) as pool:
                bank = list(pool.map(background, names, seeds, chunksize=8))
        else:
            bank = [background(name, seed) for name, seed in jobs]
        self._bank = torch.from_numpy(np.stack(bank)).to(self.device)
        self._first = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        sprites = sprite_variants()
        self._large, self._small = _mipmaps(sprites, self.device)
        self._feet = torch.from_numpy(_feet(sprites)).to(self.device)
        axis = (torch.arange(SIDE, device=self.device) + 0.5) / SIDE
        self._axis = axis

    def render(self, batch: SceneBatch) -> Tensor:
        """Pictures float32 [N, 3, 256, 256] in -1..1, on the composer's device."""
        counts = np.array(self._counts)[batch.backgrounds]
        chosen = to_device(self._first[batch.backgrounds] + batch.picks % counts, self.device)
        canvas = self._bank[chosen].permute(0, 3, 1, 2).float() / 255
        variants = to_device(batch.variants, self.device)
        boxes = to_device(batch.boxes, self.device)
        floating = np.isin(batch.backgrounds, [BACKGROUNDS.index(name) for name in _FLOATING])
        depth = to_device(np.where(floating, 0.0, 0.42).astype(np.float32), self.device)
        # Rows are chosen on the host: a mask on the device would stall its queue at every slot.
        alone = batch.variants[:, 1] < 0
        for slot in range(MOST_OBJECTS):
            for level, lonely in ((self._large, True), (self._small, False)):
                chosen_rows = np.flatnonzero((batch.variants[:, slot] >= 0) & (alone == lonely))
                if len(chosen_rows):
                    rows = to_device(chosen_rows, self.device)
                    drawn = self._draw(
                        canvas[rows], level, variants[rows, slot], boxes[rows, slot], depth[rows]
                    )
                    canvas = canvas.index_copy(0, rows, drawn)
        return canvas * 2 - 1

    def _draw(self, canvas: Tensor, level: Tensor, variants: Tensor, boxes: Tensor, depth: Tensor) -> Tensor:
        """One object of each row over its canvas [n, 3, 256, 256]."""
        canvas = canvas * (1 - self._shadow(self._feet[variants], boxes, depth))
        x, y, size = (boxes[:, i, None] for i in range(3))
        across = (self._axis - x) * 2 / size
        down = (self._axis - y) * 2 / size
        rows, columns = down[:, :, None].expand(-1, -1, SIDE), across[:, None, :].expand(-1, SIDE, -1)
        grid = torch.stack([columns, rows], -1)
        sprite = F.grid_sample(level[variants].float(), grid, align_corners=False, padding_mode="zeros")
        return sprite[:, :3] + canvas * (1 - sprite[:, 3:])

    def _shadow(self, feet: Tensor, boxes: Tensor, depth: Tensor) -> Tensor:
        """A soft ellipse under each object's base, [n, 1, 256, 256]."""
        x, y, size = boxes.unbind(1)
        centre_x = x + (feet[:, 1] - 0.5) * size
        centre_y = y + (feet[:, 0] - 0.5) * size - 0.01 * size
        wide = (feet[:, 2] * 1.1 * size).clamp_min(0.1 * 0.4)
        across = ((self._axis - centre_x[:, None]) / wide[:, None]) ** 2
        down = ((self._axis - centre_y[:, None]) / (0.075 * size[:, None])) ** 2
        distance = across[:, None, :] + down[:, :, None]
        return (depth[:, None, None] * torch.exp(-1.3 * distance))[:, None]
