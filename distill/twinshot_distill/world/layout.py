"""Where each object of a scene stands.

The caption fixes the places: one object stands in the middle, the one named first on the left, three form
a triangle, four a square. What seeds vary is what the caption leaves open, the background. One picture a
caption is what one step can learn: free to shift objects, or to swap left and right, a one-step model draws
some of them at two places at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinshot_distill.world.scenes import Scene

_SIDE = 16
"""Parts of the picture's side in which places are given; each is a token of the transformer."""
_ALONE = (10, ((3, 4),))
_SIDE_BY_SIDE = (8, ((0, 5), (8, 5)))
_STACKED = (8, ((4, 0), (4, 8)))
_THREE = (7, ((4, 1), (1, 8), (8, 8)))
_FOUR = (7, ((1, 1), (8, 1), (1, 8), (8, 8)))
_COUNTED = {1: _ALONE, 2: _SIDE_BY_SIDE, 3: _THREE, 4: _FOUR}


@dataclass(frozen=True, slots=True)
class Placement:
    """An object's centre and side, as shares of the picture's side (x right, y down)."""

    x: float
    y: float
    size: float


def place(scene: Scene) -> tuple[Placement, ...]:
    """A placement for each item of the scene, in order."""
    stacked = scene.relation in ("above", "below")
    size, corners = _STACKED if stacked else _COUNTED[len(scene.items)]
    if scene.relation in ("right of", "below"):
        corners = corners[::-1]
    return tuple(
        Placement((left + size / 2) / _SIDE, (top + size / 2) / _SIDE, size / _SIDE) for left, top in corners
    )
