"""Held-out pictures with a true scene and a hard negative each: one thing changed in the scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from twinshot_distill.verifier.bank import SpriteBank
from twinshot_distill.verifier.composer import BackgroundPool, compose
from twinshot_distill.verifier.layouts import COLORABLE, RELATION_OPPOSITE, sample
from twinshot_distill.world.scenes import Item, Scene, Task
from twinshot_distill.world.vocabulary import INDEX, OBJECTS

PICTURE_SIDE = 256
_POOL_SIDE = 320
_BACKGROUNDS = 150
_WILD = 0.15


@dataclass(frozen=True, slots=True)
class Cases:
    """Pictures uint8 [n, 256, 256, 3] of one task, what they show, and what they do not."""

    pictures: Tensor
    scenes: list[Scene]
    negatives: list[Scene]


def _other_object(rng: np.random.Generator, scene: Scene) -> Scene:
    """One object replaced by one that is not in the picture."""
    taken = {item.noun for item in scene.items}
    among = [entry.name for entry in (COLORABLE if scene.task == "attribution" else OBJECTS)]
    noun = str(rng.choice([name for name in among if name not in taken]))
    which = int(rng.integers(len(scene.items)))
    items = [replace(item, noun=noun) if k == which else item for k, item in enumerate(scene.items)]
    return replace(scene, items=tuple(items))


def _other_color(rng: np.random.Generator, scene: Scene) -> Scene:
    item = scene.items[0]
    others = [c for c in OBJECTS[INDEX[item.noun]].colors if c != item.color]
    return replace(scene, items=(Item(item.noun, str(rng.choice(others))), *scene.items[1:]))


def _swapped_colors(_rng: np.random.Generator, scene: Scene) -> Scene:
    first, second = scene.items
    return replace(scene, items=(Item(first.noun, second.color), Item(second.noun, first.color)))


def _other_count(rng: np.random.Generator, scene: Scene) -> Scene:
    count = len(scene.items)
    changed = count + 1 if count == 2 or (count == 3 and rng.random() < 0.5) else count - 1
    return replace(scene, items=scene.items[:1] * changed)


def _opposite_side(_rng: np.random.Generator, scene: Scene) -> Scene:
    return replace(scene, relation=RELATION_OPPOSITE[str(scene.relation)])


_CHANGES: dict[Task, tuple[Callable[[np.random.Generator, Scene], Scene], ...]] = {
    "single": (_other_object,),
    "two": (_other_object,),
    "count": (_other_count,),
    "colors": (_other_color,),
    "position": (_opposite_side,),
    "attribution": (_swapped_colors, _swapped_colors, _other_color, _other_object),
}


def make_cases(task: Task, count: int, seed: int, erased: float = 0.0) -> Cases:
    """`count` pictures of a task; `seed` decides scenes and backgrounds, `erased` as in `compose`."""
    rng = np.random.default_rng([seed, *task.encode()])
    pool, bank = BackgroundPool(seed + 1, _BACKGROUNDS, _POOL_SIDE, _WILD), SpriteBank()
    pictures, scenes, negatives = [], [], []
    for k in range(count):
        scene, places = sample(rng, task)
        pictures.append(compose(rng, bank, pool.draw(rng, PICTURE_SIDE), places, erased))
        scenes.append(scene)
        negatives.append(_CHANGES[task][k % len(_CHANGES[task])](rng, scene))
    return Cases(torch.from_numpy(np.stack(pictures)), scenes, negatives)
