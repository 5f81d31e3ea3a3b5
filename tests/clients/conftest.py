"""Servers for the client: real processes, an application in this process, and some that misbehave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from asking import Asker
from canned import STUB_ENVIRONMENT

from soak.servers import STUB, running

API_KEY = "a-secret-key"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TWINSHOT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process whose engine is the stub."""
    with running(tmp_path_factory.mktemp("server"), *STUB, **STUB_ENVIRONMENT) as server:
        yield server.url


@pytest.fixture(scope="session")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that asks for an API key."""
    options = STUB_ENVIRONMENT | {"TWINSHOT_API_KEYS": f"ann={API_KEY}"}
    with running(tmp_path_factory.mktemp("guarded"), *STUB, **options) as server:
        yield server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Asker:
    """Calls either client."""
    return Asker(request.param)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have waited between tries; nobody waits."""
    told: list[float] = []

    async def sleep(seconds: float) -> None:
        told.append(seconds)

    monkeypatch.setattr("twinshot._client.time", SimpleNamespace(sleep=told.append))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    return told
