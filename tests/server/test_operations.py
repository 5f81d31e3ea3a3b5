"""Health, metrics, models, documentation, page and logs."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from serving import dispatcher_of, until
from structlog.testing import capture_logs

from twinshot_engine.errors import CheckpointError
from twinshot_server.app import create_app
from twinshot_server.settings import Settings


@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez", "/startupz"])
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
        "predicted_wait_ms": 0.0,
    }


def test_while_the_model_loads(engine: Any) -> None:
    loaded = threading.Event()
    engine.warm = lambda _progress: loaded.wait(10)
    with TestClient(create_app(Settings(), engine)) as client:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/startupz"):
            assert client.get(path).status_code == 503
        assert client.get("/readyz").json()["status"] == "starting"
        response = client.post("/generate", json={"prompt": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["detail"] == "The model is still loading."
        assert client.get("/v1/models").status_code == 503
        assert client.get("/metrics").status_code == 200
        loaded.set()
        dispatcher_of(client).ready.result(10)
        assert client.get("/readyz").status_code == client.get("/startupz").status_code == 200


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CheckpointError("There is no folder 'x'."), "There is no folder 'x'."),
        (RuntimeError("secret"), "It failed unexpectedly; the server's log says why."),
    ],
)
def test_after_loading_failed(error: Exception, reason: str, engine: Any) -> None:
    def warm(_progress: object) -> None:
        raise error

    engine.warm = warm
    with TestClient(create_app(Settings(), engine)) as client:
        assert dispatcher_of(client).ready.exception(10) is not None
        health = client.get("/health")
        assert health.status_code == client.get("/livez").status_code == 503
        assert (health.json()["status"], health.json()["reason"]) == ("failed", reason)
        problem = client.post("/generate", json={"prompt": "a"}).json()
        assert problem["detail"] == "The model could not be loaded; /health says why."


def test_draining_is_unready_but_serves_and_then_refuses(
    make_client: Callable[..., TestClient],
) -> None:
    client = make_client(admin_key="operator-secret", drain_seconds=0.3)
    assert "connection" not in client.get("/readyz").headers
    answer = client.post("/admin/drain", headers={"Authorization": "Bearer operator-secret"})
    assert (answer.status_code, answer.json()["status"]) == (200, "draining")
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == client.get("/startupz").status_code == 200
    served = client.post("/generate", json={"prompt": "a"})
    assert (served.status_code, served.headers["connection"]) == (200, "close")
    until(lambda: dispatcher_of(client).closing)
    refused = client.post("/generate", json={"prompt": "a"})
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")


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
    key = ("key", "anonymous")
    assert samples["twinshot_requests_total", key, model, ("outcome", "ok")] == 1
    assert samples["twinshot_requests_total", key, model, ("outcome", "invalid")] == 1
    assert samples["twinshot_response_bytes_total",] > 100
    assert samples["twinshot_engines_available",] == 1
    assert samples["twinshot_predicted_wait_seconds",] == 0
    assert samples["twinshot_request_duration_seconds_count", model] == 1
    assert samples["twinshot_images_total", model, ("size", "64x32")] == 1
    assert samples["twinshot_batch_size_sum", model] == 1
    assert samples["twinshot_model_load_seconds", model] == 0.25
    assert samples["twinshot_requests_waiting",] == samples["twinshot_requests_running",] == 0
    for stage, seconds in {"text": 0.001, "denoise": 0.002, "decode": 0.003}.items():
        assert samples["twinshot_stage_duration_seconds_sum", model, ("stage", stage)] == seconds
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {name for name in names if not re.match("(twinshot|process|python)_[a-z_]+$", name)} == set()


def test_sizes_that_are_not_listed_are_no_labels(client: TestClient, engine: Any) -> None:
    engine.validate = lambda _request: None
    assert client.post("/generate", json={"prompt": "a", "size": "40x40"}).status_code == 200
    assert 'twinshot_images_total{model="fake",size="other"} 1.0' in client.get("/metrics").text


def test_vllms_names_if_asked_for(make_client: Callable[..., TestClient]) -> None:
    assert "vllm:" not in make_client().get("/metrics").text
    text = make_client(vllm_metrics=True).get("/metrics").text
    assert 'vllm:num_requests_running{model_name="fake"} 0.0' in text
    assert 'vllm:num_requests_waiting{model_name="fake"} 0.0' in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_promtool_has_no_complaint(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "a"})
    text = client.get("/metrics").text
    result = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


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
        with client.websocket_connect("/realtime") as session:
            session.send_json({"id": 1, "prompt": "a secret plan"})
            session.receive_bytes()
    assert "secret" not in repr(lines) + caplog.text
    drawn, refused, _, probe, session_line = lines
    assert (session_line["method"], session_line["status"]) == ("WEBSOCKET", 101)
    assert (drawn["request_id"], drawn["status"], drawn["seed"], drawn["batch"]) == ("mine", 200, 5, 1)
    assert drawn["stage_ms"]["denoise"] == 2.0
    assert (refused["status"], refused["error"]) == (422, "invalid_request")
    assert (probe["path"], probe["log_level"]) == ("/readyz", "debug")
