"""The world in words: objects and places that stay apart, captions in two languages, what is like what."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from twinshot_distill.miniature.card import describe
from twinshot_distill.miniature.dataset import LONG, SHORT
from twinshot_distill.miniature.tokenizer import VOCABULARY_SIZE, build_tokenizer, templated
from twinshot_distill.world.captions import caption, plain_caption
from twinshot_distill.world.chinese import chinese_caption
from twinshot_distill.world.likeness import CHINESE, nearest, rows
from twinshot_distill.world.nouns import plural_of, with_article
from twinshot_distill.world.scenes import Item, Scene, sample_training_scene
from twinshot_distill.world.vocabulary import (
    BACKGROUNDS,
    CHINESE_COLORS,
    CHINESE_SCENES,
    COLORS,
    INDEX,
    OBJECTS,
    SCENES,
)

CARD = Path(str(files("twinshot_engine"))) / "builtin" / "miniature" / "twinshot.json"
NAMES = [entry.name for entry in OBJECTS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def is_chinese(text: str) -> bool:
    return any(unicodedata.name(character, "").startswith("CJK UNIFIED") for character in text)


def test_no_word_names_two_objects() -> None:
    english = Counter(
        word
        for entry in OBJECTS
        for word in {entry.name, entry.plural, *entry.synonyms, *map(plural_of, entry.synonyms), *entry.near}
    )
    assert [word for word, count in english.items() if count > 1] == []
    assert [word for word, count in Counter(entry.chinese for entry in OBJECTS).items() if count > 1] == []
    assert len(OBJECTS) >= 200
    assert all(entry.code and entry.measure and len(entry.measure) == 1 for entry in OBJECTS)
    assert all(set(entry.colors) <= COLORS.keys() for entry in OBJECTS)


def test_every_object_colour_and_place_has_a_chinese_word() -> None:
    assert all(is_chinese(entry.chinese) and is_chinese(entry.measure) for entry in OBJECTS)
    assert CHINESE_COLORS.keys() == COLORS.keys()
    assert CHINESE_SCENES.keys() == SCENES.keys()
    places = [phrase for phrases in CHINESE_SCENES.values() for phrase in phrases]
    colors = [f"{color}色" for color in CHINESE_COLORS.values()]
    words = [*places, *colors, *(entry.chinese for entry in OBJECTS)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("one", "several"),
    [
        *[("wolf", "wolves"), ("puppy", "puppies"), ("kitchen knife", "kitchen knives"), ("goose", "geese")],
        *[("glass of wine", "glasses of wine"), ("loaf of bread", "loaves of bread"), ("bench", "benches")],
        *[
            ("moose", "moose"),
            ("trousers", "trousers"),
            ("money", "money"),
            ("toy", "toys"),
            ("lynx", "lynxes"),
        ],
        *[("mattress", "mattresses"), ("walrus", "walruses"), ("t-rex", "t-rexes"), ("brush", "brushes")],
    ],
)
def test_plurals(one: str, several: str) -> None:
    assert plural_of(one) == several


def test_articles() -> None:
    spoken = ["a unicorn", "a ufo", "an umbrella", "an orange car", "bread", "red corn", "a loaf of bread"]
    words = ["unicorn", "ufo", "umbrella", "orange car", "bread", "red corn", "loaf of bread"]
    assert [with_article(word) for word in words] == spoken


@pytest.mark.parametrize(
    ("scene", "english", "chinese"),
    [
        (Scene("single", (Item("ufo"),), None, "space"), "a ufo in space", "一个飞碟，太空中"),
        (Scene("single", (Item("jeans"),)), "jeans", "一条牛仔裤"),
        (Scene("single", (Item("corn"),)), "corn", "一根玉米"),
        (Scene("count", (Item("mouse"),) * 3), "three mice", "三只老鼠"),
        (Scene("count", (Item("scissors", "red"),) * 2), "two red scissors", "两把红色的剪刀"),
        (Scene("count", (Item("yarn"),) * 4), "four balls of yarn", "四团毛线"),
        (
            Scene("position", (Item("car", "red"), Item("tree")), "left of", "beach"),
            "a red car left of a tree on a beach",
            "一辆红色的汽车在一棵树的左边，沙滩上",
        ),
        (
            Scene("attribution", (Item("gloves", "pink"), Item("owl")), None, "blue"),
            "pink gloves and an owl on a blue background",
            "一副粉色的手套和一只猫头鹰，蓝色背景",
        ),
    ],
)
def test_plain_captions_in_both_languages(scene: Scene, english: str, chinese: str) -> None:
    assert plain_caption(scene) == f"a photo of {english}"
    assert chinese_caption(None, scene) == chinese


def test_chinese_paraphrases_name_what_is_there() -> None:
    rng = Random(8)
    for _ in range(800):
        scene = sample_training_scene(rng)
        words = chinese_caption(rng, scene, wordy=rng.random() < 0.3)
        for item in scene.items:
            assert OBJECTS[INDEX[item.noun]].chinese in words
            assert item.color is None or CHINESE_COLORS[item.color] in words
        assert not re.search("[A-Za-z]", words.replace("T恤", ""))
        if scene.background is not None:
            asked = CHINESE_SCENES.get(scene.background) or [CHINESE_COLORS.get(scene.background, "?")]
            assert any(phrase in words for phrase in asked)


def test_a_quarter_of_the_captions_is_chinese_and_some_say_near_words() -> None:
    rng = Random(9)
    captions = [caption(rng, sample_training_scene(rng)) for _ in range(2500)]
    assert 0.22 < sum(map(is_chinese, captions)) / len(captions) < 0.28
    near = {word for entry in OBJECTS for word in entry.near}
    said = [text for text in captions if near & set(re.findall(r"[a-z-]+", text))]
    assert 0.005 < len(said) / len(captions) < 0.1


def test_backgrounds_can_be_asked_for_in_both_languages() -> None:
    for background in BACKGROUNDS:
        scene = Scene("single", (Item("dog"),), None, background)
        assert len(plain_caption(scene)) > len("a photo of a dog")
        assert len(chinese_caption(None, scene)) > len("一只狗")
    with pytest.raises(ValueError, match=r"'moon'.*meadow"):
        plain_caption(Scene("single", (Item("dog"),), None, "moon"))


def test_rows_hold_each_word_once_and_something_to_draw() -> None:
    words = [word for row in rows() for word in row]
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert all(any(word in INDEX for word in row) for row in rows())
    assert not {synonym for entry in OBJECTS for synonym in entry.synonyms} & set(words)
    assert set(CHINESE.values()) <= {*words, *NAMES}


def test_the_nearest_thing_is_one_that_is_known() -> None:
    instead = nearest(NAMES, speaks_chinese=True)
    for entry in OBJECTS:
        assert entry.name not in instead
        assert entry.chinese not in instead
        assert {instead[word] for word in entry.near} <= {entry.name}
    drawn = {entry.name for entry in OBJECTS} | {entry.plural for entry in OBJECTS}
    assert set(instead.values()) <= drawn | {entry.chinese for entry in OBJECTS}
    assert (instead["wolves"], instead["lamp"], instead["table"]) == ("dogs", "light bulb", "chair")
    assert (instead["狼"], instead["山"]) == ("狗", "火山")


def test_a_checkpoint_that_knows_less_draws_the_next_best() -> None:
    few = nearest(["tiger", "house", "knife"], speaks_chinese=False)
    assert (few["lion"], few["lions"], few["castle"]) == ("tiger", "tigers", "house")
    assert (few["swords"], few["狮子"], few["老虎"]) == ("knives", "tiger", "tiger")
    assert (few["红色的"], few["沙滩上"], few["三"]) == ("red", "on a beach", "three")
    assert "bicycle" not in few
    assert nearest([], speaks_chinese=True) == {}


def test_the_shipped_card_is_what_the_world_says_of_its_objects() -> None:
    card = json.loads(CARD.read_text())
    objects = card["vocabulary"]["objects"]
    assert set(objects) <= set(NAMES)
    assert card == describe(objects, card["languages"])
    assert f"{len(objects)} toy-like objects" in card["description"]


def test_a_new_card_tells_of_both_languages() -> None:
    card = describe()
    assert card["languages"] == ["en", "zh"]
    assert card["description"].startswith(f"A small TwinFlow model of {len(OBJECTS)} toy-like objects")
    assert "English and Chinese" in card["description"]
    assert {"猫", "红色", "沙滩上"} <= set(card["vocabulary"]["chinese"])
    assert "chinese" not in describe(NAMES[:3], ["en"])["vocabulary"]


def test_captions_fit_their_buckets(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = Random(10)
    scenes = [sample_training_scene(rng) for _ in range(2000)]
    for wordy, bucket in ((False, SHORT), (True, LONG)):
        texts = [caption(rng, scene, wordy=wordy) for scene in scenes]
        texts += [chinese_caption(rng, scene, wordy=wordy) for scene in scenes]
        lengths = [len(row) for row in tokenizer([templated(text) for text in texts]).input_ids]
        assert max(lengths) <= bucket


def test_chinese_nouns_are_the_same_tokens_wherever_they_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == VOCABULARY_SIZE
    for entry in OBJECTS:
        alone = tokenizer(entry.chinese).input_ids
        for text in (
            f"一{entry.measure}红色的{entry.chinese}在一只狗的左边",
            f"画两个{entry.chinese}和一只猫",
        ):
            ids = tokenizer(text).input_ids
            assert any(ids[k : k + len(alone)] == alone for k in range(len(ids))), text


def test_tokens_give_the_text_back_in_lower_case(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("A Red Car", "一辆红色的汽车在一棵树的左边", "naïve 🦊 كلب"):
        assert tokenizer.decode(tokenizer(text).input_ids) == unicodedata.normalize("NFKC", text).lower()
