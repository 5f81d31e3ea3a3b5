"""Health, metrics, models, documentation, page and logs."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from twinshot_engine.errors import CheckpointError
from twinshot_server import app as app_module
from twinshot_server.app import create_app
from twinshot_server.settings import Settings


@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez"])
def test_healthy(path: str, client: TestClient) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json() | {"version": ""} == {
        "status": "ready",
        "reason": None,
        "version": "",
        "model": "fake",
        "waiting": 0,
        "running": 0,
    }


def loading_client(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> TestClient:
    monkeypatch.setattr(app_module, "_loader", lambda _settings: load)
    return TestClient(create_app(Settings()))


def test_while_the_model_loads(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    loaded = threading.Event()

    def load(_progress: object) -> Any:
        assert loaded.wait(10)
        return engine

    with loading_client(monkeypatch, load) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/readyz").json()["status"] == "starting"
        response = client.post("/generate", json={"prompt": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"]["message"] == "The model is still loading."
        assert client.get("/v1/models").status_code == 503
        assert client.get("/metrics").status_code == 200
        loaded.set()
        client.app.state.service.dispatcher.ready.result(10)  # type: ignore[attr-defined]
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("There is no folder 'x'."), "There is no folder 'x'."),
        (RuntimeError("secret"), "unexpectedly; the server's log says why"),
    ],
)
def test_after_loading_failed(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_progress: object) -> Any:
        raise error

    with loading_client(monkeypatch, load) as client:
        assert client.app.state.service.dispatcher.ready.exception(10) is error  # type: ignore[attr-defined]
        assert client.get("/health").status_code == 503
        assert (client.get("/health").json()["status"], client.get("/health").json()["reason"]) == (
            "failed",
            reason,
        )
        message = client.post("/generate", json={"prompt": "a"}).json()["error"]["message"]
        assert message == "The model could not be loaded; /health says why."


def test_models_tell_what_can_be_asked(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["sizes"], model["steps"]) == ("fake", ["64x32", "32x32"], [1, 2])
    assert model["vocabulary"] == {"colors": ["red"]}


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "a"})
    client.post("/generate", json={"prompt": ""})
    text = client.get("/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    model = ("model", "fake")
    assert samples["twinshot_requests_total", model, ("outcome", "ok")] == 1
    assert samples["twinshot_requests_total", model, ("outcome", "invalid")] == 1
    assert samples["twinshot_request_duration_seconds_count", model] == 1
    assert samples["twinshot_images_total", model, ("size", "64x32")] == 1
    assert samples["twinshot_batch_size_sum", model] == 1
    assert samples["twinshot_model_load_seconds", model] == 0.25
    assert samples["twinshot_requests_waiting",] == samples["twinshot_requests_running",] == 0
    for stage, seconds in {"text": 0.001, "denoise": 0.002, "decode": 0.003}.items():
        assert samples["twinshot_stage_duration_seconds_sum", model, ("stage", stage)] == seconds
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {name for name in names if not re.match("(twinshot|process|python)_[a-z_]+$", name)} == set()


def test_applications_share_nothing(make_client: Callable[..., TestClient]) -> None:
    first, second = make_client(), make_client()
    first.post("/generate", json={"prompt": "a"})
    assert "twinshot_requests_total{" in first.get("/metrics").text
    assert "twinshot_requests_total{" not in second.get("/metrics").text


def test_the_documentation_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert client.get(path).status_code == 200
    assert "/generate" in client.get("/openapi.json").json()["paths"]


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.findall(r"https?://", response.text)
    assert not re.findall(r"<script>|<style>| style=| on\w+=", response.text)
    for path in re.findall(r'(?:src|href)="([^"]+)"', response.text):
        assert client.get(path).status_code == 200, path


def test_the_log_tells_a_requests_story_but_never_its_prompt(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines, caplog.at_level(logging.DEBUG):
        client.post(
            "/generate", json={"prompt": "a secret plan", "seed": 5}, headers={"X-Request-Id": "mine"}
        )
        client.post("/generate", json={"prompt": "a secret plan\x00", "seed": 5})
        client.post("/generate", json={"prompt": ["a secret plan"]})
        client.get("/readyz")
    assert "secret" not in repr(lines) + caplog.text
    drawn, refused, _, probe = lines
    assert (drawn["request_id"], drawn["status"], drawn["seed"], drawn["batch"]) == ("mine", 200, 5, 1)
    assert drawn["stage_ms"]["denoise"] == 2.0
    assert (refused["status"], refused["error"]) == (422, "invalid_request")
    assert (probe["path"], probe["log_level"]) == ("/readyz", "debug")
