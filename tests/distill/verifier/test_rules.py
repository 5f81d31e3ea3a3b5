"""The six tasks' rules on hand-written detections, and the scenes they refuse."""

from __future__ import annotations

import pytest

from twinshot_distill.verifier.detections import Detection
from twinshot_distill.verifier.rules import holds, stands, validate
from twinshot_distill.world.scenes import Item, Scene

TWINS = {"apple": "red"}
CLASSES = ("apple", "car", "dog")


def seen(noun: str, color: str = "natural", x: float = 0.5, y: float = 0.5) -> Detection:
    return Detection(noun, color, 0.9, x, y, 0.3)


def test_single_needs_its_object() -> None:
    scene = Scene("single", (Item("dog"),))
    assert holds(scene, [seen("dog")], TWINS)
    assert not holds(scene, [seen("car")], TWINS)


def test_two_needs_both() -> None:
    scene = Scene("two", (Item("dog"), Item("car")))
    assert holds(scene, [seen("car"), seen("dog"), seen("dog")], TWINS)
    assert not holds(scene, [seen("dog"), seen("dog")], TWINS)


@pytest.mark.parametrize(("shown", "passes"), [(2, False), (3, True), (4, False)])
def test_count_is_exact(shown: int, passes: bool) -> None:
    scene = Scene("count", (Item("dog"),) * 3)
    assert holds(scene, [seen("dog")] * shown, TWINS) is passes


def test_color_accepts_the_twin_and_nothing_else() -> None:
    red, green = Scene("colors", (Item("apple", "red"),)), Scene("colors", (Item("apple", "green"),))
    assert holds(red, [seen("apple", "red")], TWINS)
    assert holds(red, [seen("apple", "natural")], TWINS)
    assert not holds(green, [seen("apple", "natural")], TWINS)
    assert not holds(green, [seen("apple", "red")], TWINS)


def test_attribution_refuses_swapped_colors() -> None:
    scene = Scene("attribution", (Item("car", "blue"), Item("apple", "green")))
    assert holds(scene, [seen("car", "blue"), seen("apple", "green")], TWINS)
    assert not holds(scene, [seen("car", "green"), seen("apple", "blue")], TWINS)


@pytest.mark.parametrize(
    ("x", "y", "relation"),
    [(0.2, 0.5, "left of"), (0.8, 0.5, "right of"), (0.5, 0.2, "above"), (0.5, 0.8, "below")],
)
def test_only_the_true_relation_holds(x: float, y: float, relation: str) -> None:
    first, second = seen("dog", x=x, y=y), seen("car")
    holding = [r for r in ("left of", "right of", "above", "below") if stands(first, second, r)]
    assert holding == [relation]


def test_a_relation_needs_the_margin_and_the_dominant_axis() -> None:
    assert not stands(seen("dog", x=0.45), seen("car"), "left of")
    assert not stands(seen("dog", x=0.3, y=0.1), seen("car"), "left of")


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        (Scene("single", (Item("gryphon"),)), "gryphon"),
        (Scene("single", ()), "not 0"),
        (Scene("two", (Item("dog"),)), "not 1"),
        (Scene("position", (Item("dog"), Item("car")), "behind"), "behind"),
        (Scene("count", (Item("dog"), Item("car"))), "equal items"),
        (Scene("colors", (Item("dog"),)), "has a colour"),
        (Scene("paint", (Item("dog"),)), "paint"),  # type: ignore[arg-type]
    ],
)
def test_scenes_that_cannot_be_judged(scene: Scene, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(scene, CLASSES)
