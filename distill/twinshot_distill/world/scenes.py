"""What a picture shows: scenes of GenEval's six tasks, drawn at random, with combinations held out.

A scene is a specification, not a picture: `captions` puts it into words, `layout` gives each object
its place and `composer` draws it. Held-out combinations (10 % of object pairs, of object-colour pairs)
never occur in training, so a score on them tests composition and not memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from twinshot_distill.world.vocabulary import COLORS, INDEX, OBJECTS, SCENES, ObjectClass

Task = Literal["single", "two", "count", "colors", "position", "attribution"]
Split = Literal["train", "seen", "unseen"]

TASKS: tuple[Task, ...] = ("single", "two", "count", "colors", "position", "attribution")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
HELD_OUT_PERCENT = 10
TRAINING_WEIGHTS = (1.0, 2.0, 1.5, 1.0, 1.5, 2.0)

_COLORED = tuple(entry for entry in OBJECTS if entry.colors)


@dataclass(frozen=True, slots=True)
class Item:
    """One object of a scene; `color` None means its own colours."""

    noun: str
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's specification.

    `relation` reads "items[0] relation items[1]" and is set in the position task alone; `background`
    is a name of `BACKGROUNDS`, or None where the caption leaves it open.
    """

    task: Task
    items: tuple[Item, ...]
    relation: str | None = None
    background: str | None = None


def held_out(*words: str) -> bool:
    """Whether an unordered combination of words is kept from training: a stable hash, not a list."""
    digest = hashlib.sha256("|".join(sorted(words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def is_unseen(scene: Scene) -> bool:
    """Whether a scene contains a combination that training never shows."""
    nouns = sorted({item.noun for item in scene.items})
    if len(nouns) == 2 and held_out(*nouns):
        return True
    if scene.task == "count" and held_out(nouns[0], str(len(scene.items))):
        return True
    return any(item.color is not None and held_out(item.noun, item.color) for item in scene.items)


def _background(rng: Random, items: Sequence[Item]) -> str | None:
    """A plain colour none of the objects has, a scene, or nothing."""
    roll = rng.random()
    if roll < 0.2:
        return None
    if roll < 0.6:
        return rng.choice(tuple(SCENES))
    taken = {item.color for item in items}
    return rng.choice([color for color in COLORS if color not in taken])


def _pair(rng: Random, classes: Sequence[ObjectClass]) -> tuple[ObjectClass, ObjectClass]:
    first, second = rng.sample(classes, 2)
    return first, second


def _paint(rng: Random, entry: ObjectClass, avoid: str | None = None) -> Item:
    return Item(entry.name, rng.choice([color for color in entry.colors if color != avoid]))


def _draw(rng: Random, task: Task) -> tuple[tuple[Item, ...], str | None]:
    """Items and relation of a random scene of a task."""
    if task == "single":
        return (Item(rng.choice(OBJECTS).name),), None
    if task == "count":
        return (Item(rng.choice(OBJECTS).name),) * rng.randint(2, 4), None
    if task == "colors":
        return (_paint(rng, rng.choice(_COLORED)),), None
    if task == "attribution":
        first, second = _pair(rng, _COLORED)
        item = _paint(rng, first)
        return (item, _paint(rng, second, avoid=item.color)), None
    first, second = _pair(rng, OBJECTS)
    relation = rng.choice(RELATIONS) if task == "position" else None
    return (Item(first.name), Item(second.name)), relation


def sample_scene(rng: Random, task: Task, split: Split) -> Scene:
    """A random scene: `train` and `seen` avoid held-out combinations, `unseen` has at least one.

    Single objects have no combination to hold out; for them every split draws alike.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    while True:
        items, relation = _draw(rng, task)
        scene = Scene(task, items, relation, _background(rng, items))
        if task == "single" or is_unseen(scene) == (split == "unseen"):
            return scene


def sample_training_scene(rng: Random) -> Scene:
    """A scene to learn from: the six tasks, the hard ones more often, and free mixtures of them.

    A third of the counts, pairs and positions also name colours ("two red cars", "a dog left of a
    blue chair"), which no task of the evaluation asks for but people do.
    """
    task = rng.choices(TASKS, TRAINING_WEIGHTS)[0]
    scene = sample_scene(rng, task, "train")
    if task not in ("two", "count", "position") or rng.random() > 1 / 3:
        return scene
    painted = _paint_some(rng, scene)
    return scene if is_unseen(painted) else painted


def _paint_some(rng: Random, scene: Scene) -> Scene:
    """The scene with colours on the objects that can take one, none of them the background's."""
    if scene.task == "count":
        entry = OBJECTS[INDEX[scene.items[0].noun]]
        item = _paint(rng, entry, scene.background) if entry.colors else scene.items[0]
        return replace(scene, items=(item,) * len(scene.items))
    items = []
    for item in scene.items:
        entry = OBJECTS[INDEX[item.noun]]
        paint = bool(entry.colors) and rng.random() < 0.7
        items.append(_paint(rng, entry, scene.background) if paint else item)
    return replace(scene, items=tuple(items))
