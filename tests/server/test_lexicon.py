"""Words that a narrow model was never taught: which they are, and what is drawn in their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qsl

import pytest
from fastapi.testclient import TestClient

from twinshot_distill.miniature.card import describe
from twinshot_distill.world.chinese import chinese_caption
from twinshot_distill.world.scenes import sample_training_scene
from twinshot_server.answers import UnknownWord
from twinshot_server.lexicon import Lexicon

SHIPPED = json.loads(
    (Path(str(files("twinshot_engine"))) / "builtin" / "miniature" / "twinshot.json").read_text("utf-8")
)
SMALL = {
    "vocabulary": {"objects": ["tiger", "wine glass", "fish", "dog", "bus"], "colors": {"red": "#f00"}},
    "near": {"lion": "tiger", "lions": "tigers", "owl": "dog", "oak tree": "dog", "glasses": "fish"},
}
BODY = {"prompt": "two Lions, an owl and a zorp", "seed": 7}
DRAWN = "two Lions, a dog and a zorp"


@pytest.fixture(scope="module")
def small() -> Lexicon:
    return Lexicon(SMALL["vocabulary"], SMALL["near"])


@pytest.fixture(scope="module")
def bilingual() -> Lexicon:
    card = describe()
    return Lexicon(card["vocabulary"], card["near"])


def told(lexicon: Lexicon, prompt: str) -> dict[str, str | None]:
    return {each.word: each.nearest for each in lexicon.read(prompt).unknown}


@pytest.mark.parametrize(
    "prompt",
    [
        *["", "   ", "a red tiger", "Two RED tigers!", "buses, the dog's fish", "two wine glasses", "🦊 … ?"],
        "please draw a beautiful picture of 3 dogs next to a bus",
    ],
)
def test_known_words_stay_as_they_are(small: Lexicon, prompt: str) -> None:
    reading = small.read(prompt)
    assert (reading.prompt, reading.unknown) == (prompt, ())


@pytest.mark.parametrize(
    ("prompt", "drawn", "unknown"),
    [
        ("a lion", "a tiger", {"lion": "tiger"}),
        ("two lions and a lion", "two tigers and a tiger", {"lions": "tigers", "lion": "tiger"}),
        ("A Lion's dog", "A tiger dog", {"Lion's": "tiger"}),
        ("an owl", "a dog", {"owl": "dog"}),
        ("An owl or an  owl", "A dog or an  dog", {"owl": "dog"}),
        ("an old owl", "an old dog", {"old": None, "owl": "dog"}),
        ("an oak   tree", "a dog", {"oak   tree": "dog"}),
        ("two wine glasses, glasses", "two wine glasses, fish", {"glasses": "fish"}),
        ("7 zorps", "7 zorps", {"7": None, "zorps": None}),
        ("a tigre", "a tiger", {"tigre": "tiger"}),
        ("a tigger, a tige", "a tiger, a tige", {"tigger": "tiger", "tige": None}),
        ("on a bakground", "on a background", {"bakground": "background"}),
        ("Bären ねこ", "Bären ねこ", {"Bären": None, "ねこ": None}),
        ("lion" * 1000, "lion" * 1000, {"lion" * 1000: None}),
    ],
)
def test_other_words_are_told_and_drawn_as_the_nearest(
    small: Lexicon, prompt: str, drawn: str, unknown: dict[str, str | None]
) -> None:
    assert small.read(prompt).prompt == drawn
    assert told(small, prompt) == unknown


def test_a_general_model_knows_every_word() -> None:
    assert Lexicon({}, {}).read("a zorp, 一只狗").unknown == ()
    assert Lexicon({"kinds": 3, "words": None, "names": [7]}, {}).read("a zorp").unknown == ()


@pytest.mark.parametrize(
    ("prompt", "drawn", "unknown"),
    [
        ("一只狗在一棵树的左边，红色背景", None, {}),
        ("请画一辆红汽车和两件T恤，沙滩上", None, {}),
        ("一只狼在一座山的左边", "一只狗在一座火山的左边", {"狼": "狗", "山": "火山"}),
        ("一只麒麟", None, {"麒麟": None}),
        ("一只麒麟和一条龙", "一只麒麟和一条恐龙", {"麒麟": None, "龙": "恐龙"}),
        ("a wolf and 一只狼", "a dog and 一只狗", {"wolf": "dog", "狼": "狗"}),
        ("grapess, grapeses", "grapes, grapeses", {"grapess": "grapes", "grapeses": None}),
        ("x猫", None, {"x": None}),
    ],
)
def test_chinese_needs_no_spaces(
    bilingual: Lexicon, prompt: str, drawn: str | None, unknown: dict[str, str | None]
) -> None:
    assert bilingual.read(prompt).prompt == (drawn or prompt)
    assert told(bilingual, prompt) == unknown


def test_a_model_without_chinese_gets_english_words() -> None:
    card = describe(languages=("en",))
    lexicon = Lexicon(card["vocabulary"], card["near"])
    assert lexicon.read("一辆红色的汽车").prompt.split() == ["一辆", "red", "car"]
    assert told(lexicon, "两只狮子") == {"两": "two", "只": None, "狮子": "lion"}


def test_every_caption_of_the_world_is_known(bilingual: Lexicon) -> None:
    rng = Random(4)
    for _ in range(1500):
        words = chinese_caption(rng, sample_training_scene(rng), wordy=rng.random() < 0.3)
        assert told(bilingual, words) == {}, words


@pytest.mark.parametrize("card", [SHIPPED, describe()], ids=["shipped", "both languages"])
def test_every_example_is_made_of_known_words(card: dict[str, Any]) -> None:
    lexicon = Lexicon(card["vocabulary"], card["near"])
    assert len(card["examples"]) >= 10
    assert [told(lexicon, prompt) for prompt in card["examples"] if told(lexicon, prompt)] == []


@pytest.fixture
def narrow(make_client: Callable[..., TestClient], engine: Any) -> TestClient:
    """A server of a model that knows few words."""
    taught = {"vocabulary": SMALL["vocabulary"], "near": {"owl": "dog"}, "examples": ["a red dog"]}
    engine.info = replace(engine.info, **taught)
    return make_client()


def test_an_image_file_tells_in_a_header(narrow: TestClient, engine: Any) -> None:
    answer = narrow.post("/generate", json=BODY)
    assert engine.batches[-1][0].prompt == DRAWN
    words = parse_qsl(answer.headers["x-unknown-words"], keep_blank_values=True)
    assert words == [("Lions", ""), ("owl", "dog"), ("zorp", "")]
    chinese = narrow.post("/generate", json={"prompt": "猫"}).headers["x-unknown-words"]
    assert parse_qsl(chinese, keep_blank_values=True) == [("猫", "")]
    assert "x-unknown-words" not in narrow.post("/generate", json={"prompt": "a dog"}).headers


def test_json_and_events_tell_in_a_field(narrow: TestClient) -> None:
    wanted = [
        {"word": "Lions", "nearest": None},
        {"word": "owl", "nearest": "dog"},
        {"word": "zorp", "nearest": None},
    ]
    answer = narrow.post("/generate", json=BODY, headers={"Accept": "application/json"})
    assert answer.json()["unknown_words"] == wanted
    events = narrow.post("/generate", json=BODY | {"stream": True}).text
    done = json.loads(events.split("event: done\ndata: ")[1].splitlines()[0])
    assert done["unknown_words"] == wanted
    known = narrow.post("/generate", json={"prompt": "a dog"}, headers={"Accept": "application/json"})
    assert known.json()["unknown_words"] == []


def test_frames_are_preceded_by_what_is_unknown(narrow: TestClient) -> None:
    with narrow.websocket_connect("/realtime?timings=true") as socket:
        socket.send_json({"id": 1, "prompt": "an owl"})
        news = json.loads(socket.receive_text())
        assert news["unknown_words"] == [{"word": "owl", "nearest": "dog"}]
        assert len(socket.receive_bytes()) > 16


@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_openai_clients_get_a_revised_prompt(narrow: TestClient, response_format: str) -> None:
    body = BODY | {"response_format": response_format}
    (image,) = narrow.post("/v1/images/generations", json=body).json()["data"]
    assert image["revised_prompt"] == DRAWN
    (image,) = narrow.post("/v1/images/generations", json=body | {"prompt": "a dog"}).json()["data"]
    assert list(image) == [response_format]


def test_models_tell_words_if_wanted_and_examples(narrow: TestClient) -> None:
    (model,) = narrow.get("/v1/models").json()["data"]
    assert (model["vocabulary"], model["examples"]) == (SMALL["vocabulary"], ["a red dog"])
    (model,) = narrow.get("/v1/models?vocabulary=false").json()["data"]
    assert (model["vocabulary"], model["examples"]) == ({}, ["a red dog"])
    assert narrow.get("/v1/models?vocabulary=7").status_code == 400


def test_a_word_is_told_once(small: Lexicon) -> None:
    assert small.read("owl owl owl").unknown == (UnknownWord(word="owl", nearest="dog"),)
