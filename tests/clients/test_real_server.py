"""The client with servers as users run them: a process on a socket, and an application in this process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asking import Asker
from canned import STUB_ENVIRONMENT
from fastapi import FastAPI
from httpx2.websockets import ASGIWebSocketTransport

from soak.servers import STUB, eventually, running
from twinshot import (
    APIConnectionError,
    APIStatusError,
    AsyncClient,
    AuthenticationError,
    Client,
    Done,
    Drawn,
    Frame,
    InternalServerError,
    PermissionDeniedError,
    Queued,
    RateLimitError,
    Started,
    UnprocessableEntityError,
)
from twinshot_server.app import create_app
from twinshot_server.settings import Settings


def test_the_same_seed_is_the_same_picture(ask: Asker, server_url: str) -> None:
    first, again, other = (ask(server_url, "generate", "a red car", seed=seed) for seed in (7, 7, 8))
    assert first.bytes == again.bytes != other.bytes
    assert first.image.size == (64, 48)
    assert first.timings.denoise > 0
    chosen = ask(server_url, "generate", "a red car")
    assert ask(server_url, "generate", "a red car", seed=chosen.seed).bytes == chosen.bytes


def test_what_is_asked_for_is_what_comes(ask: Asker, server_url: str) -> None:
    for asked in ("png", "jpeg", "webp"):
        picture = ask(server_url, "generate", "a", format=asked, size="32x32", steps=2)
        assert (picture.format, picture.image.size) == (asked, (32, 32))
    picture = ask(server_url, "generate", "a", width=32, height=32, priority="batch", deadline_ms=20_000)
    assert picture.image.size == (32, 32)


def test_the_servers_log_knows_the_request(ask: Asker, server_url: str) -> None:
    request_id = ask(server_url, "generate", "a").request_id
    assert len(request_id) == 32
    with pytest.raises(UnprocessableEntityError) as caught:
        ask(server_url, "generate", "a", size="9x9")
    assert len(caught.value.request_id) == 32


def test_refusals(ask: Asker, server_url: str, guarded_url: str) -> None:
    with pytest.raises(UnprocessableEntityError, match="9x9 is not supported") as caught:
        ask(server_url, "generate", "a", size="9x9")
    assert (caught.value.code, caught.value.param) == ("invalid_request", "size")
    with pytest.raises(UnprocessableEntityError, match="prompt is empty"):
        ask(server_url, "stream", " ")
    with pytest.raises(RateLimitError) as limited:
        ask(server_url, "generate", "a", deadline_ms=1, settings={"max_retries": 0})
    assert limited.value.retry_after is not None
    with pytest.raises(AuthenticationError, match="Send a valid API key"):
        ask(guarded_url, "generate", "a")
    with pytest.raises(AuthenticationError):
        ask(guarded_url, "models", settings={"api_key": "wrong-key"})
    assert ask(guarded_url, "models", settings={"api_key": "a-secret-key"})[0].id == "stub"
    assert ask(guarded_url, "health").is_ready


def test_many_pictures(ask: Asker, server_url: str) -> None:
    pictures = ask(server_url, "generate_many", [{"prompt": "a", "seed": seed} for seed in range(24)])
    assert [picture.seed for picture in pictures] == list(range(24))
    assert len({picture.bytes for picture in pictures}) == 24


def test_a_stream_tells_what_happens(ask: Asker, server_url: str) -> None:
    events = ask(server_url, "stream", "a red car", n=3, seed=2**32 - 1, format="jpeg")
    assert isinstance(events[0], Queued)
    assert isinstance(events[-1], Done)
    assert sorted(event.index for event in events if isinstance(event, Started)) == [0, 1, 2]
    drawn = {event.index: event.picture for event in events if isinstance(event, Drawn)}
    assert [drawn[index].seed for index in range(3)] == [2**32 - 1, 0, 1]
    assert drawn[1].bytes == ask(server_url, "generate", "a red car", seed=0, format="jpeg").bytes
    assert drawn[0].request_id == events[0].request_id == events[-1].request_id
    assert drawn[0].timings.denoise > 0


def test_a_stream_that_fails_raises(ask: Asker, server_url: str) -> None:
    with pytest.raises(InternalServerError) as caught:
        ask(server_url, "stream", "!fail")
    assert caught.value.code == "internal_error"


def test_a_failing_engine_is_asked_again_for_the_same(
    ask: Asker, server_url: str, pauses: list[float]
) -> None:
    with pytest.raises(InternalServerError):
        ask(server_url, "generate", "!fail")
    assert len(pauses) == 2


def test_hanging_up_on_a_stream_drops_what_waits(tmp_path: Any) -> None:
    options = STUB_ENVIRONMENT | {"TWINSHOT_STUB_MS": "200"}
    with running(tmp_path, *STUB, **options) as server, Client(server.url) as client:
        for event in client.stream("a", n=10):
            if isinstance(event, Drawn):
                break
        eventually(server.is_idle, 1.5)  # ten of them take two seconds


def test_a_server_that_stops_ends_a_session_and_a_new_one_finds_the_next(tmp_path: Any) -> None:
    async def main() -> None:
        with running(tmp_path, *STUB, **STUB_ENVIRONMENT) as server:
            port = server.url.rpartition(":")[2]
            async with AsyncClient(server.url) as client:
                async with client.realtime() as session:
                    await session.send("a red car")
                    assert isinstance(await anext(session), Frame)
                    await asyncio.to_thread(server.stop)
                    with pytest.raises(APIConnectionError, match="has ended"):
                        await anext(session)
                with running(tmp_path, *STUB, "--port", port, **STUB_ENVIRONMENT):
                    async with client.realtime() as session:
                        await session.send("a red car")
                        assert isinstance(await anext(session), Frame)

    asyncio.run(main())


def test_a_server_that_only_starts_is_waited_for(tmp_path: Any) -> None:
    """First nobody listens, then the server answers 503, then it draws."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url, options = f"http://127.0.0.1:{port}", STUB_ENVIRONMENT | {"TWINSHOT_STUB_LOAD_MS": "500"}
    with ThreadPoolExecutor() as pool, Client(url, max_retries=12) as client:
        picture = pool.submit(client.generate, "a red car", seed=7)
        with running(tmp_path, *STUB, "--port", str(port), **options):
            assert picture.result(60).image.size == (64, 48)


def application_with(engine: Any, **settings: object) -> FastAPI:
    return create_app(Settings.model_validate({"drain_seconds": 0, **settings}), engine)


@asynccontextmanager
async def client_of(application: FastAPI, **settings: Any) -> AsyncIterator[AsyncClient]:
    """A client that reaches the application without a network."""
    transport = ASGIWebSocketTransport(application, raise_app_exceptions=False)
    async with application.router.lifespan_context(application):
        async with AsyncClient("http://testserver", transport=transport, **settings) as client:
            while not (await client.health()).is_ready:
                await asyncio.sleep(0.01)
            yield client


def test_an_application_in_this_process_needs_no_network(fake_engine: Any) -> None:
    async def main() -> None:
        async with client_of(application_with(fake_engine)) as client:
            picture = await client.generate("a red car", seed=7)
            assert (picture.image.size, picture.image.getpixel((0, 0))) == ((64, 32), (7, 7, 7))
            events = [type(event).__name__ async for event in client.stream("a red car", n=2)]
            assert (events[0], events[-1], events.count("Drawn")) == ("Queued", "Done", 2)
            assert [model.id for model in await client.models()] == ["fake"]
            async with client.realtime() as session:
                await session.send("a red car", seed=9, format="png")
                frame = await anext(session)
                assert isinstance(frame, Frame)
                assert (frame.seed, frame.image.getpixel((0, 0))) == (9, (9, 9, 9))

    asyncio.run(main())


def test_an_application_in_this_process_refuses_as_a_server_does(fake_engine: Any) -> None:
    async def main() -> None:
        application = application_with(fake_engine, api_keys="ann=a-secret-key")
        async with client_of(application, api_key="another-key") as client:
            with pytest.raises(AuthenticationError):
                await client.generate("a red car")
            with pytest.raises((AuthenticationError, PermissionDeniedError)):
                async with client.realtime():
                    pass
            with pytest.raises(APIStatusError):
                await client.models()
            async with client.with_options(api_key="a-secret-key").realtime() as session:
                await session.send("a red car")
                assert isinstance(await anext(session), Frame)

    asyncio.run(main())
