"""The sprite atlas: one 192 px drawing an object, and its recoloured variants.

Drawings: Fluent Emoji 3D, (c) Microsoft Corporation, MIT licence (see `atlas.NOTICE`). The atlas is a
grid of straight-alpha tiles in the order of `OBJECTS`, so adding an object means building it again:

    python -m twinshot_distill.world.sprites FOLDER_OF_EMOJI_IMAGES
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinshot_distill.world.recolour import recolour
from twinshot_distill.world.vocabulary import COLORS, INDEX, OBJECTS

SPRITE_PX = 192
ATLAS = Path(__file__).with_name("atlas.webp")
_COLUMNS = 11

__all__ = ["SPRITE_PX", "build_atlas", "load_sprites", "recolour", "sprite_variants", "variant_index"]


def build_atlas(folder: Path) -> None:
    """Write the atlas from emoji images named by code point; raises FileNotFoundError on a gap."""
    rows = -(-len(OBJECTS) // _COLUMNS)
    sheet = Image.new("RGBA", (_COLUMNS * SPRITE_PX, rows * SPRITE_PX))
    for index, entry in enumerate(OBJECTS):
        found = [p for suffix in ("", "-fe0f") if (p := folder / f"{entry.code}{suffix}.webp").exists()]
        if not found:
            raise FileNotFoundError(f"no image for {entry.name!r} ({entry.code}.webp) in {folder}")
        tile = Image.open(found[0]).convert("RGBA").resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS)
        sheet.paste(tile, (index % _COLUMNS * SPRITE_PX, index // _COLUMNS * SPRITE_PX))
    sheet.save(ATLAS, quality=84, alpha_quality=90, method=6)


@cache
def load_sprites() -> NDArray[np.uint8]:
    """Every object's drawing: uint8 [len(OBJECTS), 192, 192, 4], straight alpha, order of `OBJECTS`."""
    sheet = np.asarray(Image.open(ATLAS).convert("RGBA"))
    rows = sheet.shape[0] // SPRITE_PX
    tiles = sheet.reshape(rows, SPRITE_PX, _COLUMNS, SPRITE_PX, 4).swapaxes(1, 2)
    return tiles.reshape(-1, SPRITE_PX, SPRITE_PX, 4)[: len(OBJECTS)]


def _variants() -> list[tuple[int, str | None]]:
    natural: list[tuple[int, str | None]] = [(index, None) for index in range(len(OBJECTS))]
    return natural + [(index, color) for index, entry in enumerate(OBJECTS) for color in entry.colors]


VARIANTS: tuple[tuple[int, str | None], ...] = tuple(_variants())
"""(object index, colour or None) of every drawing there is; natural ones first."""

_VARIANT_INDEX = {key: index for index, key in enumerate(VARIANTS)}


def variant_index(noun: str, color: str | None) -> int:
    """Index into `sprite_variants()`; raises ValueError for a pair that is not drawn."""
    key = (INDEX[noun], color)
    if key not in _VARIANT_INDEX:
        accepted = OBJECTS[INDEX[noun]].colors or "its own colour alone"
        raise ValueError(f"no {color} {noun}; accepted: {accepted} (colours: {', '.join(COLORS)})")
    return _VARIANT_INDEX[key]


def sprite_variants() -> NDArray[np.uint8]:
    """All drawings: uint8 [len(VARIANTS), 192, 192, 4]; about 90 MB, a few seconds."""
    sprites = load_sprites()
    return np.stack([sprites[i] if c is None else recolour(sprites[i], c) for i, c in VARIANTS])


if __name__ == "__main__":
    build_atlas(Path(sys.argv[1]))
