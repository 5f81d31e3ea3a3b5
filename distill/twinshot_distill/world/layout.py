"""Where each object of a scene stands.

The caption fixes the arrangement: the object named first stands on the left, three form a triangle,
four a square; only small shifts are free. One picture a caption is what one step can learn: with
free left-right order a one-step model blends the two arrangements into one.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from twinshot_distill.world.scenes import Scene

_SIDE_BY_SIDE = ((0.275, 0.56), (0.725, 0.56))
_STACKED = ((0.5, 0.27), (0.5, 0.73))
_COUNTED = {
    2: _SIDE_BY_SIDE,
    3: ((0.5, 0.27), (0.265, 0.725), (0.735, 0.725)),
    4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
}


@dataclass(frozen=True, slots=True)
class Placement:
    """An object's centre and side, as shares of the picture's side (x right, y down)."""

    x: float
    y: float
    size: float


def _centres(scene: Scene) -> tuple[tuple[float, float], ...]:
    if len(scene.items) == 1:
        return ((0.5, 0.53),)
    if scene.task == "count":
        return _COUNTED[len(scene.items)]
    if scene.relation in ("above", "below"):
        return _STACKED if scene.relation == "above" else _STACKED[::-1]
    return _SIDE_BY_SIDE[::-1] if scene.relation == "right of" else _SIDE_BY_SIDE


def place(rng: Random, scene: Scene) -> tuple[Placement, ...]:
    """A placement for each item of the scene, in order."""
    alone = len(scene.items) == 1
    size = rng.uniform(0.54, 0.66) if alone else rng.uniform(0.42, 0.46)
    drift = 0.05 if alone else 0.02
    shift_x, shift_y = rng.uniform(-drift, drift), rng.uniform(-drift, drift)
    return tuple(
        Placement(x + shift_x + rng.uniform(-0.015, 0.015), y + shift_y + rng.uniform(-0.015, 0.015), size)
        for x, y in _centres(scene)
    )
