"""Servers for the client: real processes, an application in this process, and some that misbehave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from soak.servers import STUB, running

STUB_OPTIONS = {"TWINSHOT_STUB_SIZES": "64x48,32x32", "TWINSHOT_STUB_MS": "5"}
API_KEY = "a-secret-key"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TWINSHOT_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process whose engine is the stub."""
    with running(tmp_path_factory.mktemp("server"), *STUB, **STUB_OPTIONS) as server:
        yield server.url


@pytest.fixture(scope="session")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that asks for an API key."""
    options = STUB_OPTIONS | {"TWINSHOT_API_KEYS": f"ann={API_KEY}"}
    with running(tmp_path_factory.mktemp("guarded"), *STUB, **options) as server:
        yield server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
