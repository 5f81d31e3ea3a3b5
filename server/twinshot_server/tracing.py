"""OpenTelemetry spans, if `opentelemetry-sdk` is installed and the usual `OTEL_*` variables ask for them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
_STAGES = ("queue", "text", "denoise", "decode", "encode")


class RequestSpan:
    """The span of one request, or nothing where nobody traces."""

    def __init__(self, tracer: Any = None, span: Any = None) -> None:
        self._tracer = tracer
        self._span = span

    def finish(self, status: int, facts: Mapping[str, Any]) -> None:
        """Note how the request ended, and a child span for each stage of its (last) picture."""
        if self._span is None:
            return
        self._span.set_attribute("http.response.status_code", status)
        for name in ("seed", "width", "height", "steps", "n", "error"):
            if name in facts:
                self._span.set_attribute(f"twinshot.{name}", facts[name])
        self._add_stages(facts.get("stage_ms", {}))

    def _add_stages(self, milliseconds: Mapping[str, float]) -> None:
        """Spans for stages that were timed elsewhere: one after the other, ending now."""
        durations = {stage: int(milliseconds.get(stage, 0.0) * 1e6) for stage in _STAGES}
        moment = time.time_ns() - sum(durations.values())
        for stage, nanoseconds in durations.items():
            if nanoseconds:
                self._tracer.start_span(stage, start_time=moment).end(moment + nanoseconds)
                moment += nanoseconds


class Tracer:
    """Makes spans with a tracer of OpenTelemetry's; `from_environment` decides whether there is one."""

    def __init__(self, tracer: Any = None) -> None:
        self._tracer = tracer

    @classmethod
    def from_environment(cls) -> Tracer:
        """A tracer that exports over OTLP if an endpoint is set and the packages are there."""
        wanted = any(os.environ.get(name) for name in _ENDPOINTS)
        if (
            not wanted
            or find_spec("opentelemetry.exporter") is None
            or find_spec("opentelemetry.sdk") is None
        ):
            return cls()
        trace = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = import_module("opentelemetry.sdk.resources")
        name = os.environ.get("OTEL_SERVICE_NAME", "twinshot")
        provider = trace.TracerProvider(resource=resources.Resource.create({"service.name": name}))
        provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        return cls(provider.get_tracer("twinshot"))

    @contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """A span around one request, child of the one that `traceparent` names."""
        if self._tracer is None or scope["type"] != "http":
            yield RequestSpan()
            return
        propagate = import_module("opentelemetry.propagate")
        kind = import_module("opentelemetry.trace").SpanKind.SERVER
        parent = propagate.extract(dict(Headers(scope=scope)))
        name = f"{scope['method']} {scope['path']}"
        with self._tracer.start_as_current_span(name, context=parent, kind=kind) as span:
            scope["state"]["facts"]["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            yield RequestSpan(self._tracer, span)
