"""Servers that are wrong, slow, half or hostile, on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from asking import Asker
from canned import image_file
from scripted import Script, scripted, sending

from twinshot import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    TwinshotError,
    _base,
)

IMAGE = image_file()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
HURRY = {"timeout": 0.3, "max_retries": 0}


def hanging(*parts: bytes) -> Script:
    """Sends this and then neither speaks nor hangs up."""

    def script(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        connection.recv(1)

    return script


def dripping(head: bytes, drop: bytes, drops: int = 500) -> Script:
    """Sends a drop at a time, often enough for the silence never to be long, until the client leaves."""

    def script(connection: socket.socket) -> None:
        connection.sendall(head)
        with contextlib.suppress(OSError):
            for _ in range(drops):
                connection.sendall(drop)
                time.sleep(0.02)

    return script


def test_the_scripted_server_can_be_understood(ask: Asker) -> None:
    with scripted(sending(HEAD, IMAGE)) as server:
        assert ask(server.url, "generate", "a").bytes == IMAGE


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"HTTP/1.1 200 OK\r\n",),
        (HEAD,),
        (HEAD, IMAGE[:-1]),
        (CHUNKED, b"%x\r\n" % len(IMAGE), IMAGE, b"\r\n"),
        (CHUNKED, b"zz\r\n"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n",),
        (b"\x00" * 100_000,),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 200_000,),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",),
    ],
)
def test_half_an_answer_is_no_answer_and_tried_again(
    parts: tuple[bytes, ...], ask: Asker, pauses: list[float]
) -> None:
    with scripted(sending(*parts), sending(HEAD, IMAGE)) as server:
        assert ask(server.url, "generate", "a").bytes == IMAGE
        assert (server.connections, len(pauses)) == (2, 1)
    with scripted(sending(*parts)) as server:
        with pytest.raises(APIConnectionError, match=rf"no answer from {server.url}: \S"):
            ask(server.url, "generate", "a")
        assert server.connections == 3


@pytest.mark.parametrize("parts", [(), (b"HTTP/1.1 200 OK\r\n",), (HEAD,), (HEAD, IMAGE[:9])])
def test_silence_has_an_end(parts: tuple[bytes, ...], ask: Asker) -> None:
    with scripted(hanging(*parts)) as server:
        with pytest.raises(APITimeoutError, match=rf"no answer from {server.url} within 0\.3 s"):
            ask(server.url, "generate", "a", settings=HURRY)


def test_an_answer_that_drips_has_an_end(ask: Asker) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n"
    with scripted(dripping(head, b"\x89")) as server:
        with pytest.raises(APITimeoutError, match=r"within 0\.3 s"):
            ask(server.url, "generate", "a", settings=HURRY)


def test_headers_that_drip_have_an_end_in_asyncio() -> None:
    with scripted(dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x")) as server:
        with pytest.raises(APITimeoutError, match=r"within 0\.3 s"):
            Asker("async")(server.url, "generate", "a", settings=HURRY)


def test_a_refusal_that_drips_has_an_end(ask: Asker) -> None:
    with scripted(dripping(b"HTTP/1.1 422 No\r\n\r\n", b" ")) as server:
        for method in ("generate", "stream"):
            with pytest.raises(APITimeoutError, match=r"within 0\.3 s"):
                ask(server.url, method, "a", settings=HURRY)


@pytest.mark.parametrize("status", [b"200 OK", b"422 No"])
def test_an_endless_answer_is_not_taken_in(
    status: bytes, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_base, "MAX_ANSWER_BYTES", 1_000_000)
    head = b"HTTP/1.1 %s\r\nContent-Type: image/png\r\n\r\n" % status
    with scripted(dripping(head, b"\x89" * 400_000)) as server:
        with pytest.raises(APIResponseError, match="/generate answered with more than 1000000 bytes"):
            ask(server.url, "generate", "a")
        assert server.connections == 1


def test_a_stream_may_take_long_but_not_be_silent(ask: Asker) -> None:
    with scripted(dripping(EVENTS, b": still here\n\n", 50), hanging(EVENTS)) as server:
        with pytest.raises(APIConnectionError, match="ended before every picture was there"):
            ask(server.url, "stream", "a", settings={"timeout": 0.5, "max_retries": 0})
        with pytest.raises(APITimeoutError, match=r"within 0\.3 s"):
            ask(server.url, "stream", "a", settings=HURRY)


def test_an_endless_event_is_not_taken_in(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_client", "_async_client"):
        monkeypatch.setattr(f"twinshot.{module}.MAX_ANSWER_BYTES", 1_000_000)
    with scripted(dripping(EVENTS + b"data: ", b"x" * 400_000)) as server:
        with pytest.raises(TwinshotError, match="exceeded the 1000000 byte limit"):
            ask(server.url, "stream", "a")


def test_a_stream_that_is_cut_is_told(ask: Asker) -> None:
    head = EVENTS.replace(b"\r\n\r\n", b"\r\nContent-Length: 999\r\n\r\n")
    with scripted(sending(head, b'event: started\ndata: {"index": 0}\n\n')) as server:
        with pytest.raises(APIConnectionError, match="no answer from"):
            ask(server.url, "stream", "a")


def test_many_calls_need_not_wait_for_each_other(ask: Asker) -> None:
    """Nobody is answered before all are there."""
    crowd = threading.Barrier(150)

    def script(connection: socket.socket) -> None:
        crowd.wait(20)
        connection.sendall(HEAD + IMAGE)

    with scripted(script) as server:
        assert len(ask(server.url, "generate_many", ["a"] * 150, concurrency=150)) == 150


def test_a_redirect_is_not_followed(ask: Asker) -> None:
    elsewhere = (
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    )
    with scripted(sending(elsewhere)) as server:
        with pytest.raises(APIStatusError, match="answered 307 Temporary Redirect"):
            ask(server.url, "generate", "a", settings={"api_key": "a-secret"})


def test_nobody_listens(ask: Asker, pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(APIConnectionError, match=rf"no answer from {url}: .*(refused|failed)"):
        ask(url, "generate", "a")
    assert len(pauses) == 2


def test_a_server_that_comes_back_is_found_again(ask: Asker, pauses: list[float]) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with scripted(sending(busy), sending(), sending(HEAD, IMAGE)) as server:
        assert ask(server.url, "generate", "a").bytes == IMAGE
    assert 2 <= pauses[0] <= 2.5
    assert pauses[1] <= 1
