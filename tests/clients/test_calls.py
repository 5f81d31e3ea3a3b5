"""What both clients send, and what they make of answers, without a network."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest
from asking import Asker
from canned import HEADERS, Recorder, image_file

import twinshot
from twinshot import APIResponseError, Client, Generated, Health, Picture, Timings, UnknownWord

MODEL = {
    "id": "m",
    "family": "F",
    "device": "cpu",
    "precision": "fp32",
    "sizes": ["8x4"],
    "size_rule": "8x4",
    "steps": [1],
    "max_prompt_tokens": 16,
    "of_a_later_version": 1,
}


def test_the_public_names_are_those_in_all() -> None:
    assert {name for name in vars(twinshot) if not name.startswith("_")} == set(twinshot.__all__)
    assert twinshot.__all__ == sorted(twinshot.__all__)
    assert (Path(twinshot.__file__).parent / "py.typed").exists()


def test_what_is_given_is_sent_and_what_is_none_is_not(ask: Asker) -> None:
    server = Recorder()
    given = {
        "seed": 0,
        "width": 8,
        "height": 4,
        "steps": 2,
        "guidance": 3.5,
        "format": "jpeg",
        "quality": 80,
        "deadline_ms": 500,
        "priority": "batch",
        "adapter": "ink",
    }
    ask(server, "generate", "ein Auto 🚗", **given, size=None)
    assert server.body == {"prompt": "ein Auto 🚗", **given}
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", "http://server/generate")
    assert request.headers["User-Agent"].startswith("twinshot-python/")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Accept"] == "image/*"
    assert "Authorization" not in request.headers


def test_a_seed_is_chosen_here_and_the_picture_tells_it(ask: Asker) -> None:
    server = Recorder()
    seeds = [ask(server, "generate", "a").seed for _ in range(3)]
    assert [json.loads(request.content)["seed"] for request in server.requests] == seeds
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert ask(server, "generate", "a", seed=None).seed == server.body["seed"]


def test_an_unknown_option_is_refused_before_anything_is_sent(ask: Asker) -> None:
    server = Recorder()
    for method, prompt in (("generate", "a"), ("stream", "a"), ("generate_many", ["a"])):
        with pytest.raises(TypeError, match=r"no option 'sead'; known are .*seed"):
            ask(server, method, prompt, sead=7)
    with pytest.raises(TypeError, match="no option 'promt'"):
        ask(server, "generate_many", [{"promt": "a"}])
    assert server.requests == []


def test_what_json_cannot_hold_is_refused_before_anything_is_sent(ask: Asker) -> None:
    server = Recorder()
    with pytest.raises(ValueError, match="JSON"):
        ask(server, "generate", "a", seed=float("nan"))
    with pytest.raises(TypeError, match="set"):
        ask(server, "generate", "a", seed={7})
    assert server.requests == []


def test_the_answer_is_read_in_full(ask: Asker, tmp_path: Path) -> None:
    picture = ask(Recorder(), "generate", "a red car", seed=7)
    assert isinstance(picture, Generated)
    assert (picture.format, picture.seed, picture.request_id) == ("png", 7, "abc")
    assert picture.timings == Timings(queue=0.1, text=2.0, denoise=70.5, decode=30.0, encode=1.3)
    assert picture.image.size == (8, 4)
    assert picture.image is picture.image
    assert picture.save(tmp_path / "out.png") == tmp_path / "out.png"
    assert (tmp_path / "out.png").read_bytes() == picture.bytes == image_file()
    assert picture._repr_mimebundle_() == {"image/png": image_file()}
    assert len(repr(picture)) < 300


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (None, ()),
        ("", ()),
        ("lions=tigers&zorp=", (UnknownWord("lions", "tigers"), UnknownWord("zorp", None))),
        (
            "%E7%8B%BC=%E7%8B%97&oak+tree=palm+tree",
            (UnknownWord("狼", "狗"), UnknownWord("oak tree", "palm tree")),
        ),
        ("zorp&&=x", (UnknownWord("zorp", None), UnknownWord("", "x"))),
    ],
)
def test_words_that_the_model_was_never_taught(
    header: str | None, words: tuple[UnknownWord, ...], ask: Asker
) -> None:
    server = Recorder(headers=HEADERS | ({} if header is None else {"X-Unknown-Words": header}))
    assert ask(server, "generate", "a").unknown_words == words


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_format_is_that_of_the_bytes(kind: str, ask: Asker) -> None:
    server = Recorder(content=image_file(kind), headers={"Content-Type": "image/wrong"})
    picture = ask(server, "generate", "a")
    assert (picture.format, picture.image.format) == (kind.lower(), kind)
    assert (picture.timings, picture.request_id) == (Timings(), server.requests[0].headers["X-Request-Id"])


def test_a_broken_file_is_told_when_it_is_decoded() -> None:
    with pytest.raises(OSError, match=r"truncated|broken|unrecognized"):
        _ = Picture(image_file()[:45], 7).image


@pytest.mark.parametrize(
    "header",
    ["", "denoise", "denoise;dur=", "denoise;dur=1.2.3.", "denoise;dur=-1", "denoise;dur=inf", ";;,,"],
)
def test_no_server_timing_does_harm(header: str) -> None:
    assert Timings.parse(header).denoise in {0.0, 1.2}


@pytest.mark.parametrize(
    ("content", "media_type", "said"),
    [
        (
            b"<html>",
            "text/html; charset=utf-8",
            "with text/html instead of an image; is it a twinshot server",
        ),
        (b"", "", "with nothing known instead of an image"),
        (b"GIF89a", "image/gif", "with image/gif instead of an image"),
        (b"RIFF....WAVE", "audio/wav", "with audio/wav instead of an image"),
    ],
)
def test_what_is_no_image_is_told_as_such(content: bytes, media_type: str, said: str, ask: Asker) -> None:
    server = Recorder(content=content, headers={"Content-Type": media_type} if media_type else {})
    with pytest.raises(APIResponseError, match=f"http://server/generate answered {said}") as caught:
        ask(server, "generate", "a")
    assert caught.value.request_id == server.requests[0].headers["X-Request-Id"]
    assert len(server.requests) == 1


def test_models_are_read_and_what_is_new_in_them_is_passed_over(ask: Asker) -> None:
    (model,) = ask(Recorder(content=json.dumps({"data": [MODEL]}).encode()), "models")
    assert (model.id, model.sizes, model.steps) == ("m", ["8x4"], [1])
    assert (model.guided_steps, model.adapters, model.vocabulary) == ([], [], {})


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": [{"id": "m"}]}', b"\xff"])
def test_models_and_health_of_something_else(content: bytes, ask: Asker) -> None:
    with pytest.raises(
        APIResponseError, match="/v1/models answered with image/png instead of a list of models"
    ):
        ask(Recorder(content=content), "models")
    with pytest.raises(APIResponseError, match="/health answered with image/png instead of its state"):
        ask(Recorder(content=content), "health")


def test_a_server_that_is_not_ready_tells_its_state_at_once(ask: Asker, pauses: list[float]) -> None:
    content = b'{"status": "starting", "reason": "weights 40%", "version": "1", "model": null}'
    health = ask(Recorder(status_code=503, content=content), "health")
    assert isinstance(health, Health)
    assert (health.status, health.reason, health.model, health.is_ready) == (
        "starting",
        "weights 40%",
        None,
        False,
    )
    assert pauses == []


def test_a_503_of_something_else_is_a_failure_of_health(ask: Asker, pauses: list[float]) -> None:
    with pytest.raises(
        twinshot.InternalServerError, match="http://server/health answered 503 Service Unavail"
    ):
        ask(Recorder(status_code=503, content=b"<html>"), "health")
    assert len(pauses) == 2


def test_a_compressed_answer_is_read_too(ask: Asker) -> None:
    import zlib

    content = zlib.compress(image_file())
    picture = ask(Recorder(content=content, headers={"Content-Encoding": "deflate"}), "generate", "a")
    assert picture.bytes == image_file()


def test_threads_may_share_a_client() -> None:
    with Client("http://server", transport=httpx2.MockTransport(Recorder())) as client:
        pictures = client.generate_many(["a"] * 50, concurrency=16)
    assert {picture.bytes for picture in pictures} == {image_file()}
