"""GenEval's rules (Ghosh et al. 2023, arXiv:2310.11513) on detections: does a picture show a scene?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from twinshot_distill.verifier.detections import Detection
from twinshot_distill.verifier.model import NATURAL
from twinshot_distill.world.scenes import TASKS, Scene

MARGIN = 0.1
"""How far apart, in shares of the side, two centres must be to stand in a relation."""

_AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_COUNTS = {"single": 1, "colors": 1, "two": 2, "position": 2, "attribution": 2}
_COLORED = ("colors", "attribution")


def validate(scene: Scene, classes: Sequence[str]) -> None:
    """Raise ValueError where a scene cannot be judged: unknown task, noun or relation, wrong items."""
    if scene.task not in TASKS:
        raise ValueError(f"unknown task {scene.task!r}; choose one of {', '.join(TASKS)}")
    for item in scene.items:
        if item.noun not in classes:
            raise ValueError(f"the verifier does not know {item.noun!r}; it knows {', '.join(classes)}")
    wanted = _COUNTS.get(scene.task)
    if not scene.items or (wanted is not None and len(scene.items) != wanted):
        raise ValueError(f"a {scene.task!r} scene has {wanted or 'some'} items, not {len(scene.items)}")
    if scene.task == "position" and scene.relation not in _AXES:
        raise ValueError(f"unknown relation {scene.relation!r}; choose one of {', '.join(_AXES)}")
    if scene.task == "count" and len({item.noun for item in scene.items}) != 1:
        raise ValueError(f"a 'count' scene has equal items, not {[i.noun for i in scene.items]}")
    if scene.task in _COLORED and any(item.color is None for item in scene.items):
        raise ValueError(f"every item of a {scene.task!r} scene has a colour: {scene.items}")


def has_color(found: Detection, color: str, twins: Mapping[str, str]) -> bool:
    """Whether a detection's colour answer is `color`; a natural drawing may be its twin's colour."""
    return found.color == color or (found.color == NATURAL and twins.get(found.noun) == color)


def stands(first: Detection, second: Detection, relation: str) -> bool:
    """Whether `first` stands in the relation to `second`: along the axis by the margin, and mostly."""
    dx, dy = first.x - second.x, first.y - second.y
    along_x, along_y = _AXES[relation]
    along = dx * along_x + dy * along_y
    across = abs(dy) if along_x else abs(dx)
    return along >= MARGIN and along >= across


def holds(scene: Scene, found: Sequence[Detection], twins: Mapping[str, str]) -> bool:
    """Whether detections above the threshold, best first, show a valid scene."""
    present = Counter(d.noun for d in found)
    wanted = Counter(item.noun for item in scene.items)
    if scene.task == "count":
        return all(present[noun] == n for noun, n in wanted.items())
    if any(present[noun] < n for noun, n in wanted.items()):
        return False
    if scene.task in _COLORED:
        return all(_colored(item.noun, str(item.color), found, twins) for item in scene.items)
    if scene.task == "position":
        first, second = (next(d for d in found if d.noun == item.noun) for item in scene.items)
        return stands(first, second, str(scene.relation))
    return True


def _colored(noun: str, color: str, found: Sequence[Detection], twins: Mapping[str, str]) -> bool:
    return any(d.noun == noun and has_color(d, color, twins) for d in found)
