"""The verifier's own composer: sprites and shadows on a background, with labels for the detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from twinshot_distill.verifier.backgrounds import background, random_name
from twinshot_distill.verifier.bank import SpriteBank
from twinshot_distill.verifier.faults import alpha_of, erase, half_plane, spoil, with_alpha
from twinshot_distill.verifier.layouts import Placement, sample, scattered
from twinshot_distill.verifier.model import COLOR_NAMES, NATURAL
from twinshot_distill.world.scenes import Task
from twinshot_distill.world.vocabulary import OBJECTS

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
MAX_OBJECTS = 5
LABEL_FIELDS = 5
"""Per object: class index (-1 where there is none), colour index, x, y, size."""

_TASKS: tuple[Task, ...] = ("single", "colors", "two", "attribution", "count", "count")


class BackgroundPool:
    """Backgrounds drawn once and used many times; a pool's seed decides what is in it."""

    def __init__(self, seed: int, count: int, side: int, wild: float) -> None:
        rng = np.random.default_rng(seed)
        self._pictures = [background(rng, side, random_name(rng, wild)) for _ in range(count)]

    def draw(self, rng: np.random.Generator, side: int) -> Pixels:
        """A random part of a random background, perhaps mirrored, uint8 [side, side, 3]."""
        whole = self._pictures[int(rng.integers(len(self._pictures)))]
        extent = len(whole) * rng.uniform(0.78, 1)
        left, top = rng.uniform(0, len(whole) - extent, 2)
        box = (left, top, left + extent, top + extent)
        part = Image.fromarray(whole).resize((side, side), Image.Resampling.BILINEAR, box)
        pixels = np.asarray(part)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _shadow(rng: np.random.Generator, canvas: Image.Image, sprite: Image.Image, left: int, top: int) -> None:
    """A drop shadow of the outline, an ellipse on the ground, or nothing; in place."""
    roll, reach = rng.random(), max(sprite.size)
    if roll < 0.2:
        return
    alpha = alpha_of(sprite)
    if roll < 0.6:
        shape, shift = alpha, (rng.uniform(-0.04, 0.1) * reach, rng.uniform(0.0, 0.1) * reach)
    else:
        y, x = np.mgrid[-1 : 1 : 1j * alpha.shape[0], -1 : 1 : 1j * alpha.shape[1]]
        flat = rng.uniform(0.08, 0.22)
        shape = np.exp(-((x / rng.uniform(0.6, 1)) ** 4) - (y / flat) ** 2).astype(np.float32)
        shift = (0.0, alpha.shape[0] * rng.uniform(0.42, 0.52))
    _stamp(rng, canvas, shape, (left + round(shift[0]), top + round(shift[1])))


def _stamp(rng: np.random.Generator, canvas: Image.Image, shape: Floats, corner: tuple[int, int]) -> None:
    """Darken the canvas where the blurred shape says, in place."""
    margin = max(2, round(max(shape.shape) * 0.08))
    padded = np.pad(shape * rng.uniform(40, 140), margin).astype(np.uint8)
    mask = Image.fromarray(padded).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.7) * margin)))
    dark = tuple(int(v) for v in rng.integers(0, 50, 3))
    canvas.paste(dark, (corner[0] - margin, corner[1] - margin), mask)


def _put(rng: np.random.Generator, canvas: Image.Image, sprite: Image.Image, place: Placement) -> None:
    """Lay a sprite with its shadow on the canvas, in place."""
    left = round(place.x * canvas.width - sprite.width / 2)
    top = round(place.y * canvas.height - sprite.height / 2)
    _shadow(rng, canvas, sprite, left, top)
    canvas.paste(sprite.convert("RGB"), (left, top), sprite.getchannel("A"))


def compose(
    rng: np.random.Generator,
    bank: SpriteBank,
    ground: Pixels,
    places: Sequence[Placement],
    erased: float = 0.0,
) -> Pixels:
    """Flawless objects on a background [S, S, 3]; stress tests erase a share of each from its left."""
    canvas = Image.fromarray(ground)
    for place in places:
        sprite = bank.image(place.index, place.color, round(place.size * len(ground)))
        if erased:
            alpha = alpha_of(sprite)
            sprite = with_alpha(sprite, alpha * half_plane(rng, alpha, erased, angle=0.0))
        _put(rng, canvas, sprite, place)
    return np.asarray(canvas)


def _training_places(rng: np.random.Generator) -> list[Placement]:
    """A scene of one of the tasks, or up to four unrelated objects anywhere."""
    if rng.random() < 0.75:
        return sample(rng, _TASKS[int(rng.integers(len(_TASKS)))])[1]
    places = []
    for spot in scattered(rng, int(rng.integers(0, 5))):
        index = int(rng.integers(len(OBJECTS)))
        colors = (None, *OBJECTS[index].colors)
        places.append(Placement(index, colors[int(rng.integers(len(colors)))], *spot))
    return places


def _training_sprite(
    rng: np.random.Generator, bank: SpriteBank, place: Placement, side: int, fault: float
) -> tuple[Image.Image, bool]:
    """The object's picture, and whether it still counts as present."""
    longer = max(6, round(place.size * side))
    sprite = bank.image(place.index, place.color, longer)
    if rng.random() < 0.2:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() >= fault:
        minor = rng.random() < 0.08
        return (erase(rng, sprite, float(rng.uniform(0, 0.1))) if minor else sprite), True
    other = int(rng.integers(len(OBJECTS) - 1))
    stranger = bank.image(other + (other >= place.index), None, longer)
    return spoil(rng, sprite, stranger), False


def training_picture(
    rng: np.random.Generator, bank: SpriteBank, pool: BackgroundPool, side: int, fault: float
) -> tuple[Pixels, Floats]:
    """A picture uint8 [side, side, 3] and its labels float32 [5, 5].

    `fault` is the probability that an object is drawn wrongly and so left out of the labels.
    """
    canvas = Image.fromarray(pool.draw(rng, side))
    labels = np.full((MAX_OBJECTS, LABEL_FIELDS), -1, np.float32)
    for row, place in enumerate(_training_places(rng)[:MAX_OBJECTS]):
        sprite, present = _training_sprite(rng, bank, place, side, fault)
        _put(rng, canvas, sprite, place)
        if present:
            color = COLOR_NAMES.index(place.color or NATURAL)
            labels[row] = (place.index, color, place.x, place.y, place.size)
    return np.asarray(canvas), labels
