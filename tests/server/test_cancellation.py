"""What happens when a client hangs up: its request is dropped before it costs anything more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import dispatcher_of, until

from twinshot_server.processes.messages import Cost

Message = dict[str, Any]


def hang_up(client: TestClient, *request: Any, **options: Any) -> list[Message]:
    """Send a request on the application's own loop, and hang up."""
    assert client.portal
    return client.portal.call(partial(post_and_hang_up, client.app, *request, **options))


async def post_and_hang_up(
    app: Any, path: str, headers: dict[str, str], waits: Callable[[], bool], *, stream: bool = False
) -> list[Message]:
    """Send one request to the ASGI application, disconnect once `waits()`, return what it sent."""
    body = json.dumps({"prompt": "a red car", "seed": 99, "stream": stream}).encode()
    sent: list[Message] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        message = next(messages, None)
        if message:
            return message
        while not waits():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ],
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent


def cancelled(client: TestClient) -> bool:
    counted = 'twinshot_requests_total{key="anonymous",model="fake",outcome="cancelled"} 1.0'
    return counted in client.get("/metrics").text


FORMS = [{}, {"accept": "application/json"}, {"accept": "text/event-stream"}]


@pytest.mark.parametrize("headers", FORMS)
@pytest.mark.parametrize("settings", [{}, {"cors_origins": "https://example.org"}])
def test_a_waiting_request_is_dropped(
    headers: dict[str, str], settings: dict[str, str], make_client: Callable[..., TestClient], engine: Any
) -> None:
    client = make_client(**settings)
    dispatcher = dispatcher_of(client)
    dispatcher.costs.install([Cost((64, 32), 1, 1, 1.0)])  # so that nothing is sent to the engine ahead
    engine.hold()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/generate", json={"prompt": "a", "seed": 1})
        assert engine.busy.wait(10)
        sent = hang_up(client, "/generate", headers, lambda: dispatcher.waiting == 1)
        assert sent[:1] == [] or sent[0]["status"] == (200 if "event" in str(headers) else 499)
        until(lambda: dispatcher.waiting == 0)
        engine.release()
        assert first.result(10).status_code == 200
    client.post("/generate", json={"prompt": "a", "seed": 2})
    assert [request.seed for batch in engine.batches for request in batch] == [1, 2]
    assert cancelled(client)


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_being_drawn_is_not_encoded(
    path: str, stream: bool, client: TestClient, engine: Any
) -> None:
    engine.hold()
    hang_up(client, path, {}, engine.busy.is_set, stream=stream)
    engine.release()
    until(lambda: dispatcher_of(client).running == 0)
    text = client.get("/metrics").text
    assert "twinshot_images_total{" not in text
    assert 'twinshot_dropped_images_total{gate="encode"} 1.0' in text
    assert cancelled(client)
