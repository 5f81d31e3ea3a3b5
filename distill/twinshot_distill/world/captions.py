"""Scenes in words: GenEval's plain form, and the ways people say the same thing.

`plain_caption` gives the one canonical sentence ("a photo of a red car left of a tree on a beach").
`caption` draws a paraphrase: synonyms, word order, digits, case, small typos, polite wrappings, and
with `wordy` a long-winded version that needs the second text bucket.
"""

from __future__ import annotations

from random import Random

from twinshot_distill.world.chinese import chinese_caption
from twinshot_distill.world.nouns import plural_of, with_article
from twinshot_distill.world.scenes import Item, Scene
from twinshot_distill.world.vocabulary import COLORS, INDEX, OBJECTS, SCENES

CHINESE_SHARE = 0.25
_NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
_RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
}
_JOINS = ("and", "and", "and", "with", "next to", "beside")
_OPENINGS = (
    *("",) * 8,
    *("a photo of ",) * 5,
    "a picture of ",
    "an image of ",
    "an illustration of ",
    "a render of ",
    "draw ",
    "show me ",
    "please draw ",
)
_WORDY_OPENINGS = (
    "i would like to have a beautiful picture that shows ",
    "please make me a clean, colourful image in which one can see ",
    "could you create a nice and friendly little illustration of ",
    "a detailed, high quality 3d render with soft light that shows ",
    "my daughter asked for a drawing, so please draw ",
)
_WORDY_ENDINGS = (
    ", with soft shadows, bright colours and a lot of detail",
    ", in the style of a shiny toy, sharp and simple, nothing else in the picture",
    ", please keep it simple, clean and bright, thank you very much",
    ", high quality, detailed, smooth shading, centered, best possible rendering",
)


def _noun(rng: Random | None, name: str, *, near: bool) -> str:
    """The name, now and then a synonym, and seldom the word for a thing that is best drawn as this one."""
    entry = OBJECTS[INDEX[name]]
    roll = 1.0 if rng is None else rng.random()
    if rng and near and entry.near and roll < 0.08:
        return rng.choice(entry.near)
    if rng and entry.synonyms and roll < 0.26:
        return rng.choice(entry.synonyms)
    return name


def _plural(rng: Random | None, name: str, *, near: bool) -> str:
    noun = _noun(rng, name, near=near)
    return OBJECTS[INDEX[name]].plural if noun == name else plural_of(noun)


def _thing(rng: Random | None, item: Item, *, near: bool) -> str:
    noun = _noun(rng, item.noun, near=near)
    if item.noun == "scissors":
        pair = f"a pair of {item.color + ' ' if item.color else ''}scissors"
        return pair if rng and rng.random() < 0.3 else with_article(f"{item.color or ''} scissors".strip())
    phrase = f"{item.color} {noun}" if item.color else noun
    return phrase if _is_plural(item.noun, noun) else with_article(phrase)


def _is_plural(name: str, noun: str) -> bool:
    """Whether one of it is called by a plural, such as "jeans"."""
    entry = OBJECTS[INDEX[name]]
    return noun.endswith("s") and entry.plural == entry.name


def _counted(rng: Random | None, scene: Scene, *, near: bool) -> str:
    item, number = scene.items[0], len(scene.items)
    words = _NUMBERS[number]
    word = words[1] if rng and rng.random() < 0.25 else words[0]
    return " ".join(filter(None, (word, item.color, _plural(rng, item.noun, near=near))))


def _core(rng: Random | None, scene: Scene, *, near: bool = False) -> str:
    """The objects of a scene, without its background."""
    if scene.task == "count":
        return _counted(rng, scene, near=near)
    things = [_thing(rng, item, near=near) for item in scene.items]
    if len(things) == 1:
        return things[0]
    if scene.relation is None:
        return f"{things[0]} {rng.choice(_JOINS) if rng else 'and'} {things[1]}"
    phrases = _RELATION_PHRASES[scene.relation]
    phrase = phrases[0] if rng is None or rng.random() < 0.5 else rng.choice(phrases)
    return f"{things[0]} {phrase} {things[1]}"


def _where(rng: Random | None, background: str) -> str:
    """The words for a background: "on a blue background", "in space"."""
    if background in SCENES:
        phrases = SCENES[background]
        return phrases[0] if rng is None or rng.random() < 0.6 else rng.choice(phrases)
    plain = f"on {with_article(background)} background"
    if background not in COLORS:
        raise ValueError(f"unknown background {background!r}; choose a colour or one of {', '.join(SCENES)}")
    if rng is None or rng.random() < 0.6:
        return plain
    kind = rng.choice(
        ("in front of {} background", "against {} wall", "with {} background", "against {} backdrop")
    )
    return kind.format(with_article(background))


def plain_caption(scene: Scene) -> str:
    """The canonical caption, as GenEval words its prompts: "a photo of two dogs on a beach"."""
    words = f"a photo of {_core(None, scene)}"
    return words if scene.background is None else f"{words} {_where(None, scene.background)}"


def _typo(rng: Random, text: str) -> str:
    """One letter dropped or two swapped, somewhere inside."""
    at = rng.randrange(1, max(2, len(text) - 2))
    return (
        text[:at] + text[at + 1 :]
        if rng.random() < 0.5
        else text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    )


def _surface(rng: Random, text: str) -> str:
    """Case, full stop and typos."""
    if rng.random() < 0.02:
        text = _typo(rng, text)
    roll = rng.random()
    if roll < 0.15:
        text = text[0].upper() + text[1:]
    elif roll < 0.17:
        text = text.upper()
    return text + "." if rng.random() < 0.12 else text


def caption(rng: Random, scene: Scene, *, wordy: bool = False) -> str:
    """A paraphrase of a scene, one in four of them in Chinese; `wordy` wraps it in words that add nothing."""
    if rng.random() < CHINESE_SHARE:
        return chinese_caption(rng, scene, wordy=wordy)
    return english_caption(rng, scene, wordy=wordy, near=True)


def english_caption(rng: Random, scene: Scene, *, wordy: bool = False, near: bool = False) -> str:
    """A paraphrase in English; `near` allows words for things that are best drawn as one of the scene."""
    core = _core(rng, scene, near=near)
    if scene.background is not None:
        where = _where(rng, scene.background)
        if not wordy and rng.random() < 0.06:
            return _surface(rng, f"{where}, {core}")
        core = f"{core} {where}"
    if wordy:
        return _surface(rng, rng.choice(_WORDY_OPENINGS) + core + rng.choice(_WORDY_ENDINGS))
    return _surface(rng, rng.choice(_OPENINGS) + core)
