"""Sessions on a WebSocket: with a real server, and with some that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpcore2
import pytest
from canned import image_file
from httpx2.websockets import AsyncWebSocketSession
from PIL import Image
from scripted import Script, scripted, sending

from twinshot import (
    APIConnectionError,
    APIResponseError,
    AsyncClient,
    AuthenticationError,
    Failed,
    Frame,
    NotFoundError,
    PermissionDeniedError,
    Realtime,
    Superseded,
    Timings,
    TwinshotError,
    UnknownWord,
)
from twinshot._errors import Answer
from twinshot._realtime import open_session

T = TypeVar("T")
HEAD = Answer("http://server", 101, "", {}, b"", "abc")
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
HEADER = struct.pack("!IIIHH", 5, 7, 2500, 8, 4)


def session_with(url: str, use: Callable[[Realtime], Awaitable[T]], **settings: object) -> T:
    async def main() -> T:
        async with AsyncClient(url, timeout=5, **settings) as client, client.realtime() as session:  # type: ignore[arg-type]
            return await use(session)

    return asyncio.run(main())


async def first(session: Realtime) -> Frame | Superseded | Failed:
    return await anext(session)


async def last(session: Realtime) -> None:
    while True:
        with contextlib.suppress(APIResponseError):
            await anext(session)


def websocket_message(kind: int, payload: bytes) -> bytes:
    """A message of a server: 1 is text, 2 binary, 8 the end (RFC 6455, section 5.2)."""
    size = len(payload)
    length = bytes([size]) if size < 126 else bytes([126]) + struct.pack("!H", size)
    return bytes([0x80 | kind]) + length + payload


def text(**fields: object) -> bytes:
    return websocket_message(1, json.dumps(fields).encode())


def test_frames_carry_what_was_asked_for(server_url: str) -> None:
    async def use(session: Realtime) -> Frame | Superseded | Failed:
        await session.send("a red car", seed=7, size="32x32", format="webp", steps=None)
        return await anext(session)

    frame = session_with(server_url, use)
    assert isinstance(frame, Frame)
    assert (frame.id, frame.seed, frame.width, frame.height) == (1, 7, 32, 32)
    assert (frame.format, frame.image.size) == ("webp", (32, 32))
    assert frame.server_ms >= frame.timings.denoise > 0


def test_every_request_ends_in_a_frame_or_is_superseded_and_the_newest_is_drawn(server_url: str) -> None:
    async def use(session: Realtime) -> list[Frame | Superseded | Failed]:
        newest = [await session.send("a red car", seed=seed) for seed in range(20)][-1]
        told = []
        async for event in session:
            told.append(event)
            if isinstance(event, Frame) and event.id == newest:
                return told
        raise AssertionError

    told = session_with(server_url, use)
    assert all(isinstance(event, (Frame, Superseded)) for event in told)
    assert sorted(event.id for event in told) == list(range(1, 21))  # type: ignore[type-var]
    assert {event.id - 1 for event in told if isinstance(event, Frame)} == {
        event.seed for event in told if isinstance(event, Frame)
    }
    assert any(isinstance(event, Superseded) for event in told)


def test_a_refusal_is_told_and_the_session_goes_on(server_url: str) -> None:
    async def use(session: Realtime) -> Frame | Superseded | Failed:
        await session.send("")
        failed = await anext(session)
        assert isinstance(failed, Failed)
        assert failed.id == 1
        assert type(failed.error).__name__ == "UnprocessableEntityError"
        assert "prompt is empty" in str(failed.error)
        await session.send("a red car")
        return await anext(session)

    assert isinstance(session_with(server_url, use), Frame)


def test_an_unknown_option_is_refused_before_anything_is_sent(server_url: str) -> None:
    async def use(session: Realtime) -> int:
        with pytest.raises(TypeError, match="no option 'sead'"):
            await session.send("a red car", sead=7)  # type: ignore[call-arg]
        return await session.send("a red car")

    assert session_with(server_url, use) == 1


def test_a_key_opens_the_door(guarded_url: str) -> None:
    async def use(session: Realtime) -> Frame | Superseded | Failed:
        await session.send("a red car")
        return await anext(session)

    assert isinstance(session_with(guarded_url, use, api_key="a-secret-key"), Frame)
    with pytest.raises((AuthenticationError, PermissionDeniedError)):
        session_with(guarded_url, use, api_key="another-key")


@pytest.mark.parametrize(
    "error", [KeyError("mine"), ExceptionGroup("mine", [KeyError("mine")]), SystemExit(3)]
)
def test_a_failure_of_the_callers_own_passes_as_it_is(error: BaseException, server_url: str) -> None:
    async def fail(_session: Realtime) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        session_with(server_url, fail)
    assert caught.value is error


def test_being_cancelled_ends_the_session(server_url: str) -> None:
    async def main() -> None:
        opened = asyncio.Event()

        async def wait(client: AsyncClient) -> None:
            async with client.realtime() as session:
                opened.set()
                await anext(session)

        async with AsyncClient(server_url) as client:
            work = asyncio.create_task(wait(client))
            await opened.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(main())


def test_a_frame_is_read_to_the_byte() -> None:
    image = image_file("JPEG")
    messages = [
        text(type="of a later version"),
        text(
            type="timings",
            id=5,
            timings_ms={"queue": 1.5, "denoise": 2},
            unknown_words=[{"word": "狼", "nearest": None}],
        ),
        websocket_message(2, HEADER + image),
        websocket_message(2, HEADER + image),
        text(type="superseded", id=6),
        text(type="error", id=7, problem={"status": 429, "detail": "Too much.", "code": "rate_limited"}),
        text(type="error", id=None, problem={"status": 400, "detail": "No."}),
    ]

    async def use(session: Realtime) -> list[Frame | Superseded | Failed]:
        return [await anext(session) for _ in range(5)]

    with scripted(sending(UPGRADE, *messages)) as server:
        frame, untimed, superseded, failed, unread = session_with(server.url, use)
    unknown = (UnknownWord("狼", None),)
    assert frame == Frame(image, 7, 5, 2.5, Timings(queue=1.5, denoise=2.0), 8, 4, unknown)
    assert isinstance(untimed, Frame)
    assert (untimed.timings, untimed.unknown_words) == (Timings(), ())
    assert superseded == Superseded(6)
    assert isinstance(failed, Failed)
    assert (failed.id, str(failed.error), type(failed.error).__name__) == (7, "Too much.", "RateLimitError")
    assert isinstance(unread, Failed)
    assert unread.id is None


@pytest.mark.parametrize(
    "message",
    [
        websocket_message(2, b""),
        websocket_message(2, HEADER[:9]),
        websocket_message(2, HEADER + b"<html>"),
        websocket_message(1, b""),
        websocket_message(1, b"[]"),
        websocket_message(1, b'{"id": 1}'),
        text(type="superseded", id=[]),
    ],
)
def test_what_nobody_understands_is_told_as_such(message: bytes) -> None:
    with scripted(sending(UPGRADE, message)) as server:
        with pytest.raises(APIResponseError, match=r"/realtime.* instead of (a frame|news of a frame)"):
            session_with(server.url, first)


@pytest.mark.parametrize("problem", [None, "no", {}, {"detail": 1}])
def test_a_failure_nobody_understands_is_one_still(problem: object) -> None:
    with scripted(sending(UPGRADE, text(type="error", id=1, problem=problem))) as server:
        failed = session_with(server.url, first)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TwinshotError)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "has ended"),
        ((websocket_message(8, struct.pack("!H", 1012) + b"restart"),), "has ended: 1012 restart"),
        ((websocket_message(8, b""),), "has ended: 1005"),
        ((b"\xff\xff\xff\xff",), "has ended: 1002 Invalid opcode"),
        ((b"\x82\x00" * 3 + b"\x93\x01",), "has ended: 1002"),
        ((websocket_message(1, b"\xff\xfe"),), "has ended: 1007"),
    ],
)
def test_the_end_of_a_session_is_told_each_time(parts: tuple[bytes, ...], said: str) -> None:
    async def use(session: Realtime) -> None:
        with pytest.raises(APIConnectionError):
            await last(session)
        with pytest.raises(APIConnectionError):
            await session.send("a red car")
        await anext(session)

    with scripted(sending(UPGRADE, *parts)) as server:
        with pytest.raises(APIConnectionError, match=rf"^the session with {server.url}/realtime {said}"):
            session_with(server.url, use)


def test_a_message_without_end_is_not_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinshot._async_client.MAX_ANSWER_BYTES", 100_000)
    endless = [bytes([kind, 126]) + struct.pack("!H", 50_000) + b"x" * 50_000 for kind in (2, 0, 0)]
    with scripted(sending(UPGRADE, *endless)) as server:
        with pytest.raises(APIConnectionError, match="has ended: 1009 Message too big"):
            session_with(server.url, first)


def test_sending_after_the_servers_goodbye_is_told() -> None:
    async def use(session: Realtime) -> None:
        while True:
            await asyncio.sleep(0.01)
            await session.send("a red car")

    with scripted(sending(UPGRADE, websocket_message(8, struct.pack("!H", 1001)))) as server:
        with pytest.raises(APIConnectionError, match="has ended"):
            session_with(server.url, use)


class DeadStream:
    """A connection from which nothing comes and into which nothing goes."""

    async def read(self, _max_bytes: int, _timeout: float | None = None) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    async def write(self, _buffer: bytes, _timeout: float | None = None) -> None:
        raise httpcore2.WriteError("broken pipe")

    async def aclose(self) -> None:
        pass


def test_a_dead_connection_is_noticed_by_its_pings() -> None:
    async def main() -> None:
        socket = AsyncWebSocketSession(DeadStream(), keepalive_ping_interval_seconds=0.01)  # type: ignore[arg-type]
        async with open_session(socket, HEAD) as session:
            await anext(session)

    with pytest.raises(APIConnectionError, match="the session with http://server was cut"):
        asyncio.run(main())


def hanging_up(connection: socket.socket) -> None:
    connection.sendall(UPGRADE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_connection_that_is_reset_is_told() -> None:
    with scripted(hanging_up) as server:
        with pytest.raises(APIConnectionError):
            session_with(server.url, first)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (sending(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), NotFoundError, "answered 404"),
        (
            sending(b'HTTP/1.1 403 Forbidden\r\nContent-Length: 17\r\n\r\n{"detail": "No."}'),
            PermissionDeniedError,
            "^No",
        ),
        (
            sending(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi"),
            APIResponseError,
            "with text/html instead of a WebSocket",
        ),
        (sending(), APIConnectionError, "no answer from"),
    ],
)
def test_what_opens_no_session_is_told(script: Script, kind: type[TwinshotError], said: str) -> None:
    with scripted(script) as server:
        with pytest.raises(kind, match=said):
            session_with(server.url, first)


def test_frames_are_pictures(server_url: str) -> None:
    async def use(session: Realtime) -> Frame | Superseded | Failed:
        await session.send("a red car", seed=7)
        return await anext(session)

    frame = session_with(server_url, use)
    assert isinstance(frame, Frame)
    with Image.open(io.BytesIO(frame.bytes)) as image:
        assert (image.format, image.size) == ("JPEG", (64, 48))
