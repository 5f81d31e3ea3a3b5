"""Applications around the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from twinshot_server.app import create_app
from twinshot_server.settings import Settings


@pytest.fixture
def engine(fake_engine: Any) -> Any:
    return fake_engine


@pytest.fixture
def make_client(engine: Any) -> Iterator[Callable[..., TestClient]]:
    """Start an application with other settings; it is stopped after the test."""
    clients: list[TestClient] = []

    def make(**settings: object) -> TestClient:
        app = create_app(Settings.model_validate(settings), engine)
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        app.state.service.dispatcher.ready.result(10)
        engine.forget_warm_up()
        return client

    yield make
    engine.release()
    for client in clients:
        client.__exit__()


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that counts as running, for tests that make jobs but wait for nothing: these hold futures."""
    loop = asyncio.new_event_loop()
    asyncio._set_running_loop(loop)
    yield loop
    asyncio._set_running_loop(None)
    loop.close()
