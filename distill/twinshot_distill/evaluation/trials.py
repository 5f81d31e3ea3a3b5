"""What a checkpoint is asked for: scenes of what it was taught, in its languages, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from twinshot_distill.world.captions import english_caption
from twinshot_distill.world.chinese import chinese_caption
from twinshot_distill.world.scenes import Scene, Split, sample_scene

_MOST_MISSES = 50_000


@dataclass(frozen=True, slots=True)
class Trial:
    """One picture to be asked for and judged."""

    scene: Scene
    prompt: str
    seed: int


LANGUAGES: dict[str, Callable[[Random, Scene], str]] = {"en": english_caption, "zh": chinese_caption}
"""Language codes of prompts -> how a scene is asked for."""


def trials(
    task: Any,
    split: Split,
    count: int,
    vocabulary: Mapping[str, Any] | None = None,
    language: str = "en",
) -> list[Trial]:
    """Prompts and seeds for a checkpoint, the same every time, and the same scenes in every language.

    Args:
        task: one of the six.
        split: combinations that were trained, or not.
        count: of prompts.
        vocabulary: the checkpoint's, if it does not know the whole world.
        language: of the prompts, `en` or `zh`.

    Raises:
        ValueError: the vocabulary has nothing that a scene could be made of.
    """
    rng = Random(f"evaluate-{task}-{split}")
    scenes = list(islice(_scenes(rng, task, split, vocabulary), count))
    if len(scenes) < count:
        raise ValueError(f"no {split} scenes of the task {task!r} can be made of the checkpoint's vocabulary")
    asked = Random(f"evaluate-{task}-{split}-prompts")
    return [Trial(scene, LANGUAGES[language](asked, scene), rng.getrandbits(32)) for scene in scenes]


def _scenes(rng: Random, task: Any, split: Split, vocabulary: Mapping[str, Any] | None) -> Iterator[Scene]:
    """Scenes of what a vocabulary names; ends when that is hopeless."""
    misses = 0
    while misses < _MOST_MISSES:
        scene = sample_scene(rng, task, split)
        if vocabulary is None or is_known(scene, vocabulary):
            misses = 0
            yield scene
        misses += 1


def is_known(scene: Scene, vocabulary: Mapping[str, Any]) -> bool:
    """Whether a vocabulary names the objects, colours and the background of a scene."""
    objects, colors, scenes = (vocabulary.get(kind, ()) for kind in ("objects", "colors", "scenes"))
    painted = {item.color for item in scene.items} - {None}
    return (
        {item.noun for item in scene.items} <= set(objects)
        and painted <= set(colors)
        and (scene.background is None or scene.background in {*colors, *scenes})
    )


def languages_of(vocabulary: Mapping[str, Any]) -> tuple[str, ...]:
    """The languages that a checkpoint with this vocabulary can be asked in."""
    return tuple(LANGUAGES) if "chinese" in vocabulary else ("en",)
