"""The miniature's world in words: its objects, colours and scenes.

One table each, in :mod:`~twinshot_distill.world.objects` and :mod:`~twinshot_distill.world.places`. Every
other module of the world (sprites, captions, layouts) reads these names, and so do the verifiers; nothing
here depends on torch or on an image.
"""

from twinshot_distill.world.objects import INDEX, OBJECTS, ObjectClass
from twinshot_distill.world.places import BACKGROUNDS, CHINESE_COLORS, CHINESE_SCENES, COLORS, SCENES

__all__ = [
    "BACKGROUNDS",
    "CHINESE_COLORS",
    "CHINESE_SCENES",
    "COLORS",
    "INDEX",
    "OBJECTS",
    "SCENES",
    "ObjectClass",
]
