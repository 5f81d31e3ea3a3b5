"""Scenes in Chinese: "一辆红色的汽车在一棵树的左边，沙滩上".

Nouns do not inflect, so a caption is measure words, colours and a few set phrases in order. As in
:mod:`~twinshot_distill.world.captions`, no generator means the one plain sentence, a generator a paraphrase.
"""

from __future__ import annotations

from random import Random

from twinshot_distill.world.scenes import Item, Scene
from twinshot_distill.world.vocabulary import CHINESE_COLORS, CHINESE_SCENES, INDEX, OBJECTS

_NUMBERS = {2: ("两", "2"), 3: ("三", "3"), 4: ("四", "4")}
_RELATIONS = {
    "left of": ("在{}的左边", "在{}左侧", "位于{}的左面"),
    "right of": ("在{}的右边", "在{}右侧", "位于{}的右面"),
    "above": ("在{}的上面", "在{}上方"),
    "below": ("在{}的下面", "在{}下方"),
}
_JOINS = ("和", "和", "与", "跟")
_OPENINGS = ("", "", "", "", "图片：", "照片：", "画", "请画", "给我看")
_WORDY_OPENINGS = ("我想要一张漂亮的图片，里面有", "请帮我画一张干净明亮的插图，上面是")
_WORDY_ENDINGS = ("，柔和的光线，鲜艳的颜色", "，高质量，细节丰富", "，简单干净，谢谢")


def _thing(rng: Random | None, item: Item, number: str = "一") -> str:
    entry = OBJECTS[INDEX[item.noun]]
    noun = entry.chinese
    if item.color is not None:
        color = CHINESE_COLORS[item.color]
        short = rng is not None and rng.random() < 0.4
        noun = f"{color}{noun}" if short else f"{color}色的{noun}"
    measure = "个" if rng is not None and rng.random() < 0.15 else entry.measure
    return f"{number}{measure}{noun}"


def _core(rng: Random | None, scene: Scene) -> str:
    if scene.task == "count":
        words = _NUMBERS[len(scene.items)]
        number = words[1] if rng is not None and rng.random() < 0.25 else words[0]
        return _thing(rng, scene.items[0], number)
    things = [_thing(rng, item) for item in scene.items]
    if len(things) == 1:
        return things[0]
    if scene.relation is None:
        return f"{things[0]}{rng.choice(_JOINS) if rng else '和'}{things[1]}"
    phrases = _RELATIONS[scene.relation]
    phrase = rng.choice(phrases) if rng is not None and rng.random() < 0.5 else phrases[0]
    return things[0] + phrase.format(things[1])


def _where(rng: Random | None, background: str) -> str:
    if background in CHINESE_SCENES:
        phrases = CHINESE_SCENES[background]
        return phrases[0] if rng is None or rng.random() < 0.6 else rng.choice(phrases)
    color = CHINESE_COLORS[background]
    if rng is None or rng.random() < 0.6:
        return f"{color}色背景"
    return rng.choice(("{}色的背景上", "{}色背景前", "{}色墙壁前")).format(color)


def chinese_caption(rng: Random | None, scene: Scene, *, wordy: bool = False) -> str:
    """Describe a scene in Chinese; ``wordy`` wraps it in words that add nothing."""
    core = _core(rng, scene)
    if scene.background is not None:
        where = _where(rng, scene.background)
        first = rng is not None and not wordy and rng.random() < 0.4
        core = f"{where}，{core}" if first else f"{core}，{where}"
    if rng is None:
        return core
    if wordy:
        return rng.choice(_WORDY_OPENINGS) + core + rng.choice(_WORDY_ENDINGS)
    return rng.choice(_OPENINGS) + core + ("。" if rng.random() < 0.2 else "")
