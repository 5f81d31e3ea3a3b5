"""Spans of a request, read where an exporter would."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serving import dispatcher_of

from twinshot_server.app import create_app
from twinshot_server.settings import Settings
from twinshot_server.tracing import Tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_request_is_a_span_with_a_child_for_each_stage(engine: Any) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with TestClient(create_app(Settings(), engine, Tracer(provider.get_tracer("test")))) as client:
        dispatcher_of(client).ready.result(10)
        client.post("/generate", json={"prompt": "a secret", "seed": 7}, headers={"traceparent": PARENT})
    *stages, request = exporter.get_finished_spans()
    assert request.name == "POST /generate"
    assert f"{request.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{request.parent.span_id:016x}" == PARENT.split("-")[2]
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["twinshot.seed"] == 7
    assert "secret" not in request.to_json()
    assert {"text", "denoise", "decode", "encode"} <= {span.name for span in stages}
    assert all(span.parent.span_id == request.context.span_id for span in stages)
    denoise = next(span for span in stages if span.name == "denoise")
    assert denoise.end_time - denoise.start_time == pytest.approx(2e6)


def test_nobody_traces_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert Tracer.from_environment()._tracer is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert Tracer.from_environment()._tracer is not None
