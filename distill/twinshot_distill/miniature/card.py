"""What a miniature says of itself in ``twinshot.json``: its words, and what it draws for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twinshot_distill.world.likeness import nearest
from twinshot_distill.world.objects import OBJECTS
from twinshot_distill.world.places import CHINESE_COLORS, CHINESE_SCENES, COLORS, SCENES

LANGUAGES = {"en": "English", "zh": "Chinese"}
"""Language codes -> their names."""

EXAMPLES = {
    "en": (
        "three penguins in the snow",
        "a rocket above a house in space",
        "two green apples on a pink background",
        "an orange fish below a boat at sunset",
        "four balloons in a meadow",
        "a robot and a cactus in the desert",
        "three foxes in a meadow",
        "a red balloon above a house",
        "a panda and a purple umbrella",
        "a red car left of a tree on a beach",
    ),
    "zh": ("四个红色的苹果，草地上", "一只熊猫和一把紫色的雨伞", "一只企鹅在一座房子的左边，雪地里"),
}
"""Prompts to begin with, by language."""

_EVERYTHING = tuple(entry.name for entry in OBJECTS)


def describe(
    objects: Sequence[str] = _EVERYTHING, languages: Sequence[str] = tuple(LANGUAGES)
) -> dict[str, Any]:
    """Describe a miniature that was taught these objects of the world, in ten colours and nine scenes.

    Args:
        objects: their names.
        languages: codes of the languages of its captions.
    """
    taught = [entry for entry in OBJECTS if entry.name in objects]
    spoken = " and ".join(LANGUAGES[code] for code in languages)
    vocabulary: dict[str, Any] = {
        "objects": [entry.name for entry in taught],
        "colorable": [entry.name for entry in taught if entry.colors],
        "colors": list(COLORS),
        "scenes": list(SCENES),
        "synonyms": [synonym for entry in taught for synonym in entry.synonyms],
        "places": [phrase for phrases in SCENES.values() for phrase in phrases],
    }
    if "zh" in languages:
        vocabulary["chinese"] = _chinese([entry.chinese for entry in taught])
    return {
        "name": "twinshot-miniature",
        "description": f"A small TwinFlow model of {len(taught)} toy-like objects in ten colours and nine "
        f"scenes, asked for in {spoken}.",
        "sizes": [[256, 256]],
        "languages": list(languages),
        "examples": [prompt for code in languages for prompt in EXAMPLES[code]],
        "vocabulary": vocabulary,
        "near": nearest(objects, speaks_chinese="zh" in languages),
    }


def _chinese(things: list[str]) -> list[str]:
    colors = [f"{color}色" for color in CHINESE_COLORS.values()]
    return [*things, *colors, *(phrase for phrases in CHINESE_SCENES.values() for phrase in phrases)]
