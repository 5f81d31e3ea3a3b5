"""A replica of Ray Serve without Ray: the application whose start waits for its model."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog
from fastapi.testclient import TestClient

from twinshot_engine.errors import CheckpointError
from twinshot_server.cluster.model import Model, UnhealthyError, make_app

STUB = {"engine": "twinshot_server.stub_engine:load_stub", "log_level": "error"}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logs and the collector belong to the whole process."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.basicConfig(handlers=handlers, level=level, force=True)
    gc.unfreeze()


def test_it_is_ready_by_the_time_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_STUB_SIZES", "64x64")
    monkeypatch.setenv("TWINSHOT_STUB_LOAD_MS", "300")
    with TestClient(make_app(STUB)) as client:
        assert client.get("/readyz").status_code == 200
        assert client.post("/generate", json={"prompt": "a"}).status_code == 200


def test_keys_come_from_the_replicas_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_STUB_SIZES", "64x64")
    monkeypatch.setenv("TWINSHOT_API_KEYS", "ann=anns-secret")
    with TestClient(make_app(STUB)) as client:
        assert client.post("/generate", json={"prompt": "a"}).status_code == 401


def test_a_model_that_cannot_be_loaded_fails_the_start() -> None:
    with pytest.raises(CheckpointError, match="no folder or file 'nowhere at all'"):
        with TestClient(make_app({"checkpoint": "nowhere at all", "log_level": "error"})):
            pass


def test_a_replica_is_unhealthy_when_its_server_is() -> None:
    dispatcher = SimpleNamespace(alive=True)
    replica = Model()
    replica.app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(dispatcher=dispatcher)))  # type: ignore[assignment]
    replica.check_health()
    dispatcher.alive = False
    with pytest.raises(UnhealthyError, match="hangs or ended too often"):
        replica.check_health()
