"""Where objects stand in the verifier's pictures, and scenes of GenEval's six tasks to go with them.

Own layouts and an own sampler: combinations held out from the generator's training are all drawn here,
so the verifier knows seen and unseen ones equally well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinshot_distill.world.scenes import Item, Scene, Task
from twinshot_distill.world.vocabulary import INDEX, OBJECTS, ObjectClass

COLORABLE: tuple[ObjectClass, ...] = tuple(entry for entry in OBJECTS if entry.colors)
RELATION_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_RELATIONS = tuple(RELATION_OPPOSITE)


@dataclass(frozen=True, slots=True)
class Placement:
    """One object in a picture; `x`, `y` (its box's centre) and `size` (longer side) in shares of the side."""

    index: int
    color: str | None
    x: float
    y: float
    size: float


Spot = tuple[float, float, float]
"""x, y, size."""


def _alone(rng: np.random.Generator) -> list[Spot]:
    size = float(rng.uniform(0.26, 0.68))
    slack = 0.5 - size / 2
    x, y = 0.5 + rng.uniform(-1, 1, 2) * slack * 0.9
    return [(float(x), float(y), size)]


def _line(rng: np.random.Generator, count: int) -> list[Spot]:
    """Evenly spaced along an axis from 0 to 1; second coordinate 0.5, to be turned by the caller."""
    size = rng.uniform(0.72, 0.98) / (count + 0.12)
    size = min(float(size), 0.46) if count > 1 else float(size)
    step = min(1.0 / count, size * rng.uniform(1.06, 1.5))
    start = 0.5 - step * (count - 1) / 2 + rng.uniform(-1, 1) * max(0.0, 0.5 - step * count / 2)
    jitter = rng.uniform(-0.015, 0.015, (count, 2))
    across = 0.5 + rng.uniform(-0.17, 0.17)
    return [(start + step * k + jitter[k, 0], across + jitter[k, 1], size) for k in range(count)]


def side_by_side(rng: np.random.Generator, count: int) -> list[Spot]:
    """A row, left to right; a pair's two sizes differ."""
    spots = _line(rng, count)
    shrink = rng.uniform(0.8, 1, count) if count == 2 else np.ones(count)
    return [(x, y, size * float(k)) for (x, y, size), k in zip(spots, shrink, strict=True)]


def stacked(rng: np.random.Generator, count: int) -> list[Spot]:
    """A column, top to bottom."""
    return [(y, x, size) for x, y, size in side_by_side(rng, count)]


def _triangle(rng: np.random.Generator) -> list[Spot]:
    size = float(rng.uniform(0.27, 0.42))
    apart, high = size * rng.uniform(0.54, 0.62), size * rng.uniform(0.5, 0.6)
    x, y = 0.5 + rng.uniform(-0.06, 0.06, 2)
    flip = 1 if rng.random() < 0.75 else -1
    return [
        (x, y - high * flip, size),
        (x - apart, y + high * flip, size),
        (x + apart, y + high * flip, size),
    ]


def _grid(rng: np.random.Generator) -> list[Spot]:
    size = float(rng.uniform(0.24, 0.42))
    step = size * rng.uniform(0.53, 0.62)
    x, y = 0.5 + rng.uniform(-0.06, 0.06, 2)
    return [(x + a * step, y + b * step, size) for b in (-1, 1) for a in (-1, 1)]


def scattered(rng: np.random.Generator, count: int) -> list[Spot]:
    """Up to `count` spots that hardly overlap, anywhere."""
    spots: list[Spot] = []
    for _ in range(count * 12):
        size = float(rng.uniform(0.18, 0.45))
        x, y = (float(v) for v in rng.uniform(size * 0.45, 1 - size * 0.45, 2))
        if all(max(abs(x - a), abs(y - b)) > 0.46 * (size + s) for a, b, s in spots):
            spots.append((x, y, size))
        if len(spots) == count:
            break
    return spots


def group(rng: np.random.Generator, count: int) -> list[Spot]:
    """A layout for `count` equal objects: a row, a triangle, a 2 x 2 grid, a column, or scattered."""
    roll = rng.random()
    if count == 3 and roll < 0.35:
        return _triangle(rng)
    if count == 4 and roll < 0.6:
        return _grid(rng)
    if roll > 0.9:
        spots = scattered(rng, count)
        return spots if len(spots) == count else side_by_side(rng, count)
    return stacked(rng, count) if count == 2 and roll < 0.2 else side_by_side(rng, count)


def _pair(rng: np.random.Generator, among: tuple[ObjectClass, ...]) -> tuple[ObjectClass, ObjectClass]:
    first, second = rng.choice(len(among), 2, replace=False)
    return among[int(first)], among[int(second)]


def _colored(rng: np.random.Generator, entry: ObjectClass, avoid: str | None = None) -> Item:
    return Item(entry.name, str(rng.choice([c for c in entry.colors if c != avoid])))


def sample(rng: np.random.Generator, task: Task) -> tuple[Scene, list[Placement]]:
    """A random scene of a task and places for its objects."""
    if task in ("single", "colors"):
        among = COLORABLE if task == "colors" else OBJECTS
        entry = among[int(rng.integers(len(among)))]
        items: tuple[Item, ...] = (_colored(rng, entry) if task == "colors" else Item(entry.name),)
        return Scene(task, items), _place(items, _alone(rng))
    if task == "count":
        items = (Item(OBJECTS[int(rng.integers(len(OBJECTS)))].name),) * int(rng.integers(2, 5))
        return Scene(task, items), _place(items, group(rng, len(items)))
    return _sample_pair(rng, task)


def _sample_pair(rng: np.random.Generator, task: Task) -> tuple[Scene, list[Placement]]:
    first, second = _pair(rng, COLORABLE if task == "attribution" else OBJECTS)
    items = (Item(first.name), Item(second.name))
    if task == "attribution":
        one = _colored(rng, first)
        items = (one, _colored(rng, second, one.color))
    relation = str(rng.choice(_RELATIONS)) if task == "position" else None
    upright = relation in ("above", "below") or (relation is None and rng.random() < 0.35)
    spots = stacked(rng, 2) if upright else side_by_side(rng, 2)
    if relation in ("right of", "below") or (relation is None and rng.random() < 0.5):
        spots = spots[::-1]
    return Scene(task, items, relation), _place(items, spots)


def _place(items: tuple[Item, ...], spots: list[Spot]) -> list[Placement]:
    return [Placement(INDEX[i.noun], i.color, *spot) for i, spot in zip(items, spots, strict=True)]
