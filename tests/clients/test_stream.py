"""Events as typed objects, from answers made by hand; tests of the server's own events are elsewhere."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx2
import pytest
from asking import Asker
from canned import Recorder, image_file

from twinshot import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    AsyncClient,
    Client,
    Done,
    Drawn,
    Queued,
    Started,
    Timings,
)

TIMES = {"queue": 1, "text": 2, "denoise": 3, "decode": 4, "encode": 5, "later": 6}
QUEUED = ("queued", {"request_id": "abc", "waiting": 1, "predicted_ms": 5.5})
STARTED = ("started", {"index": 0})
IMAGE = (
    "image",
    {
        "image": base64.b64encode(image_file()).decode(),
        "index": 0,
        "seed": 7,
        "batch": 2,
        "timings_ms": TIMES,
    },
)
DONE = ("done", {"format": "png", "width": 8, "height": 4, "steps": 1, "request_id": "abc"})


def events(*told: tuple[str, object]) -> Recorder:
    lines = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in told)
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Request-Id": "abc"}
    return Recorder(content=lines.encode(), headers=headers)


def test_the_story_is_told_in_typed_objects(ask: Asker) -> None:
    server = events(QUEUED, STARTED, ("of-a-later-version", [1]), IMAGE, DONE)
    queued, started, drawn, done = ask(server, "stream", "a red car", n=1, seed=7, format="png")
    assert queued == Queued(request_id="abc", waiting=1, predicted_ms=5.5)
    assert started == Started(index=0)
    assert isinstance(drawn, Drawn)
    assert (drawn.index, drawn.batch, drawn.picture.seed) == (0, 2, 7)
    assert drawn.picture.bytes == image_file()
    assert (drawn.picture.timings, drawn.picture.request_id) == (Timings(1, 2, 3, 4, 5), "abc")
    assert done == Done(request_id="abc", format="png", width=8, height=4, steps=1)
    assert done.unknown_words == ()
    asked = {"prompt": "a red car", "n": 1, "seed": 7, "format": "png", "stream": True}
    assert server.body == asked
    assert server.requests[0].headers["Accept"] == "text/event-stream"


def test_a_failure_inside_of_the_story_raises(ask: Asker, pauses: list[float]) -> None:
    problem = {"status": 500, "code": "internal_error", "detail": "It failed.", "param": None}
    server = events(QUEUED, ("error", problem))
    with pytest.raises(APIStatusError, match=r"It failed\.") as caught:
        ask(server, "stream", "a")
    assert (caught.value.status, caught.value.code) == (500, "internal_error")
    assert (type(caught.value).__name__, caught.value.request_id) == ("InternalServerError", "abc")
    assert (len(server.requests), pauses) == (1, [])


@pytest.mark.parametrize("told", [(), (QUEUED,), (QUEUED, STARTED, IMAGE)])
def test_a_story_that_ends_early_raises(told: tuple[tuple[str, object], ...], ask: Asker) -> None:
    with pytest.raises(APIConnectionError, match="/generate ended before every picture was there") as caught:
        ask(events(*told), "stream", "a")
    assert caught.value.request_id == "abc"


NO_IMAGE = base64.b64encode(b"<html>").decode()


@pytest.mark.parametrize(
    "told",
    [
        ("queued", {}),
        ("queued", []),
        ("started", {"index": "first"}),
        ("image", {"image": "%%%", "index": 0, "seed": 7}),
        ("image", {"image": NO_IMAGE, "index": 0, "seed": 7}),
        ("done", None),
        ("error", "out of luck"),
    ],
)
def test_a_story_nobody_understands_raises(told: tuple[str, object], ask: Asker) -> None:
    with pytest.raises(
        APIResponseError, match="http://server/generate answered with text/event-stream instead"
    ):
        ask(events(told, DONE), "stream", "a")


def test_what_is_no_story_raises(ask: Asker) -> None:
    with pytest.raises(APIResponseError, match="answered with image/png instead of events"):
        ask(Recorder(), "stream", "a")


def test_the_beginning_of_a_story_is_tried_again(ask: Asker, pauses: list[float]) -> None:
    told = events(QUEUED, DONE)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return told(request) if len(pauses) == 2 else httpx2.Response(503)

    assert len(ask(answer, "stream", "a")) == 2


class Watched(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that knows whether it was closed."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.is_closed = False

    def __iter__(self) -> Any:
        yield self._content

    async def __aiter__(self) -> Any:
        yield self._content

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.is_closed = True


def watched(media_type: str = "text/event-stream") -> tuple[Watched, httpx2.MockTransport]:
    body = Watched(b'event: started\ndata: {"index": 0}\n\n' * 2)
    answer = httpx2.Response(200, stream=body, headers={"Content-Type": media_type})
    return body, httpx2.MockTransport(lambda _request: answer)


def test_leaving_early_hangs_up() -> None:
    body, transport = watched()
    with Client("http://server", transport=transport) as client:
        for _event in client.stream("a"):
            break
        assert body.is_closed


def test_leaving_early_hangs_up_in_asyncio_too() -> None:
    body, transport = watched()

    async def main() -> None:
        async with AsyncClient("http://server", transport=transport) as client:
            story = client.stream("a")
            async for _event in story:
                break
            await story.aclose()
            assert body.is_closed

    asyncio.run(main())


def test_an_answer_that_is_no_story_is_hung_up_on(ask: Asker) -> None:
    body, transport = watched("text/html")
    with pytest.raises(APIResponseError):
        ask(transport.handler, "stream", "a")
    assert body.is_closed
