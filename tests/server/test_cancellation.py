"""What happens when a client hangs up: its request is dropped before it costs anything more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from twinshot_engine.types import GenerateRequest

Message = dict[str, Any]


async def post_and_hang_up(app: FastAPI, waits: Callable[[], bool]) -> list[Message]:
    """Send one request to the ASGI application, disconnect once `waits()`, return what it sent."""
    body = json.dumps({"prompt": "a red car", "seed": 99}).encode()
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
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await asyncio.wait_for(app(scope, receive, send), 10)
    return sent


def test_a_waiting_request_is_dropped(client: TestClient, engine: Any) -> None:
    app: Any = client.app
    dispatcher = app.state.service.dispatcher
    engine.hold()
    first = dispatcher.submit(GenerateRequest("a", 1, 64, 32))
    assert engine.busy.wait(10)
    sent = asyncio.run(post_and_hang_up(app, lambda: dispatcher.waiting == 1))
    assert sent[0]["status"] == 499
    assert dispatcher.waiting == 0
    engine.release()
    first.result(10)
    dispatcher.submit(GenerateRequest("a", 2, 64, 32)).result(10)
    assert [request.seed for batch in engine.batches for request in batch] == [1, 2]
    assert 'twinshot_requests_total{model="fake",outcome="cancelled"} 1.0' in client.get("/metrics").text


def test_a_request_being_drawn_is_not_encoded(client: TestClient, engine: Any) -> None:
    app: Any = client.app
    engine.hold()
    sent = asyncio.run(post_and_hang_up(app, engine.busy.is_set))
    assert sent[0]["status"] == 499
    engine.release()
    assert "twinshot_images_total{" not in client.get("/metrics").text
