"""The Python client against canned answers; tests/cli runs it against a real server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from PIL import Image

import twinshot
from twinshot import APIConnectionError, APIStatusError, Client, Timings, TwinshotError

HEADERS = {
    "Content-Type": "image/png",
    "X-Seed": "7",
    "X-Request-Id": "abc",
    "Server-Timing": "queue;dur=0.1, text;dur=2.0, denoise;dur=70.5, decode;dur=30, encode;dur=1.3, x;dur=1",
}

Handler = Callable[[httpx2.Request], httpx2.Response]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (7, 7, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def client(handler: Handler) -> Client:
    return Client("http://server", transport=httpx2.MockTransport(handler))


def refusing(status: int, **answer: object) -> Client:
    return client(lambda _request: httpx2.Response(status, **answer))  # type: ignore[arg-type]


def test_the_public_names_are_those_in_all() -> None:
    assert {name for name in vars(twinshot) if not name.startswith("_")} == set(twinshot.__all__)


def test_generate_sends_only_what_was_given() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, content=png(), headers=HEADERS)

    with client(answer) as connection:
        connection.generate("a red car")
        connection.generate("a red car", seed=0, width=8, height=4, steps=2, format="jpeg", quality=80)
    assert str(seen[0].url) == "http://server/generate"
    assert seen[0].headers["User-Agent"].startswith("twinshot-python/")
    assert json.loads(seen[0].content) == {"prompt": "a red car"}
    assert json.loads(seen[1].content) == {
        "prompt": "a red car",
        "seed": 0,
        "width": 8,
        "height": 4,
        "steps": 2,
        "format": "jpeg",
        "quality": 80,
    }


def test_the_answer_is_read_in_full(tmp_path: Path) -> None:
    with refusing(200, content=png(), headers=HEADERS) as connection:
        picture = connection.generate("a red car")
    assert (picture.format, picture.seed, picture.request_id) == ("png", 7, "abc")
    assert picture.timings == Timings(queue=0.1, text=2.0, denoise=70.5, decode=30.0, encode=1.3)
    assert picture.image.size == (8, 4)
    assert picture.image is picture.image
    picture.save(tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == png()


def test_a_refusal_carries_the_servers_words() -> None:
    problem = {"code": "queue_full", "detail": "64 images wait already.", "param": None, "status": 429}
    headers = {"X-Request-Id": "abc", "Retry-After": "3"}
    with refusing(429, json=problem, headers=headers) as connection:
        with pytest.raises(APIStatusError, match="64 images wait already") as caught:
            connection.generate("a red car")
    refusal = caught.value
    assert (refusal.status, refusal.code, refusal.param) == (429, "queue_full", None)
    assert (refusal.request_id, refusal.retry_after) == ("abc", 3)
    assert isinstance(refusal, TwinshotError)


@pytest.mark.parametrize("content", [b"", b"<html>Bad Gateway</html>", b'{"error": "busy"}', b"[]", b"\xff"])
def test_a_refusal_by_something_else_is_told_as_such(content: bytes) -> None:
    with refusing(502, content=content) as connection:
        with pytest.raises(APIStatusError, match="http://server/generate answered 502 Bad Gateway") as caught:
            connection.generate("a red car")
    assert (caught.value.code, caught.value.request_id, caught.value.retry_after) == (None, None, None)


@pytest.mark.parametrize("failure", [httpx2.ConnectError("refused"), httpx2.ReadTimeout("")])
def test_no_answer(failure: httpx2.TransportError) -> None:
    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise failure

    with client(fail) as connection:
        with pytest.raises(
            APIConnectionError, match=r"no answer from http://server: (refused|ReadTimeout)"
        ) as caught:
            connection.generate("a red car")
    assert caught.value.__cause__ is failure


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_BASE_URL", "http://elsewhere:9")
    assert Client().base_url == "http://elsewhere:9"
    assert Client("http://here:8").base_url == "http://here:8"
    monkeypatch.delenv("TWINSHOT_BASE_URL")
    assert Client().base_url == "http://127.0.0.1:8000"
