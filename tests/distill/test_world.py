"""The world: scenes that keep their promises, captions that say what is shown, pictures that show it."""

from itertools import combinations
from random import Random

import numpy as np
import pytest
import torch

from twinshot_distill.world.backgrounds import background
from twinshot_distill.world.captions import caption, plain_caption
from twinshot_distill.world.composer import Composer, arrange
from twinshot_distill.world.layout import place
from twinshot_distill.world.nouns import plural_of
from twinshot_distill.world.recolour import from_oklab, recolour, to_oklab
from twinshot_distill.world.scenes import (
    TASKS,
    Item,
    Scene,
    held_out,
    is_unseen,
    sample_scene,
    sample_training_scene,
)
from twinshot_distill.world.sprites import VARIANTS, load_sprites, variant_index
from twinshot_distill.world.vocabulary import BACKGROUNDS, COLORS, INDEX, OBJECTS


def test_names_are_unique_and_atlas_has_every_object() -> None:
    assert len(INDEX) == len(OBJECTS) == len(load_sprites())
    assert load_sprites().shape[1:] == (192, 192, 4)
    spoken = [name for entry in OBJECTS for name in (entry.name, *entry.synonyms)]
    assert len(spoken) == len(set(spoken))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "seen", "unseen"])
def test_scenes_keep_held_out_combinations_apart(task: str, split: str) -> None:
    rng = Random(1)
    for _ in range(150):
        scene = sample_scene(rng, task, split)  # type: ignore[arg-type]
        assert scene.task == task
        if task != "single":
            assert is_unseen(scene) == (split == "unseen")
        assert all(item.color != scene.background or item.color is None for item in scene.items)


def test_training_never_shows_a_held_out_combination() -> None:
    rng = Random(2)
    scenes = [sample_training_scene(rng) for _ in range(3000)]
    assert not any(is_unseen(scene) for scene in scenes)
    assert {scene.task for scene in scenes} == set(TASKS)
    assert any(scene.task == "position" and scene.items[0].color for scene in scenes)


def test_held_out_share_is_about_a_tenth_and_does_not_depend_on_order() -> None:
    pairs = [(a.name, b.name) for i, a in enumerate(OBJECTS) for b in OBJECTS[:i]]
    share = sum(held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.08 < share < 0.12
    assert all(held_out(a, b) == held_out(b, a) for a, b in pairs[:200])


def test_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"'triple'.*single"):
        sample_scene(Random(0), "triple", "train")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (Scene("single", (Item("apple"),)), "a photo of an apple"),
        (Scene("single", (Item("unicorn"),), None, "space"), "a photo of a unicorn in space"),
        (Scene("count", (Item("knife"),) * 3, None, "beach"), "a photo of three knives on a beach"),
        (
            Scene("colors", (Item("car", "orange"),), None, "blue"),
            "a photo of an orange car on a blue background",
        ),
        (
            Scene("position", (Item("dog"), Item("tv")), "left of", "orange"),
            "a photo of a dog left of a tv on an orange background",
        ),
        (
            Scene("attribution", (Item("cat", "black"), Item("key", "red"))),
            "a photo of a black cat and a red key",
        ),
    ],
)
def test_plain_captions(scene: Scene, words: str) -> None:
    assert plain_caption(scene) == words


def test_paraphrases_name_every_object_and_colour() -> None:
    rng = Random(3)
    for _ in range(600):
        scene = sample_training_scene(rng)
        words = caption(rng, scene, wordy=rng.random() < 0.3).lower()
        for item in scene.items:
            entry = OBJECTS[INDEX[item.noun]]
            several = map(plural_of, (*entry.synonyms, *entry.near))
            names = (entry.name, entry.plural, entry.chinese.lower(), *entry.synonyms, *entry.near, *several)
            # Two letters in a hundred captions are typos; they may hit the name.
            if not any(name in words for name in names):
                assert any(name[:2] in words or name[-2:] in words for name in names)


def test_layout_obeys_the_relation_and_keeps_objects_inside_and_apart() -> None:
    rng = Random(4)
    for _ in range(400):
        scene = sample_training_scene(rng)
        spots = place(scene)
        assert all(spot.size / 2 <= c <= 1 - spot.size / 2 for spot in spots for c in (spot.x, spot.y))
        for a, b in combinations(spots, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2
        if scene.relation is not None:
            first, second = spots
            gap = {
                "left of": second.x - first.x,
                "right of": first.x - second.x,
                "above": second.y - first.y,
                "below": first.y - second.y,
            }[scene.relation]
            assert gap > 0.3


def test_oklab_round_trip() -> None:
    colors = np.array(list(COLORS.values()), np.uint8)
    assert np.abs(from_oklab(to_oklab(colors)).astype(int) - colors).max() <= 1


def test_recolouring_reaches_the_colour_and_keeps_the_outline() -> None:
    sprite = load_sprites()[INDEX["heart"]]
    for name, target in COLORS.items():
        painted = recolour(sprite, name)
        assert np.array_equal(painted[..., 3], sprite[..., 3])
        solid = painted[painted[..., 3] > 250][:, :3].astype(float)
        nearest = min(COLORS, key=lambda other: float(np.abs(solid.mean(0) - COLORS[other]).sum()))
        assert nearest == name, (name, target, solid.mean(0))


def test_unknown_colours_objects_and_backgrounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'teal'.*red"):
        recolour(load_sprites()[0], "teal")
    with pytest.raises(ValueError, match="no green zebra"):
        variant_index("zebra", "green")
    with pytest.raises(ValueError, match=r"'moon'.*meadow"):
        background("moon", 0)


@pytest.mark.parametrize("name", ["meadow", "space", "white"])
def test_backgrounds_repeat_by_seed_and_vary_between_seeds(name: str) -> None:
    first = background(name, 5)
    assert first.shape == (256, 256, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, background(name, 5))
    assert not np.array_equal(first, background(name, 6))


def test_every_variant_is_drawn_where_it_was_placed(composer: Composer) -> None:
    red, blue = Item("heart", "red"), Item("heart", "blue")
    scene = Scene("attribution", (red, blue), None, "white")
    batch = arrange(Random(0), [scene])
    picture = (composer.render(batch)[0] + 1) / 2
    for slot, channel in ((0, 0), (1, 2)):
        x, y, _ = (batch.boxes[0, slot] * 256).astype(int)
        pixel = picture[:, y, x]
        assert pixel.argmax() == channel
        assert pixel[channel] - pixel.median() > 0.3
    assert len(VARIANTS) == len(OBJECTS) + sum(len(entry.colors) for entry in OBJECTS)


def test_rendering_does_not_depend_on_the_batch(composer: Composer) -> None:
    rng = Random(7)
    scenes = [sample_training_scene(rng) for _ in range(7)]
    batch = arrange(rng, scenes)
    together = composer.render(batch)
    assert together.shape == (7, 3, 256, 256)
    assert -1 <= together.min() < together.max() <= 1
    torch.testing.assert_close(together[3:4], composer.render(batch[3:4]))
    assert set(batch.backgrounds) <= set(range(len(BACKGROUNDS)))
