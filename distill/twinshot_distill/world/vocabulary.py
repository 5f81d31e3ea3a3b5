"""The miniature's world in words: its objects, colours and scenes.

One table each. Every other module of the world (sprites, captions, layouts) reads these names,
and so does the verifier; nothing here depends on torch or on an image.
"""

from __future__ import annotations

from dataclasses import dataclass

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 44),
    "orange": (247, 129, 28),
    "yellow": (247, 206, 30),
    "green": (52, 165, 66),
    "blue": (38, 104, 222),
    "purple": (132, 62, 196),
    "pink": (247, 128, 178),
    "brown": (128, 80, 46),
    "black": (46, 44, 48),
    "white": (240, 240, 242),
}
"""Colour name -> sRGB of the recoloured sprite's average."""

SCENES: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "on a meadow", "on the grass"),
    "beach": ("on a beach", "on the beach", "at the beach"),
    "desert": ("in the desert", "in a desert"),
    "snow": ("in the snow", "on snow", "in a snowy landscape"),
    "night": ("at night", "under the stars", "in the night"),
    "space": ("in space", "in outer space"),
    "sunset": ("at sunset", "in front of a sunset"),
    "underwater": ("under water", "underwater", "under the sea"),
    "city": ("in a city", "in the city", "in front of a city"),
}
"""Scene name -> the phrases that ask for it; the first is the plainest."""

BACKGROUNDS: tuple[str, ...] = (*COLORS, *SCENES)
"""Everything that can stand behind the objects: ten plain studio colours and nine scenes."""


@dataclass(frozen=True, slots=True)
class ObjectClass:
    """One thing the miniature can draw.

    `code` is the emoji's code point (the sprite's source file); `colors` are the colour names it may
    be recoloured to, empty where recolouring spoils it.
    """

    name: str
    plural: str
    code: str
    synonyms: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()


def _object(name: str, code: str, colors: str = "", synonyms: str = "", plural: str = "") -> ObjectClass:
    """A table row; `colors` is "*" for all ten, "*-a-b" for all but a and b, or a list of names."""
    first, *rest = colors.split("-")
    chosen = [c for c in COLORS if c not in rest] if first == "*" else colors.split()
    return ObjectClass(
        name, plural or f"{name}s", code, tuple(s for s in synonyms.split(",") if s), tuple(chosen)
    )


OBJECTS: tuple[ObjectClass, ...] = (
    # animals
    _object("dog", "1f415", synonyms="puppy"),
    _object("cat", "1f408", "*", synonyms="kitten"),
    _object("horse", "1f40e"),
    _object("cow", "1f404"),
    _object("pig", "1f416", "*"),
    _object("sheep", "1f411", plural="sheep"),
    _object("rabbit", "1f407", synonyms="bunny"),
    _object("bear", "1f43b", "*"),
    _object("panda", "1f43c"),
    _object("lion", "1f981"),
    _object("tiger", "1f405"),
    _object("elephant", "1f418"),
    _object("giraffe", "1f992"),
    _object("zebra", "1f993"),
    _object("fox", "1f98a", plural="foxes"),
    _object("turtle", "1f422", synonyms="tortoise"),
    _object("penguin", "1f427"),
    _object("bird", "1f426", "*"),
    _object("butterfly", "1f98b", "*-black-brown", plural="butterflies"),
    _object("fish", "1f41f", "*", plural="fish"),
    _object("whale", "1f433", "*"),
    _object("octopus", "1f419", "red orange pink purple blue", plural="octopuses"),
    _object("crab", "1f980", "*"),
    _object("unicorn", "1f984"),
    _object("dinosaur", "1f996", "*", synonyms="t-rex"),
    # vehicles and the street
    _object("car", "1f697", "*", synonyms="automobile"),
    _object("bus", "1f68c", plural="buses"),
    _object("truck", "1f692", synonyms="fire truck,fire engine"),
    _object("tractor", "1f69c", "*"),
    _object("motorcycle", "1f3cd", "*", synonyms="motorbike"),
    _object("bicycle", "1f6b2", "*", synonyms="bike"),
    _object("train", "1f682", synonyms="locomotive"),
    _object("airplane", "2708", "*", synonyms="plane"),
    _object("rocket", "1f680", synonyms="spaceship"),
    _object("boat", "26f5", synonyms="sailboat"),
    _object("skateboard", "1f6f9", "*"),
    _object("traffic light", "1f6a6"),
    _object("stop sign", "1f6d1"),
    # food
    _object("apple", "1f34e", "*"),
    _object("banana", "1f34c", "*"),
    _object("orange", "1f34a", synonyms="tangerine"),
    _object("pear", "1f350", "*"),
    _object("strawberry", "1f353", plural="strawberries"),
    _object("pineapple", "1f34d"),
    _object("carrot", "1f955"),
    _object("broccoli", "1f966", plural="broccolis"),
    _object("mushroom", "1f344", "*"),
    _object("hamburger", "1f354", synonyms="burger"),
    _object("pizza", "1f355"),
    _object("hot dog", "1f32d"),
    _object("sandwich", "1f96a", plural="sandwiches"),
    _object("donut", "1f369", "*", synonyms="doughnut"),
    _object("cake", "1f382", synonyms="birthday cake"),
    _object("cupcake", "1f9c1"),
    _object("ice cream", "1f366", synonyms="ice cream cone"),
    # kitchen and home
    _object("cup", "2615", synonyms="mug,cup of coffee"),
    _object("teapot", "1fad6", "*"),
    _object("wine glass", "1f377", plural="wine glasses", synonyms="glass of wine"),
    _object("bowl", "1f963", "*"),
    _object("spoon", "1f944"),
    _object("knife", "1f52a", plural="knives", synonyms="kitchen knife"),
    _object("chair", "1fa91", "*"),
    _object("couch", "1f6cb", "*", plural="couches", synonyms="sofa"),
    _object("bed", "1f6cf", "*"),
    _object("toilet", "1f6bd"),
    _object("potted plant", "1fab4", synonyms="houseplant"),
    _object("clock", "23f0", "*", synonyms="alarm clock"),
    _object("vase", "1f3fa", "*"),
    # play and clothes
    _object("balloon", "1f388", "*"),
    _object("soccer ball", "26bd", "*-white", synonyms="football,sports ball"),
    _object("basketball", "1f3c0", "*"),
    _object("tennis racket", "1f3be", "*", synonyms="racket"),
    _object("frisbee", "1f94f", "*"),
    _object("kite", "1fa81"),
    _object("teddy bear", "1f9f8", "*", synonyms="teddy"),
    _object("crown", "1f451", "*"),
    _object("handbag", "1f45c", "*", synonyms="purse"),
    _object("backpack", "1f392", "*"),
    _object("suitcase", "1f9f3", "*", synonyms="luggage"),
    _object("umbrella", "2602", "*"),
    _object("t-shirt", "1f455", "*", synonyms="shirt"),
    _object("dress", "1f457", "*", plural="dresses"),
    # things
    _object("scissors", "2702", "*", plural="scissors"),
    _object("key", "1f511", "*"),
    _object("toothbrush", "1faa5", "*", plural="toothbrushes"),
    _object("bucket", "1faa3", "*"),
    _object("book", "1f4d5", "*"),
    _object("laptop", "1f4bb", synonyms="notebook computer"),
    _object("computer mouse", "1f5b1", plural="computer mice"),
    _object("keyboard", "2328", synonyms="computer keyboard"),
    _object("tv", "1f4fa", synonyms="television"),
    _object("phone", "1f4f1", synonyms="cell phone,mobile phone"),
    _object("camera", "1f4f7"),
    _object("guitar", "1f3b8", "*"),
    _object("pencil", "270f", "*"),
    # houses, plants and the rest
    _object("house", "1f3e0"),
    _object("tent", "26fa", "*"),
    _object("tree", "1f333", "*"),
    _object("cactus", "1f335", plural="cacti"),
    _object("sunflower", "1f33b"),
    _object("star", "2b50", "*"),
    _object("snowman", "26c4", plural="snowmen"),
    _object("pumpkin", "1f383", "*", synonyms="jack-o-lantern"),
    _object("heart", "2764", "*"),
    _object("robot", "1f916"),
)
"""Every object of the world; a class's index here is its index in the atlas and in the verifier."""

INDEX: dict[str, int] = {entry.name: index for index, entry in enumerate(OBJECTS)}
"""Object name -> index in `OBJECTS`."""
