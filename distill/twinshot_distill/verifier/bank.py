"""The sprites as the verifier uses them: recoloured, cropped to what is opaque, and compared.

Some objects already have a nameable colour (the apple is red). Where the recoloured drawing can hardly
be told from the natural one, the two are "twins", and either colour answer is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinshot_distill.world.recolour import to_oklab
from twinshot_distill.world.sprites import load_sprites, recolour
from twinshot_distill.world.vocabulary import OBJECTS

Pixels = NDArray[np.uint8]
TWIN_DISTANCE = 0.10
"""OKLab distance, averaged over the recoloured pixels, under which two drawings count as one colour."""

_OPAQUE = 24
_MOVES = 0.06


def crop(rgba: Pixels) -> Pixels:
    """A sprite [H, W, 4] cut to the bounding box of its opaque part."""
    rows, columns = np.nonzero(rgba[..., 3] > _OPAQUE)
    if rows.size == 0:
        raise ValueError(f"a sprite of shape {rgba.shape} has no opaque pixel")
    return rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _apart(first: Pixels, second: Pixels) -> NDArray[np.float32]:
    """OKLab distance of two drawings of one outline, pixel by pixel."""
    difference = to_oklab(first[..., :3]) - to_oklab(second[..., :3])
    return np.asarray(np.linalg.norm(difference, axis=-1), np.float32)


@dataclass
class SpriteBank:
    """Cropped drawings by (object index, colour or None), made when first asked for."""

    _cache: dict[tuple[int, str | None], Pixels] = field(default_factory=dict)

    def get(self, index: int, color: str | None) -> Pixels:
        """The drawing uint8 [h, w, 4] (straight alpha) of an object in a colour."""
        key = (index, color)
        if key not in self._cache:
            whole = np.ascontiguousarray(load_sprites()[index])
            self._cache[key] = crop(whole if color is None else recolour(whole, color))
        return self._cache[key]

    def image(self, index: int, color: str | None, longer_side: int) -> Image.Image:
        """The drawing scaled so that its longer side has that many pixels."""
        drawing = Image.fromarray(self.get(index, color))
        scale = longer_side / max(drawing.size)
        size = (max(2, round(drawing.width * scale)), max(2, round(drawing.height * scale)))
        return drawing.resize(size, Image.Resampling.BICUBIC)


def color_distances(bank: SpriteBank, index: int) -> dict[str, float]:
    """How far each recoloured drawing of an object is from the natural one, over the part that moves."""
    natural = bank.get(index, None)
    apart = {c: _apart(natural, bank.get(index, c)) for c in OBJECTS[index].colors}
    if not apart:
        return {}
    moves = np.mean(list(apart.values()), axis=0) > _MOVES
    weight = natural[..., 3].astype(np.float64) * moves
    return {c: float((d * weight).sum() / max(weight.sum(), 1.0)) for c, d in apart.items()}


def find_twins(bank: SpriteBank) -> dict[str, str]:
    """Object name -> the one colour, if any, whose recoloured drawing looks like the natural one."""
    twins: dict[str, str] = {}
    for index, entry in enumerate(OBJECTS):
        distances = color_distances(bank, index)
        nearest = min(distances, key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest] < TWIN_DISTANCE:
            twins[entry.name] = nearest
    return twins
